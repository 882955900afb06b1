"""Results of measurements: where they come from, and how they are kept."""

import csv
import subprocess
from datetime import date
from pathlib import Path

import torch

from . import __version__
from .cost import device_name
from .environment import version_of


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows of equal keys, floats to five digits, None as an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def origin(device: str) -> dict:
    """Where and on what a result was measured: the columns that every CSV of results ends with."""
    return {
        "device": device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version_of("transformers"),
        "version": __version__,
        "commit": _commit(),
        "date": date.today().isoformat(),
    }


def _commit() -> str:
    """The checkout's commit, "-dirty" if more than results has changed; empty without one."""

    def git(*arguments):
        root = Path(__file__).parents[1]
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)

    try:
        head = git("rev-parse", "--short", "HEAD")
        changed = git("diff", "--quiet", "HEAD", "--", ".", ":(exclude)benchmarks/results")
    except FileNotFoundError:  # no git here
        return ""
    return head.stdout.strip() + ("-dirty" if head.stdout and changed.returncode else "")
