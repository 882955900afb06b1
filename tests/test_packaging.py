"""What a source distribution holds, and what a build does when a file does not compile."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dspark_kernels

ROOT = Path(__file__).parent.parent


def files(*folders):
    """The files below some folders of the checkout, as paths from its root."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in found}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The files of a source distribution: what egg_info lists is what sdist packs."""
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(next(folder.glob("*.egg-info/SOURCES.txt")).read_text().splitlines())


def test_a_source_distribution_holds_all_native_sources(sources):
    assert {name for name in sources if name.startswith("csrc/")} == files("csrc")
    assert any(name.endswith(".cuh") for name in sources)


def test_a_source_distribution_holds_the_package_and_no_part_of_the_tests(sources):
    ours = {name for name in files("dspark_kernels") if not name.endswith((".pyc", ".so"))}
    assert {name for name in sources if name.startswith("dspark_kernels/")} == ours
    assert sources >= {"setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"}
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in sources)


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == dspark_kernels.__version__


COMPILER = """#!/bin/sh
# slow.cpp takes a while, bad.cpp fails at once, the others say that they were started
for argument do
    case $argument in
        */slow.cpp) sleep 2 ;;
        */bad.cpp) echo "bad.cpp: no such thing" >&2; exit 1 ;;
        */other*.cpp) echo started >> others ;;
    esac
done
"""


def test_a_file_that_does_not_compile_ends_the_build(tmp_path):
    shutil.copy(ROOT / "setup.py", tmp_path)
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    others = [f"slower/other{number}.cpp" for number in range(20)]
    for name in ("a/slow.cpp", "b/bad.cpp", *others):
        path = tmp_path / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--parallel", "2"],
        cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": "/usr/bin:/bin", "CXX": str(compiler)},
    )  # fmt: skip
    assert done.returncode != 0
    assert "bad.cpp: no such thing" in done.stderr
    assert "csrc/b/bad.cpp does not compile" in done.stderr.splitlines()[-1]
    log = tmp_path / "others"
    assert not log.exists() or len(log.read_text().splitlines()) < len(others) // 2
