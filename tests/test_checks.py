"""Wrong arguments of `generate`: an error that names the one, before anything is computed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_draft, tiny_model

from dspark_kernels import profiling
from dspark_kernels.integrations import decoder as module
from dspark_kernels.integrations.decoder import SpeculativeDecoder

TOKEN = "must hold token ids"


@pytest.fixture(scope="module")
def decoder():
    return SpeculativeDecoder(tiny_model(), None, tiny_draft())


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch):
    """Neither is a machine measured for a call that cannot run."""

    def refuse(*_):
        raise AssertionError("measured before the arguments were checked")

    monkeypatch.setattr(module, "cost_table", refuse)
    monkeypatch.setattr(profiling, "profile", refuse)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "prompts must hold at least one prompt"),
        ({"prompts": None}, "prompts must be a sequence of prompts, got None"),
        ({"prompts": b"abc"}, "prompts must be a sequence of prompts"),
        ({"prompts": [1, 2, 3]}, f"prompt 0 {TOKEN}, got 1"),
        ({"prompts": [["a"]]}, f"prompt 0 {TOKEN}"),
        ({"prompts": [[1.0, 2.5]]}, f"prompt 0 {TOKEN}"),
        ({"prompts": [[1], []]}, "prompt 1 must hold at least one token"),
        ({"prompts": [[1, 64]]}, "prompt 0 must hold ids from 0 to 63, got 64"),
        ({"prompts": [[1], [-1]]}, "prompt 1 must hold ids from 0 to 63, got -1"),
        ({"prompts": [[1] * 250]}, r"context of 256 tokens, got 250 \+ 10"),
        ({"prompts": ["text"]}, "prompt must be token ids where there is no tokenizer"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an int of at least 1, got 0"),
        ({"max_new_tokens": 5.0}, "max_new_tokens must be an int of at least 1, got 5.0"),
        ({"num_nodes": 0}, "num_nodes must be an int from 1 to 256, got 0"),
        ({"num_nodes": 257}, "num_nodes must be an int from 1 to 256, got 257"),
        ({"num_nodes": "all"}, "num_nodes must be an int from 1 to 256, got 'all'"),
        ({"num_nodes": None}, "num_nodes must be an int from 1 to 256, got None"),
        ({"num_nodes": True}, "num_nodes must be an int from 1 to 256, got True"),
        ({"max_nodes": 300}, "max_nodes must be an int from 1 to 256, got 300"),
        ({"max_nodes": -3, "num_nodes": 4}, "max_nodes must be an int from 1 to 256, got -3"),
        ({"sync_every": 0}, "sync_every must be an int of at least 1, got 0"),
        ({"sync_every": 1.5}, "sync_every must be an int of at least 1, got 1.5"),
        ({"min_score": "a"}, "min_score must be a number from 0 to 1, got 'a'"),
        ({"min_score": float("nan")}, "min_score must be a number from 0 to 1, got nan"),
        ({"stop": 5}, f"stop {TOKEN}, got 5"),
        ({"stop": "x"}, f"stop {TOKEN}, got 'x'"),
        ({"stop": [1.5]}, f"stop {TOKEN}"),
        ({"stop": [2**70]}, "stop must hold ids from 0"),
        ({"on_tokens": 5}, "on_tokens must be a function or None, got 5"),
        ({"stop_when": "eos"}, "stop_when must be a function or None, got 'eos'"),
        ({"stop_strings": "x", "stop_when": 5}, "stop_when must be a function or None, got 5"),
        ({"stop_strings": 5}, "stop_strings must hold at least one text, and no empty one, got 5"),
        ({"stop_strings": []}, r"stop_strings must hold at least one text, .*, got \[\]"),
        (
            {"stop_strings": ["x", ""]},
            r"stop_strings must hold .*, and no empty one, got \['x', ''\]",
        ),
        ({"stop_strings": "x"}, "stop_strings must be None for a decoder without tokenizer"),
        ({"temperature": -1.0}, "temperature must be a number >= 0, got -1.0"),
        ({"temperature": 1e-40}, "temperature must be 0 or at least 1e-06, got 1e-40"),
        ({"temperature": True}, "temperature must be a number >= 0, got True"),
        ({"temperature": "hot"}, "temperature must be a number >= 0, got 'hot'"),
        ({"temperature": [1.0, 2.0]}, "temperature must be one number or 1"),
        ({"top_p": 1.5}, r"top_p must be a number from .* to 1, got 1\.5"),
        ({"top_k": -1}, "top_k must be an int from 0"),
        ({"top_k": 1.9}, "top_k must be an int from 0"),
        ({"min_p": 2.0}, "min_p must be a number from 0 to 1, got 2.0"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number >= .*, got 0"),
        ({"seed": 1.5}, "seed must be an int from"),
        ({"seed": 2**63}, "seed must be an int from"),
        ({"seed": None}, "seed must be an int from"),
    ],
)
def test_wrong_arguments(decoder, options, message):
    arguments = {"prompts": [[1, 2]], "max_new_tokens": 10} | options
    with pytest.raises((TypeError, ValueError), match=message):
        decoder.generate(**arguments)


def test_arrays_and_tensors_are_taken_as_lists(decoder):
    plain = {"max_new_tokens": 12, "num_nodes": 8, "temperature": 0.8}
    expected = decoder.generate([[1, 2], [3, 4]], seed=[5, 6], stop=[7, 9], **plain).tokens
    wrapped = {"max_new_tokens": np.int64(12), "num_nodes": torch.tensor(8)}
    for make in (torch.tensor, np.array):
        options = {"seed": make([5, 6]), "stop": make([9, 7, 9]), "temperature": make([0.8, 0.8])}
        out = decoder.generate(make([[1, 2], [3, 4]]), **(wrapped | options))
        assert out.tokens == expected


@pytest.mark.parametrize("wrap", [torch.tensor, lambda ids: [torch.tensor(i) for i in ids], set])
def test_a_stop_token_of_any_kind_ends_a_request(decoder, wrap):
    tokens = decoder.generate([[1, 2, 3]], max_new_tokens=20, num_nodes=8).tokens[0]
    out = decoder.generate([[1, 2, 3]], max_new_tokens=20, num_nodes=8, stop=wrap([tokens[9]]))
    assert out.tokens[0] == tokens[: tokens.index(tokens[9]) + 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float7"}, "dtype must be a dtype of torch, its name or 'auto', got 'float7'"),
        ({"device": "gpu"}, "device must be one that torch has here, .* got 'gpu'"),
        ({"device": "cuda:99"}, "device must be one that torch has here, .* got 'cuda:99'"),
        ({"model": Path("no/such.gguf")}, "model must be an existing file, got 'no/such.gguf'"),
        ({"draft": Path("no/such")}, "draft must be a folder .* 'no/such' cannot be loaded"),
    ],
)
def test_wrong_sources(options, message):
    """Device and dtype are refused before anything is loaded."""
    if "draft" in options:
        options = {"model": tiny_model(), **options}
    with pytest.raises(ValueError, match=message):
        SpeculativeDecoder.from_pretrained(**options)
