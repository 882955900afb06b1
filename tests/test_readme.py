"""The Python of the README runs, on a tiny model and made-up files."""

import gzip
import json
import re
from pathlib import Path

import pytest
import torch
from tiny import tiny_draft, tiny_model, tiny_tokenizer
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import dspark_kernels as dk
from dspark_kernels.bench import read_prompts
from dspark_kernels.integrations.decoder import SpeculativeDecoder

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
VOCAB = 300


def example(word):
    """The source of the one example which holds a word."""
    (found,) = (source for source in EXAMPLES if word in source)
    return found


@pytest.fixture(scope="module")
def decoder():
    return SpeculativeDecoder(
        tiny_model(vocab_size=VOCAB), tiny_tokenizer(VOCAB), tiny_draft(vocab_size=VOCAB)
    )


def test_every_example_is_tested():
    assert len(EXAMPLES) == 4


def test_decoding(decoder, monkeypatch, capsys):
    monkeypatch.setattr(SpeculativeDecoder, "from_pretrained", lambda: decoder)
    namespace = {}
    exec(example("import SpeculativeDecoder"), namespace)
    assert len(capsys.readouterr().out.splitlines()) >= 3
    exec(example("custom_generate"), namespace)
    (text,) = (namespace["tokenizer"].decode(row) for row in namespace["out"])
    assert capsys.readouterr().out == text + "\n" and text.startswith("The three primary")
    expected = decoder.model.generate(**namespace["inputs"], max_new_tokens=64)
    assert torch.equal(namespace["out"], expected)


class Engine:
    """The layers of a Llama model, with nothing of our loop: the `layers` of the README's step."""

    def __init__(self, model):
        self.decoder = model.get_decoder()
        self.rotary = LlamaRotaryEmbedding(model.config)
        self.passes = 0

    @torch.no_grad()
    def __call__(self, tokens, positions, attend):
        self.passes += 1
        x = self.decoder.embed_tokens(tokens)
        angles = self.rotary(x, positions)
        for index, layer in enumerate(self.decoder.layers):
            attention = layer.self_attn
            normed = layer.input_layernorm(x)
            parts = [getattr(attention, f"{name}_proj")(normed) for name in "qkv"]
            qkv = torch.cat(parts, -1).unflatten(-1, (-1, attention.head_dim))
            x = x + attention.o_proj(attend(index, qkv, *angles).flatten(-2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.decoder.norm(x).flatten(0, 1)


def test_a_step_in_another_engine():
    """Its steps yield the tokens of greedy decoding; a text that repeats takes fewer of them."""
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data *= 0.1  # so that the text depends on what is near
    decoder = SpeculativeDecoder(model, None, None)
    prompts, count = [[5, 9, 17, 5, 9, 17, 5, 9], [30, 31, 32, 30, 31, 32, 30, 31]], 200
    expected = decoder.generate(prompts, max_new_tokens=count, speculative=False).tokens
    config, batch, length = decoder.model.config, len(prompts), len(prompts[0])
    shape = (batch, length + count + 16, config.num_key_value_heads, config.head_dim)
    caches = [torch.zeros(shape) for _ in range(2 * config.num_hidden_layers)]
    history = torch.zeros(batch, length + count + 16, dtype=torch.int64)
    history[:, :length] = torch.tensor(prompts)
    lengths = torch.full((batch,), length, dtype=torch.int32)
    state = {
        "stop": torch.tensor([], dtype=torch.int64), "limit": lengths + count, "history": history,
        "lengths": lengths, "cache_seqlens": lengths - 1, "root": history[:, length - 1].clone(),
        "done": torch.zeros(batch, dtype=torch.bool),
    }  # fmt: skip
    engine, lm_head = Engine(decoder.model), decoder.target.lm_head.detach()

    def prefill(layer, qkv, cos, sin):  # all but the last token, which is the first root
        cache, start = caches[2 * layer : 2 * layer + 2], torch.zeros_like(lengths)
        q = dk.rotary_append(qkv, cos, sin, *cache, start)
        return dk.tree_attention(q, *cache, start, tree.ancestors)

    tree = dk.chain(history[:, : length - 1])
    engine(tree.tokens, tree.depths, prefill)
    namespace = {}
    exec(example("def step("), namespace)
    emitted = [[] for _ in prompts]
    while not state["done"].all():
        tokens, counts = namespace["step"](engine, lm_head, caches, state)
        for row, new, number in zip(emitted, tokens.tolist(), counts.tolist(), strict=True):
            row += new[:number]
    assert [row[:count] for row in emitted] == expected
    assert engine.passes < 0.8 * count


def test_the_prompts_of_the_benchmarks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
        {"question_id": 161, "category": "translation", "turns": ["Translate."]},
    ]
    Path("question.jsonl").write_text("\n".join(map(json.dumps, questions)))
    problem = {"task_id": "HumanEval/0", "prompt": "def f():\n", "test": "assert f()"}
    Path("HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(problem).encode()))
    exec(example("question.jsonl"), {})
    records = read_prompts("prompts.jsonl")
    assert [record["category"] for record in records] == ["mt_bench", "translation", "code"]
    assert records[0]["prompt"] == "Write." and "```python\ndef f():\n\n```" in records[2]["prompt"]
