"""The command line, on a tiny model with a tokenizer of its own."""

import json

import pytest
from tiny import tiny_draft, tiny_model, tiny_tokenizer

from dspark_kernels.cli import main

VOCAB = 300


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved model with its tokenizer, and a saved draft for it."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer(VOCAB)
    model = tiny_model(vocab_size=VOCAB)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    tiny_draft(vocab_size=VOCAB).save_pretrained(root / "draft")
    tiny_draft(vocab_size=64).save_pretrained(root / "other")
    return root


def run(folders, command, *rest):
    command = command.split()
    models = ["--model", str(folders / "model"), "--draft", str(folders / "draft")]
    return main([*command, *models, "--max-new-tokens", "24", *rest])


@pytest.mark.parametrize("options", [[], ["--temperature", "0.8", "--seed", "3", "--top-p", "0.9"]])
def test_generate_json(folders, capsys, options):
    assert run(folders, "generate", "the bees", "--json", *options) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["identical"] is True
    assert len(result["tokens"]) == 24 and result["prompt"] == "the bees"
    assert result["tokens_per_step"] == pytest.approx(result["statistics"]["tokens_per_step"])
    assert min(result["tokens_per_second"], result["baseline_tokens_per_second"]) > 0
    baseline = "plain sampling" if options else "transformers generate"
    assert result["baseline"] == baseline


def test_generate_streams_the_text(folders, capsys):
    assert run(folders, "generate", "the bees", "--json", "--no-baseline") == 0
    expected = json.loads(capsys.readouterr().out)
    assert "identical" not in expected
    assert run(folders, "generate", "the bees") == 0
    out = capsys.readouterr().out
    assert expected["text"] in out
    assert "tokens per step" in out and "output identical: yes" in out


def test_generate_reads_stdin(folders, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin.read", lambda: "from a pipe", raising=False)
    assert run(folders, "generate", "-", "--json", "--no-baseline") == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "from a pipe"


@pytest.mark.parametrize("batch_size", ["1", "3"])
def test_bench_decode_json(folders, tmp_path, capsys, batch_size):
    prompts = tmp_path / "prompts.jsonl"
    categories = ["code", "chat", "code", "chat", "code"]
    lines = [{"prompt": f"tell {i} of it", "category": c} for i, c in enumerate(categories)]
    prompts.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    arguments = ("--prompts", str(prompts), "--json", "--batch-size", batch_size)
    assert run(folders, "bench decode", *arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert {name: row["prompts"] for name, row in result["categories"].items()} == {
        "code": 3,
        "chat": 2,
    }
    fields = {
        *("prompts", "tokens_per_step", "tokens_per_second", "baseline_tokens_per_second"),
        *("speedup", "identical"),
    }
    for row in (result["total"], *result["categories"].values()):
        assert set(row) == fields
        assert row["identical"] == row["prompts"]
        assert row["speedup"] == pytest.approx(
            row["tokens_per_second"] / row["baseline_tokens_per_second"]
        )


def test_bench_decode_prints_a_table(folders, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert run(folders, "bench decode", "--prompts", str(prompts), "--limit", "1") == 0
    out = capsys.readouterr().out
    assert "tokens/step" in out and "1/1" in out


def test_env(capsys):
    assert main(["env", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["backends"]) == {"cpu", "cuda"}
    assert all(entry["why"] for table in report["backends"].values() for entry in table.values())
    assert main(["env"]) == 0
    assert "linear_topk" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "no/such/model"], "'no/such/model' cannot be loaded"),
        (["--model", "no/such.gguf"], "model must be an existing file, got 'no/such.gguf'"),
        (["--draft", "no/such/draft"], "'no/such/draft' cannot be loaded"),
        (["--draft", "{}/other"], "vocabulary size 64, got a target with vocabulary size 300"),
        (["--draft", "auto"], "none is shipped for"),
        (["--max-new-tokens", "1000"], "context of 256 tokens"),
        (["--temperature", "-1"], "temperature must be from 0.0"),
        (["   "], "prompt must hold some text"),
    ],
)
def test_bad_input_is_one_sentence(folders, capsys, arguments, message):
    arguments = [argument.format(folders) for argument in arguments]
    prompt = [] if arguments[0].isspace() else ["the bees"]
    assert run(folders, "generate", *prompt, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.strip().splitlines()[-1].startswith("dspark: error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "text, message",
    [("", "at least one prompt"), ('{"prompt": "a"}\nnonsense', "line 2 must be a JSON object")],
)
def test_bad_prompt_files(folders, tmp_path, capsys, text, message):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(text)
    assert run(folders, "bench decode", "--prompts", str(prompts)) == 2
    assert message in capsys.readouterr().err
    assert run(folders, "bench decode", "--prompts", str(tmp_path / "none.jsonl")) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_bench_accept(folders, capsys, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"bees {n}", "category": "ab"[n % 2]} for n in range(4)]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    options = ("--prompts", str(prompts), "--limit", "1", "--num-nodes", "8")
    picture = tmp_path / "plot.png"
    assert run(folders, "bench accept", *options, "--json", "--plot", str(picture)) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["prompts"] == 2 and picture.exists()
    assert run(folders, "bench accept", *options) == 0
    assert "tokens per step, by nodes" in capsys.readouterr().out
    assert run(folders, "bench accept", *options, "--draft", "none") == 2
    assert "there is none to measure" in capsys.readouterr().err
