"""Without the packages of the extras: what works, and what names the extra to install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dspark_kernels import cli

ROOT = Path(__file__).parent.parent
WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        absent = name in {packages} or name.startswith(tuple(f"{{p}}." for p in {packages}))
        return None if absent else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
"""
EXTRAS = ("transformers", "tokenizers", "gguf", "accelerate", "matplotlib")


def python(code, *arguments, without=EXTRAS):
    """Run code in a fresh process that cannot import some packages."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(packages=without) + code, *arguments],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def dspark(*arguments, without=EXTRAS):
    code = "from dspark_kernels.cli import main; sys.exit(main(sys.argv[1:]))"
    return python(code, *arguments, without=without)


@pytest.mark.parametrize("command", ["--help", "generate --help", "bench decode --help", "env"])
def test_what_needs_no_extra(command):
    done = dspark(*command.split())
    assert done.returncode == 0, done.stderr
    assert "usage: dspark" in done.stdout or "linear_topk" in done.stdout


def test_imports():
    code = """
from dspark_kernels import *
import dspark_kernels
assert linear_topk is dspark_kernels.linear_topk and "SpeculativeDecoder" in dir(dspark_kernels)
from dspark_kernels import SpeculativeDecoder
"""
    done = python(code)
    last = done.stderr.splitlines()[-1]
    assert last.endswith("SpeculativeDecoder needs transformers: pip install 'dspark_kernels[hf]'")
    assert python(code, without=("none",)).returncode == 0


@pytest.mark.parametrize(
    "command, without, package, extra",
    [
        ("generate", EXTRAS, "transformers", "hf"),
        ("profile", EXTRAS, "transformers", "hf"),
        ("bench decode", EXTRAS, "transformers", "hf"),
        ("bench accept --prompts none --plot plot.png", ("matplotlib",), "matplotlib", "bench"),
    ],
)
def test_what_needs_an_extra_names_it(command, without, package, extra):
    done = dspark(*command.split(), without=without)
    assert done.returncode == 2
    message = f"this command needs the package {package}: pip install 'dspark_kernels[{extra}]'"
    assert done.stderr.startswith(f"dspark: error: {message}")
    assert len(done.stderr.splitlines()) == 1


def test_what_transformers_says_of_a_missing_package(monkeypatch, capsys):
    def generate(arguments):
        raise ImportError("Please install torch and gguf>=0.10.0 to load a GGUF checkpoint.")

    monkeypatch.setattr(cli, "_generate", generate)
    assert cli.main(["generate"]) == 2
    assert "needs the package gguf: pip install 'dspark_kernels[hf]'" in capsys.readouterr().err


def test_other_missing_modules_are_not_taken_for_an_extra():
    done = dspark("generate", without=("safetensors",))
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'safetensors'"


def test_run_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "dspark_kernels", "--version"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("dspark_kernels ")
