"""The command line, on a tiny model with a tokenizer of its own."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny import tiny_draft, tiny_model, tiny_tokenizer

import dspark_kernels
from dspark_kernels.cli import main
from dspark_kernels.streaming import StepPrinter

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


def test_chat(folders, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the bees\nand the wasps\n"))
    assert run(folders, "chat", "--system", "tell me about " * 10, "--num-nodes", "8") == 0
    first, second = (
        line for line in capsys.readouterr().out.split("\n") if "tokens per step" in line
    )
    assert ", 0 of " in first and "tokens/s" in first
    assert int(second.split(", ")[2].split(" of ")[0]) > 140


def test_generate_streams_the_text(folders, capsys):
    assert run(folders, "generate", "the bees", "--json", "--no-baseline") == 0
    expected = json.loads(capsys.readouterr().out)
    assert "identical" not in expected
    assert run(folders, "generate", "the bees") == 0
    out = capsys.readouterr().out
    assert expected["text"] in out
    assert "tokens per step" in out and "output identical: yes" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_sentence(folders, capsys):
    assert run(folders, "generate", "the bees", "--device", "cuda") == 2
    assert "device must be one that torch has here" in capsys.readouterr().err


def test_half_a_character_waits_for_its_other_half():
    tokenizer, shown = tiny_tokenizer(VOCAB), io.StringIO()
    printer = StepPrinter(tokenizer, Console(file=shown))
    first, second = tokenizer("é", add_special_tokens=False).input_ids
    for tokens, expected in (([first], ""), ([second], "é"), ([first], "é")):
        printer(0, tokens)
        assert shown.getvalue() == expected
    printer.finish()
    assert shown.getvalue().strip() == "é\ufffd"  # what never became whole is shown as it is


def test_generate_reads_stdin(folders, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin.read", lambda: "from a pipe", raising=False)
    assert run(folders, "generate", "-", "--json", "--no-baseline") == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "from a pipe"


def test_profile(folders, capsys):
    models = ["--model", str(folders / "model"), "--draft", str(folders / "draft")]
    assert main(["profile", *models, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert len(table["pass_seconds"]) == len(table["contexts"])
    assert json.loads(Path(table["path"]).read_text())["key"] == table["key"]
    assert main(["profile", *models]) == 0
    assert "a target pass, ms" in capsys.readouterr().out
    assert main(["profile", *models[:2], "--draft", "none"]) == 2
    assert "draft must be given" in capsys.readouterr().err


def test_env(capsys):
    assert main(["env", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["backends"]) == {"cpu", "cuda"}
    assert all(entry["why"] for table in report["backends"].values() for entry in table.values())
    assert main(["env"]) == 0
    assert "linear_topk" in capsys.readouterr().out


NO_MODEL = "--model", "no/such"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "no/such/model"], "there is no 'no/such/model'"),
        (["--model", "no/such.gguf"], "model must be an existing file, got 'no/such.gguf'"),
        (["--draft", "no/such/draft"], "there is no 'no/such/draft'"),
        (["--draft", "{}/other"], "vocabulary size 64, got a target with vocabulary size 300"),
        (["--draft", "auto"], "none is shipped for"),
        (["--max-new-tokens", "1000"], "context of 256 tokens"),
        (["--device", "moon"], "device must be one that torch has here"),
        # options are looked at before a model is
        ([*NO_MODEL, "--temperature", "-1"], "temperature must be a number >= 0, got -1.0"),
        ([*NO_MODEL, "--min-score", "3"], "min_score must be a number from 0 to 1, got 3.0"),
        (["   "], "prompt must hold some text"),
        (["\udcff"], "prompt must be text in UTF-8, got other bytes"),
    ],
)
def test_bad_input_is_one_sentence(folders, capsys, arguments, message):
    arguments = [argument.format(folders) for argument in arguments]
    prompt = ["the bees"] if arguments[0].startswith("-") else []
    assert run(folders, "generate", *prompt, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.strip().splitlines()[-1].startswith("dspark: error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_train(folders, capsys, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    lines = [{"prompt": f"bees {n}", "temperature": 0.8 * (n > 3)} for n in range(6)]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["train", "--model", str(folders / "model"), "--prompts", str(prompts)]
    arguments += ["--out", str(out), "--device", "cpu", "--max-new-tokens", "8", "--rank", "4"]
    arguments += ["--num-candidates", "9", "--segments", "2", "--feature-layers", "1", "2"]
    arguments += ["--learning-rate", "1e-3"]
    for wrong, message in (
        (["--steps", "-3"], "steps must be a whole number of at least 1, got -3"),
        (["--minutes", "-1"], "minutes must be a number of at least 0, got -1.0"),
        (
            ["--device", "moon"],
            "device must be one that torch has here, like 'cpu' or 'cuda', got 'moon'",
        ),
        (["--out", str(prompts)], "out must be a folder, got the file"),
    ):
        assert main([*arguments, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()
    assert main([*arguments, "--steps", "2"]) == 0
    assert "draft for model: 5 heads, GLM rank 4, 9 candidates" in capsys.readouterr().out
    report = json.loads((out / "training.json").read_text())
    assert report["training"]["learning_rate"] == 1e-3 and report["training"]["steps"] == 2
    assert main([*arguments, "--steps", "1"]) == 2
    assert "use another folder for a shorter training" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "more than before train a finished draft on; default: 3400" in shown


@pytest.mark.parametrize(
    "command, argument, least",
    [
        ("bench decode", "--limit", 1), ("bench decode", "--batch-size", 1),
        ("bench decode", "--max-new-tokens", 2), ("bench accept", "--limit", 1),
        ("bench accept", "--batch-size", 1), ("bench accept", "--max-new-tokens", 2),
        ("generate", "--max-new-tokens", 1), ("generate", "--top-k", 0),
    ],
)  # fmt: skip
def test_counts_are_whole_numbers_from_the_least(capsys, command, argument, least):
    prompts = ["--prompts", "none.jsonl"] if command == "bench accept" else []
    for value in (str(least - 1), "-2", "1.5", "many"):
        with pytest.raises(SystemExit) as end:
            main([*command.split(), *prompts, f"{argument}={value}"])
        assert end.value.code == 2
        message = f"argument {argument}: must be a whole number from {least}, got {value!r}"
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("value", ["abc", "0", "257", "1.5"])
def test_number_of_nodes(capsys, value):
    for command, expected in (
        (["generate"], "'auto' or a whole number from 1 to 256"),
        (["bench", "accept", "--prompts", "none.jsonl"], "a whole number from 2 to 256"),
    ):
        with pytest.raises(SystemExit):
            main([*command, "--num-nodes", value])
        assert f"--num-nodes: must be {expected}, got '{value}'" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"dspark_kernels {dspark_kernels.__version__}\n"


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
    options = ("--model", "no/such", *options, "--plot", str(tmp_path / "none" / "plot.png"))
    assert run(folders, "bench accept", *options) == 2  # before the model is loaded
    assert "plot must be a picture file" in capsys.readouterr().err
