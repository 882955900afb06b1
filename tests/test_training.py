"""Training a draft for a tiny random model: the whole pipeline, interrupted and resumed."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_draft, tiny_model

from dspark_kernels.heads import DraftModel
from dspark_kernels.training import TrainConfig, train
from dspark_kernels.training.calibration import (
    calibration_error,
    fit_line,
    fit_log_probs,
    fit_lookup,
    true_path_log_probs,
)
from dspark_kernels.training.data import continue_prompts, read_prompts
from dspark_kernels.training.objective import half_distillation
from dspark_kernels.training.replay import propose, replay, tokens_per_step
from dspark_kernels.training.store import Continuation, Segments, choose, read_shards
from dspark_kernels.training.train import Trainer


@pytest.fixture(autouse=True)
def one_thread():
    """Bitwise equal runs need the same order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def prompts(tmp_path):
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "prompts.jsonl"
    records = []
    for number in range(24):
        tokens = torch.randint(64, (3 + number % 4,), generator=generator).tolist()
        records.append({"tokens": tokens, "category": "even" if number % 2 else "odd"})
    write(path, records)
    return path


def settings(prompts, out, **options):
    usual = {
        "steps": 12, "max_new_tokens": 24, "generation_batch": 8, "held_out": 0.3, "num_heads": 3,
        "num_candidates": 8, "feature_layers": (1,), "feature_size": 8, "rank": 8,
        "draft_vocab_size": 48, "segments": 8, "segment_length": 4, "frequent": 16,
        "negatives": 16, "checkpoint_every": 5,
    }  # fmt: skip
    return TrainConfig(model="tiny", prompts=str(prompts), out=str(out), **(usual | options))


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_pipeline_makes_a_draft_and_a_report(prompts, tmp_path, capsys):
    model = tiny_model()
    with prompts.open("a") as file:
        file.write(json.dumps({"tokens": [1] * 240}) + "\n")
    draft = train(settings(prompts, tmp_path / "out", evaluation_prompts=2), model)
    assert "prompts: 1 of 25 left out, too long for a context of 256" in capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "training.json").read_text())
    assert report["training"]["steps"] == 12
    assert report["prompts"] == {"used": 24, "too_long": 1} and report["continuations"] == 24
    assert report["evaluated_on"] == {"continuations": 2, "held_out": True}
    assert 2 < report["calibrated_on"]["continuations"] < 12
    for measured in report["held_out_tokens_per_step"].values():
        assert set(measured["total"]) == {"chain", "8", "16", "32", "64"}
        assert 1 <= measured["total"]["8"] <= measured["total"]["64"]
    mode = (tmp_path / "out" / "training.json").stat().st_mode
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode == mode
    shown = (tmp_path / "out" / "README.md").read_text()
    for fact in (
        f"{draft.num_parameters:,} trained parameters",
        f"{report['tokens']:,} tokens in 24 continuations",
        "less\n1 which were too long",
        "continuations of held-out topics",
        "| | chain | 8 | 16 | 32 | 64 |",
        f"{report['held_out_tokens_per_step']['with_lookup']['total']['64']:.2f} |",
    ):
        assert fact in shown
    loaded = DraftModel.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.calibration, draft.calibration)
    assert torch.equal(loaded.draft_vocab, draft.draft_vocab)
    assert torch.equal(loaded.lookup.table, draft.lookup.table)


def test_interrupted_training_continues_to_the_same_result(prompts, tmp_path, monkeypatch):
    model = tiny_model()
    whole = train(settings(prompts, tmp_path / "whole", rollout_from=0.4), model)
    step = Trainer.train_step

    def interrupted(trainer):
        if trainer.step == 8:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(settings(prompts, tmp_path / "parts", rollout_from=0.4), model)
    monkeypatch.setattr(Trainer, "train_step", step)
    resumed = train(settings(prompts, tmp_path / "parts", rollout_from=0.4), model)
    for (name, expected), actual in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, actual), name


def test_ctrl_c_loses_no_step(prompts, tmp_path, monkeypatch, capsys, press_ctrl_c):
    model = tiny_model()
    whole = train(settings(prompts, tmp_path / "whole"), model)
    step, begun = Trainer.train_step, []

    def pressed(trainer):
        begun.append(trainer.step)
        if len(begun) == 9:
            press_ctrl_c()
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", pressed)
    with pytest.raises(KeyboardInterrupt):
        train(settings(prompts, tmp_path / "parts"), model)
    assert "the same command continues from here" in capsys.readouterr().err
    resumed = train(settings(prompts, tmp_path / "parts"), model)
    assert begun == list(range(12))  # the step under way was finished and kept
    for expected, actual in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, actual)


def test_a_folder_continues_only_its_own_training(prompts, tmp_path, monkeypatch):
    model, out = tiny_model(), tmp_path / "out"
    train(settings(prompts, out, steps=4), model)
    before = (out / "work" / "settings.json").read_text()

    def refused(message, model=model, **options):
        with pytest.raises(ValueError, match=message):
            train(settings(prompts, out, **({"steps": 4} | options)), model)
        assert (out / "work" / "settings.json").read_text() == before

    refused("holds a training with seed 0, got 1", seed=1)
    refused("holds a training for another model than tiny is now", tiny_model(seed=1))
    refused("steps must be at least the 4 which .*out has been trained for, got 3", steps=3)
    lines = prompts.read_text()
    prompts.write_text(lines.replace("odd", "new", 1))
    refused("holds a training on other prompts than .*prompts.jsonl holds now")

    steps, step = [], Trainer.train_step
    monkeypatch.setattr(
        Trainer, "train_step", lambda trainer: [steps.append(trainer.step), step(trainer)][1]
    )
    moved = tmp_path / "moved.jsonl"
    moved.write_text(lines)
    train(settings(moved, out, steps=6), model)
    assert steps == [4, 5]
    assert "6 steps" in (out / "README.md").read_text()
    (out / "README.md").write_text("a text of my own")
    train(settings(moved, out, steps=6), model)
    assert (out / "README.md").read_text() == "a text of my own"


@pytest.mark.parametrize(
    "records, message",
    [
        ([{"tokens": [1, 2], "temperature": 0.7}] * 3, "all 3 that are short enough have a temp"),
        ([{"tokens": [1] * 300}, {"tokens": [1] * 250}], "shorter than 232 tokens.* has 250"),
        ([{"tokens": [1, 64], "id": "x"}], "prompt 'x' must be token ids from 0 to 63, got .1, 64"),
    ],
)
def test_unusable_prompts_are_refused_before_anything_is_written(records, message, tmp_path):
    write(tmp_path / "p.jsonl", records)
    with pytest.raises(ValueError, match=f"prompts: .*{message}"):
        train(settings(tmp_path / "p.jsonl", tmp_path / "out"), tiny_model())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": -3}, "steps must be a whole number of at least 1, got -3"),
        ({"steps": 1.5}, "steps must be a whole number of at least 1, got 1.5"),
        ({"minutes": -1}, "minutes must be a number of at least 0, got -1"),
        ({"minutes": math.nan}, "minutes must be a number of at least 0, got nan"),
        ({"sampled": 2}, "sampled must be a number from 0 to 1, got 2"),
        ({"num_candidates": 65}, "num_candidates must be a whole number from 1 to 64, got 65"),
        ({"num_candidates": 50}, "num_candidates must be at most the 48 tokens"),
        ({"feature_layers": (3,)}, "feature_layers must be from 0 to the model's 2, got 3"),
        (
            {"device": "moon"},
            "device must be one that torch has here, like 'cpu' or 'cuda', got 'moon'",
        ),
    ],
)
def test_unusable_options_are_refused(options, message, prompts, tmp_path):
    model = None if "device" in options else tiny_model()
    with pytest.raises(ValueError, match=message):
        train(settings(prompts, tmp_path / "out", **options), model)
    assert not (tmp_path / "out").exists()


def test_calibration_prefers_held_out_greedy_continuations():
    def continuation(topic, temperature, length=3):
        return Continuation(topic, topic, "", temperature, [1], [2] * length, None)

    trained, kept = continuation("stars", 0.0), continuation("bees", 0.0)
    sampled, short = continuation("bees", 0.8), continuation("bees", 0.0, length=1)
    assert choose([trained, kept, sampled, short], 0.5) == ([trained], [kept], True)
    assert choose([trained, sampled, short], 0.5) == ([trained], [trained], False)
    assert choose([kept, sampled], 1.0) == ([kept, sampled], [kept], False)
    with pytest.raises(ValueError, match="of the 2 continuations 1 are that long, and none is"):
        choose([sampled, short], 0.5)


def test_kept_states_are_those_which_drew_the_tokens(prompts):
    from dspark_kernels.integrations.transformers import TransformersTarget

    model = tiny_model()
    target = TransformersTarget(model)
    target.feature_layers = (1,)
    chosen = read_prompts(prompts, None, sampled=0.0)[:3]
    with torch.inference_mode():
        results = list(continue_prompts(target, chosen, 9, stop=[5]))
        for prompt, (tokens, states) in zip(chosen, results, strict=True):
            text = torch.tensor([prompt.tokens + tokens])
            out = model(text, output_hidden_states=True)
            drew = slice(len(prompt.tokens) - 1, -1)
            assert out.logits[0, drew].argmax(-1).tolist() == tokens
            for layer, state in ((2, states[:, 0]), (1, states[:, 1])):
                expected = out.hidden_states[layer][0, drew]
                torch.testing.assert_close(state.float(), expected, atol=0.03, rtol=0.02)


def test_half_distillation_has_the_gradient_of_its_definition():
    torch.manual_seed(0)
    logits = torch.randn(5, 11, requires_grad=True)
    teacher, target = torch.randn(5, 11).softmax(-1), torch.randint(11, (5,))
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0])
    loss = half_distillation(logits, teacher, target, weight, 0.3)
    log_probs = logits.log_softmax(-1)
    hard = F.nll_loss(log_probs, target, reduction="none")
    soft = -(teacher * log_probs).sum(-1)
    expected = (weight * (0.7 * hard + 0.3 * soft)).sum()
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


def random_continuation(length=40, period=7):
    torch.manual_seed(3)
    tokens = torch.randint(64, (period,)).tolist() * (length // period + 1)
    return Continuation(
        "a", "a", "x", 0.0, [1, 2, 3], tokens[:length], torch.randn(length, 2, 32).bfloat16()
    )


def test_true_path_scores_are_those_of_the_tree():
    """Training and `glm_tree` score a path alike: the product of its q."""
    model, draft = tiny_model(), tiny_draft(lookup_paths=0, num_candidates=64)
    bound = draft.bind(model.get_input_embeddings().weight, model.lm_head.weight)
    item = random_continuation()
    log_probs, is_true, _ = true_path_log_probs(bound, item)
    survival = (log_probs * is_true).sum(-1).cumsum(1).exp()  # [B, H]
    tree = propose(bound, item, torch.arange(len(item.tokens) - 1), 256, lookup=False)
    compared = 0
    for row in range(len(item.tokens) - 3):
        node = 0
        for depth in range(3):
            children = (tree.parents[row] == node) & (tree.depths[row] == depth + 1)
            match = (children & (tree.tokens[row] == item.tokens[row + depth + 1])).nonzero()
            if not len(match):
                break
            node = int(match[0])
            torch.testing.assert_close(tree.scores[row, node], survival[row, depth])
            compared += 1
    assert compared > 10


def test_replay_with_a_certain_lookup_accepts_its_paths():
    model, draft = tiny_model(), tiny_draft()
    draft.lookup.table[:, 1:] = 1.0
    bound = draft.bind(model.get_input_embeddings().weight, model.lm_head.weight)
    item = random_continuation()
    result = replay(bound, item, budgets=(16,))
    accepted = result.accepted["16"][8:24]
    assert (accepted >= 7).all()  # two paths may share the 15 nodes
    assert (accepted == 15).sum() > 10  # a path goes on in circles where the history ends
    tokens, steps = result.tokens_and_steps("16")
    assert tokens == 39 and steps < 12
    assert tokens_per_step([result])["x"]["16"] == tokens / steps


def test_lookup_table_is_the_observed_survival():
    window = {"max_ngram": 2, "min_ngram": 1, "num_paths": 2, "path_length": 3}
    table = fit_lookup(window, [random_continuation()], max_new_tokens=100, prior=0.0)
    assert table.shape == (2, 3, 3)
    assert (table[:, 0] == 0).all()
    assert table[0, 2, 0] == 1.0  # the continuation is periodic


def test_calibration_error_of_honest_and_of_overconfident_scores():
    torch.manual_seed(0)
    probs = torch.rand(20000, dtype=torch.float64)
    assert calibration_error(probs, torch.rand(20000) < probs) < 0.02
    assert calibration_error(probs, torch.rand(20000) < probs**3) > 0.15


def test_the_fit_finds_slope_and_shift():
    torch.manual_seed(0)
    log_q = torch.rand(200_000, dtype=torch.float64).log()
    hits = (torch.rand(200_000) < (1.3 * log_q - 0.4).exp()).double()
    log_q[:1000], hits[:1000] = -math.inf, 0.0  # what has no probability says nothing
    assert fit_line(log_q, hits).tolist() == pytest.approx([1.3, -0.4], abs=0.02)
    assert fit_line(log_q, torch.zeros_like(hits)).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("shift", [0, 2, 4, 8, 12])
def test_the_fit_finds_scores_far_too_small(shift):
    torch.manual_seed(0)
    honest = 2 * torch.randn(20_000, dtype=torch.float64) - 5
    hits = (torch.rand(20_000) < (0.5 * honest).exp().clamp(max=1)).double()
    log_q = honest - shift
    slope, offset = fit_line(log_q, hits)
    assert slope == pytest.approx(0.5, abs=0.03)
    rates = (slope * log_q + offset).exp()
    # the derivatives of the likelihood by the shift, and by the slope but for its prior
    assert float(rates.sum()) == pytest.approx(float(hits.sum()))
    assert float((log_q * (rates - hits)).sum()) == pytest.approx(1 - float(slope), abs=1e-4)


LOG_Q = [-0.1, -1.0, -2.0, -4.0]
WIDE = [3 * math.log(rank / 1000) for rank in range(1, 1001)]


@pytest.mark.parametrize(
    "log_q, hits, expected",
    [
        (LOG_Q, [1, 1, 1, 1], None),  # the likeliest slope is 0
        (LOG_Q, [0, 0, 1, 1], None),  # ... below 0
        (WIDE, [1] * 35 + [0] * 965, None),  # ... so far that whole steps overflow
        (LOG_Q, [1, 0, 0, 0], None),  # separable: ... infinite
        (LOG_Q, [0, 0, 0, 0], [1, 0]),
        ([-3.0] * 4, [1, 0, 0, 0], [1, 3 - math.log(4)]),
        ([-3.0], [1], [1, 3]),
        ([-math.inf], [1], [1, 0]),
        ([], [], [1, 0]),
    ],
)
def test_the_fit_of_degenerate_data_is_usable(log_q, hits, expected):
    log_q, hits = torch.tensor(log_q).double(), torch.tensor(hits).double()
    slope, shift = fit_line(log_q, hits).tolist()
    if expected is None:
        assert 0.1 <= slope < 3
        assert float((slope * log_q + shift).exp().sum()) == pytest.approx(float(hits.sum()))
    else:
        assert [slope, shift] == pytest.approx(expected)


def test_segments_are_parts_of_continuations():
    item = random_continuation()
    batch = Segments([item], 4, 3).draw(400, torch.Generator().manual_seed(0))
    assert batch.hidden.shape == (400, 7, 32) and batch.layers.shape == (400, 7, 32)
    starts = set()
    for tokens, hidden in zip(batch.tokens, batch.hidden, strict=True):
        start = int((item.states[:, 0] == hidden[0]).all(-1).nonzero()[0, 0])
        expected = item.tokens[start : start + 7]
        assert tokens.tolist() == expected + [-1] * (7 - len(expected))
        starts.add(start)
    assert starts == set(range(37))  # not only where a part begins


def tiny_trainer(**options):
    config = settings("", "", **options)
    draft, model = tiny_draft(), tiny_model()
    embedding = model.get_input_embeddings().weight.detach()
    return Trainer(config, draft, [random_continuation()], embedding, model.lm_head.weight.detach())


def test_training_lowers_the_loss():
    trainer = tiny_trainer(steps=60, learning_rate=0.02)
    losses = torch.stack([trainer.train_step().mean() for _ in range(60)])
    assert losses[-5:].mean() < losses[:5].mean() - 1
    norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()])
    assert 0.01 < norm < 1.001


def test_learning_rate_rises_and_falls_along_a_cosine():
    trainer = tiny_trainer(steps=400, learning_rate=1.0)
    for step, expected in ((0, 0.02), (24, 0.5), (100, 0.863), (200, 0.51), (399, 0.02)):
        trainer.step = step
        trainer.train_step()
        (group,) = trainer.optimizer.param_groups
        assert group["lr"] == pytest.approx(expected, rel=0.02)


def test_errors(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "hello"}\n')
    with pytest.raises(ValueError, match=r"line 1 must be a JSON object with `prompt`, `messages`"):
        read_prompts(path, None)
    path.write_text("")
    with pytest.raises(ValueError, match="at least one prompt"):
        read_prompts(path, None)
    assert read_shards(tmp_path, 32, 1) == []
    item = random_continuation()
    item.tokens = item.tokens[:1]
    with pytest.raises(ValueError, match="items must hold a continuation of at least two tokens"):
        fit_log_probs(None, [item])
    assert math.isfinite(calibration_error(torch.zeros(1), torch.zeros(1)))
