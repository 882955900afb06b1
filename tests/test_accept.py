"""`dspark bench accept`: the replay agrees with the loop, and the trees it compares are right."""

import itertools
import json

import pytest
import torch
from tiny import tiny_draft, tiny_model

from dspark_kernels import accept
from dspark_kernels.integrations.decoder import SpeculativeDecoder
from dspark_kernels.training.replay import tokens_per_step
from dspark_kernels.training.store import Continuation

PROMPTS = [
    {"tokens": [5 * n % 64, 3, 2 * n + 1, 3], "category": "even" if n % 2 else "odd"}
    for n in range(6)
]


@pytest.fixture(scope="module")
def decoder():
    return SpeculativeDecoder(tiny_model(), None, tiny_draft())


@pytest.fixture(scope="module")
def items(decoder):
    return accept.continuations(decoder, PROMPTS, 30, batch_size=4)


def test_continuations_are_the_targets_own(decoder, items):
    assert len(items) == 6
    for item in items:
        text = torch.tensor([item.prompt + item.tokens])
        out = decoder.model(text, output_hidden_states=True)
        drew = slice(len(item.prompt) - 1, -1)
        assert out.logits[0, drew].argmax(-1).tolist() == item.tokens
        for layer, state in ((2, item.states[:, 0]), (1, item.states[:, 1])):
            expected = out.hidden_states[layer][0, drew]
            torch.testing.assert_close(state.float(), expected, atol=0.03, rtol=0.02)


def test_continuations_are_kept(decoder, items, tmp_path, monkeypatch):
    first = accept.continuations(decoder, PROMPTS, 30, 4, str(tmp_path))
    monkeypatch.setattr(decoder, "generate", None)
    again = accept.continuations(decoder, PROMPTS, 30, 4, str(tmp_path))
    assert [item.tokens for item in again] == [item.tokens for item in first]
    assert [item.tokens for item in first] == [item.tokens for item in items]


def test_replay_takes_the_steps_of_the_loop(decoder, items):
    """In float32 the states of the replay, kept in bfloat16, flip few of the tiny draft's picks."""
    result = accept.accept(decoder.draft, items, num_nodes=16)
    ids = [item.prompt for item in items]
    loop = decoder.generate(ids, max_new_tokens=30, num_nodes=16).statistics
    replayed = result["drafters"][accept.FULL]
    assert replayed["total"]["16"] == pytest.approx(loop.tokens_per_step, rel=0.1)
    assert set(replayed["total"]) == {"chain", "8", "16"}
    assert set(replayed["categories"]) == {"even", "odd"}
    assert replayed["by_depth"] == sorted(replayed["by_depth"], reverse=True)
    for row in result["drafters"].values():
        assert row["total"]["8"] <= row["total"]["16"]
    bounds = [result["min_score"][f"min_score {bound}"] for bound in accept.MIN_SCORES]
    nodes = [row["nodes"] for row in bounds]
    assert nodes == sorted(nodes, reverse=True) and nodes[-1] >= 1
    assert result["any_candidate"] >= result["drafters"]["heads, GLM"]["total"]["16"]
    json.dumps(result)


def test_medusa_choices_are_the_likeliest_paths():
    torch.manual_seed(0)
    accuracy = torch.rand(3, 4, dtype=torch.float64).sort(dim=1, descending=True).values / 2
    paths = [p for d in (1, 2, 3) for p in itertools.product(range(4), repeat=d)]
    likelihood = {
        p: float(torch.stack([accuracy[d, r] for d, r in enumerate(p)]).prod()) for p in paths
    }
    expected = sorted(paths, key=lambda path: -likelihood[path])[:19]
    assert accept.medusa_choices(accuracy, 20) == expected
    assert len(accept.medusa_choices(accuracy, 1000)) == len(paths)


def test_static_trees_accept_the_ranks_they_hold():
    item = Continuation("a", "", "x", 0.0, [1], [1, 2, 3, 4], torch.zeros(4, 1, 2))
    ranks = torch.tensor([[0, 0], [0, 1], [1, 0]])  # of 2 candidates; rank 2 is none
    (run,) = accept.static_replays([item], [ranks], 2, (3, 8))
    assert run.accepted["chain"].tolist() == [2, 1, 0]
    assert run.accepted["3"].tolist() == [2, 1, 0]  # (0,) and (0, 0)
    assert run.accepted["8"].tolist() == run.accepted["any"].tolist() == [2, 2, 2]
    assert run.steps("8") == [0] and tokens_per_step([run])["x"]["8"] == 3


def test_loops_have_a_period():
    assert accept.loops([9, 8, 7] + [1, 2, 3, 4] * 15)
    assert not accept.loops(list(range(80)))
    assert not accept.loops([1, 2] * 10)  # too short to tell


def test_continuations_of_one_token_are_refused(decoder):
    one = Continuation("a", "", "x", 0.0, [1], [1], torch.zeros(1, 2, 32))
    with pytest.raises(ValueError, match="prompts must be continued by two tokens or more"):
        accept.accept(decoder.draft, [one], num_nodes=8)


def test_a_picture_that_cannot_be_kept_is_refused(tmp_path):
    accept.check_plot(str(tmp_path / "plot.png"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"plot must be a picture file .*plot.jam: Format 'jam'"):
        accept.check_plot(str(tmp_path / "plot.jam"))
    with pytest.raises(ValueError, match=r"plot must be a picture file to be written, got .*none"):
        accept.check_plot(str(tmp_path / "none" / "plot.png"))


def test_tables_and_plot(decoder, items, tmp_path):
    result = accept.accept(decoder.draft, items, num_nodes=8)
    assert len(accept.tables(result).renderables) == 6
    accept.plot(result, str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
