"""Without the packages of the extras: what works, and what names the extra to install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
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


def test_other_missing_modules_are_not_taken_for_an_extra():
    done = dspark("generate", without=("dspark_kernels.streaming", "safetensors"))
    assert "Traceback" in done.stderr and "safetensors" in done.stderr.splitlines()[-1]


def test_run_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "dspark_kernels", "--version"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("dspark_kernels ")
