"""`dspark bench decode` on a tiny model: every method, its rows, tables and files."""

import csv
import json
import re

import pytest
from tiny import tiny_draft, tiny_model, tiny_tokenizer

from dspark_kernels.bench import DEFAULT_PROMPTS, read_prompts
from dspark_kernels.cli import main

VOCAB = 300
CATEGORIES = ["code", "chat", "code", "chat", "code"]
METHODS = ["ours", "ours:4", "ours:16", "plain", "generate", "prompt-lookup", "assisted"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with its tokenizer, a draft for it, and a prompt file."""
    root = tmp_path_factory.mktemp("models")
    tokenizer, model = tiny_tokenizer(VOCAB), tiny_model(vocab_size=VOCAB)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    tiny_draft(vocab_size=VOCAB).save_pretrained(root / "draft")
    lines = [{"prompt": f"tell {i} of it", "category": c} for i, c in enumerate(CATEGORIES)]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return root


def run(folder, *rest, prompts=None):
    models = ["--model", str(folder / "model"), "--draft", str(folder / "draft")]
    prompts = prompts or folder / "prompts.jsonl"
    command = ["bench", "decode", *models, "--prompts", str(prompts), "--max-new-tokens", "24"]
    return main([*command, *rest])


def test_every_method_gives_the_tokens_of_generate(folder, capsys):
    assert run(folder, "--json", "--methods", *METHODS) == 0
    result = json.loads(capsys.readouterr().out)
    rows = {(row["category"], row["method"]): row for row in result["rows"]}
    assert set(rows) == {(c, m) for c in ("code", "chat", "total") for m in METHODS}
    for (category, method), row in rows.items():
        reference = rows[category, "generate"]
        assert row["prompts"] == {"code": 3, "chat": 2, "total": 5}[category]
        assert row["identical"] == row["prompts"]
        assert row["tokens"] == reference["tokens"]
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        speedup = row["tokens_per_second"] / reference["tokens_per_second"]
        assert row["speedup"] == pytest.approx(speedup)
        assert row["tokens_per_step"] >= 1
        if method in ("plain", "generate"):
            assert row["tokens_per_step"] == 1
    assert rows["total", "ours:16"]["tokens_per_step"] > rows["total", "ours:4"]["tokens_per_step"]


def test_prediction_is_tokens_per_step_times_step_times(folder, capsys):
    assert run(folder, "--json", "--methods", "ours", "plain") == 0
    result = json.loads(capsys.readouterr().out)
    total = {row["method"]: row for row in result["rows"] if row["category"] == "total"}
    ours, plain, generate = (total[name] for name in ("ours", "plain", "generate"))
    ratio = plain["step_milliseconds"] / ours["step_milliseconds"]
    assert ours["predicted_over_plain"] == pytest.approx(ours["tokens_per_step"] * ratio)
    assert plain["predicted_over_plain"] == pytest.approx(1)
    assert plain["measured_over_plain"] == pytest.approx(1)
    assert generate["step_milliseconds"] is None
    for name in ("ours", "plain"):
        phases = [row["milliseconds"] for row in result["phases"] if row["method"] == name]
        assert sum(phases) == pytest.approx(total[name]["step_milliseconds"])


def test_batches_leave_out_what_decodes_one_request(folder, capsys):
    methods = ("ours", "prompt-lookup")
    assert run(folder, "--json", "--batch-size", "1", "3", "--methods", *methods) == 0
    result = json.loads(capsys.readouterr().out)
    measured = {(row["batch_size"], row["method"]) for row in result["rows"]}
    assert measured == {
        *((1, "ours"), (1, "generate"), (1, "prompt-lookup"), (3, "ours"), (3, "generate"))
    }
    assert result["notes"]["prompt-lookup"] == "left out: it decodes 1 request at a time"
    assert all(row["identical"] == row["prompts"] for row in result["rows"])
    prompts = {row["batch_size"]: row["prompts"] for row in result["rows"]}
    assert prompts == {1: 5, 3: 6}  # two full batches of three: the third chat is the first again


def test_table_and_files(folder, tmp_path, capsys):
    assert run(folder, "--limit", "1", "--csv", str(tmp_path), "--name", "some") == 0
    out = capsys.readouterr().out
    assert "tokens/step" in out and "2/2" in out and "torch" in out
    for name in ("some_cpu.csv", "some_cpu_phases.csv"):
        rows = list(csv.DictReader((tmp_path / name).open()))
        fields = ("device", "threads", "torch", "transformers", "commit", "dtype", "batch_size")
        assert all(field in rows[0] for field in fields)
    assert "draft" in {row["phase"] for row in rows}


def test_default_prompts():
    assert len({record["category"] for record in read_prompts(DEFAULT_PROMPTS)}) == 7
    assert len(read_prompts(DEFAULT_PROMPTS, limit=2)) == 14


@pytest.mark.parametrize(
    "methods, message",
    [
        ("none", "methods: must be of ours, plain, generate, prompt-lookup, assisted"),
        ("ours:many", "ours takes a whole number from 1 behind its colon, got many"),
        ("ours:0", "ours takes a whole number from 1 behind its colon, got 0"),
        ("prompt-lookup:0", "prompt-lookup takes a whole number from 1 behind its colon, got 0"),
        ("assisted:99", "assisted takes from 1 to 1 of the model's 2 layers behind its colon, got"),
        ("assisted:0", "assisted takes from 1 to 1 of the model's 2 layers behind its colon, got"),
        ("assisted:no/such", "'no/such' cannot be loaded"),
    ],
)
def test_unknown_methods_are_one_sentence(folder, capsys, methods, message):
    assert run(folder, "--methods", methods) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [("", "at least one prompt"), ('{"prompt": "a"}\nnonsense', "line 2 must be a JSON object")],
)
def test_bad_prompt_files(folder, tmp_path, capsys, text, message):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(text)
    assert run(folder, prompts=prompts) == 2
    assert message in capsys.readouterr().err
    assert run(folder, prompts=tmp_path / "none.jsonl") == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_the_prompt_file_is_read_before_the_model(folder, tmp_path, capsys):
    assert run(folder, "--model", "no/such", prompts=tmp_path / "none.jsonl") == 2
    assert "none.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["ours", "generate"])
def test_tokens_beyond_the_vocabulary_are_one_sentence(folder, tmp_path, capsys, method):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"tokens": [1, 999999]}')
    assert run(folder, "--methods", method, prompts=prompts) == 2
    assert "tokens must hold ids from 0 to 299" in capsys.readouterr().err


def test_results_that_cannot_be_kept_are_refused_before_the_run(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    options = ("--model", "no/such", "--csv")  # the model would be missed next
    assert run(folder, *options, str(tmp_path / "file" / "folder")) == 2
    message = r"csv must be a folder that can be written, got .*file/folder: Not a directory"
    assert re.search(message, capsys.readouterr().err)
    for name in ("../evil", "a/b", "", ".."):
        with pytest.raises(SystemExit):
            run(folder, *options, str(tmp_path), "--name", name)
        message = f"argument --name: must be a file's name without a folder, got {name!r}"
        assert message in capsys.readouterr().err


def test_no_commit_is_shown_where_there_is_none(folder, monkeypatch, capsys):
    monkeypatch.setattr("dspark_kernels.results._commit", lambda: "")
    assert run(folder, "--limit", "1") == 0
    out = capsys.readouterr().out
    assert "commit" not in out and re.search(r"version [\d.]+, date \d+", out)
