"""Where results come from: the commit of the checkout that they were measured in."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dspark_kernels import results


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Somebody's checkout with one commit, and our package copied to two places in it."""
    if shutil.which("git") is None:
        pytest.skip("git is not here")
    monkeypatch.delenv("DSPARK_COMMIT", raising=False)
    for folder in ("dspark_kernels", "venv/dspark_kernels"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "results.py").touch()
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def commit(path: Path, monkeypatch):
    monkeypatch.setattr(results, "__file__", str(path))
    return results.origin("cpu")["commit"]


def test_commit(checkout, monkeypatch):
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True
    ).stdout.strip()
    ours = checkout / "dspark_kernels" / "results.py"
    assert commit(ours, monkeypatch) == head
    ours.write_text("changed")
    assert commit(ours, monkeypatch) == f"{head}-dirty"


def test_an_installed_package_has_no_commit(checkout, monkeypatch):
    """Not even below the checkout of something else."""
    assert commit(checkout / "venv" / "dspark_kernels" / "results.py", monkeypatch) == ""
    monkeypatch.setenv("DSPARK_COMMIT", "named")
    assert commit(checkout / "venv" / "dspark_kernels" / "results.py", monkeypatch) == "named"
