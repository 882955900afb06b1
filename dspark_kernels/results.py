"""Results of measurements: where they come from, and how they are kept."""

import csv
import os
import subprocess
import tempfile
from datetime import date
from pathlib import Path

import torch

from . import __version__
from .environment import device_name, version_of

TEXT = ("shape", "commit", "version")  # columns that may look like numbers


def check_folder(argument: str, path: str | Path) -> None:
    """Make the folder if there is none; ValueError naming the argument if it cannot be written."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(
            f"{argument} must be a folder that can be written, got {path}: {error.strerror}"
        ) from error


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows of equal keys, floats to five digits, None as an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def read_csv(path: Path) -> list[dict]:
    """The rows of a CSV, numbers as floats; none if there is no such file."""
    if not path.exists():
        return []
    with path.open() as file:
        return [
            {name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(file)
        ]


def _value(name: str, text: str):
    if name in TEXT:
        return text
    try:
        return float(text)
    except ValueError:
        return text


def origin(device: str) -> dict:
    """Where and on what a result was measured: the columns that every CSV of results ends with."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version_of("transformers"),
        "version": __version__,
        "commit": _commit(),
        "date": date.today().isoformat(),
    }


def _commit() -> str:
    """The checkout's commit, "-dirty" if more than results has changed; empty without one.

    DSPARK_COMMIT names it where the sources were copied without their history.
    """
    if named := os.environ.get("DSPARK_COMMIT"):
        return named
    root = Path(__file__).parents[1]

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)

    try:
        top = git("rev-parse", "--show-toplevel").stdout.strip()
        if not top or Path(top).resolve() != root.resolve():  # installed, if below another checkout
            return ""
        head = git("rev-parse", "--short", "HEAD")
        changed = git("diff", "--quiet", "HEAD", "--", ".", ":(exclude)benchmarks/results")
    except FileNotFoundError:  # no git here
        return ""
    return head.stdout.strip() + ("-dirty" if head.stdout and changed.returncode else "")
