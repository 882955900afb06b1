"""What nvcc makes of the CUDA kernels: registers, spills, shared memory; what the library holds."""

import ctypes
import os
import re
import subprocess
from pathlib import Path

import pytest

from dspark_kernels import _library

ROOT = Path(__file__).parent.parent
ARCHS = "80;90a;100"  # unless DSPARK_CUDA_ARCHS asks for others
BUILT = ROOT / "build/native/csrc/cuda"  # see setup.py
STATIC_SHARED_LIMIT = 48 << 10
REPORT = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def kernel_name(symbol):
    """accept_tree's `compact_kernel<16, true>` from a mangled symbol."""
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    return re.sub(r"^void |dspark::|\(anonymous namespace\)::|\(.*", "", name.strip())


def resources(report):
    """(kernel, arch, registers, static shared memory, stack, spills) of each kernel; bytes."""
    rows = []
    for found in REPORT.finditer(report):
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        spills = int(found["stores"]) + int(found["loads"])
        rows.append(
            (kernel_name(found["symbol"]), found["arch"], int(found["registers"]),
             int(shared[1]) if shared else 0, int(found["stack"]), spills)
        )  # fmt: skip
    return rows


def wanted_archs():
    """What DSPARK_CUDA_ARCHS asked the build for, None where it was left to setup.py."""
    asked = os.environ.get("DSPARK_CUDA_ARCHS")
    return None if asked is None else asked.replace(",", ";")


@pytest.mark.nvcc
@pytest.mark.parametrize("op", _library.NATIVE_CUDA_OPS)
def test_resources(op, tabulate):
    """Of the library under test, as ptxas reported them when it was built."""
    if wanted_archs() == "":
        pytest.skip("the library was built without CUDA kernels, as DSPARK_CUDA_ARCHS asks")
    rows = resources((BUILT / f"{op}.cu.o.resources").read_text())
    archs = wanted_archs() or ARCHS
    assert archs == _library.NATIVE_CUDA_ARCHS
    assert {arch for _, arch, *_ in rows} == {f"sm_{arch}" for arch in archs.split(";")}
    for row in rows:
        tabulate("CUDA kernels", *row)
    for kernel, arch, _, shared, stack, spills in rows:
        assert stack == 0 and spills == 0, f"{kernel} on {arch} uses local memory"
        assert shared <= STATIC_SHARED_LIMIT, f"{kernel} on {arch} has too much shared memory"


@pytest.mark.nvcc
@pytest.mark.backend
def test_the_library_has_the_kernels():
    archs = wanted_archs()
    assert archs is None or archs == _library.NATIVE_CUDA_ARCHS
    if archs == "":
        return
    assert _library.NATIVE_CUDA_ARCHS, "nvcc is here, but the library was built without it"
    for op in _library.NATIVE_CUDA_OPS:
        assert _library.backend_of(op, "cuda")[0] == "native"


@pytest.mark.backend
def test_the_library_needs_no_cuda():
    """It loads with a torch that has no CUDA: nothing of CUDA is linked dynamically."""
    library = str(_library.NATIVE_PATH)
    needed = subprocess.run(
        ["readelf", "--dynamic", library], capture_output=True, text=True, check=True
    ).stdout
    assert "libtorch_cpu" in needed
    assert "cuda" not in needed.replace(library, "")
    ctypes.CDLL(library)
