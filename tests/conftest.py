"""The device under test, and which tests a backend runs."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may need a network, or wait for one

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    import triton_interpreter  # noqa: F401


def pytest_addoption(parser):
    parser.addoption(
        "--device", default="cpu", choices=("cpu", "cuda", "emulated", "ptx"),
        help="where ops run; emulated: the CPU, in the place of a GPU (emulated/cuda.py); "
        "ptx: there too, the GPU's kernels as compiled (run_ptx.sh)",
    )  # fmt: skip
    parser.addoption(
        "--capability", type=int, default=90, help="of the GPU in whose place --device ptx is"
    )
    parser.addoption(
        "--package", type=Path, help="the folder whose dspark_kernels is tested, such as a build's"
    )


MARKERS = {
    "backend": "compares the op as dispatched with its reference",
    "cuda": "needs a CUDA device, if only an emulated one",
    "gpu": "needs a GPU: --device cuda",
    "compiled": "needs the kernels of a GPU: --device cuda or ptx",
    "emulated": "tests the emulated device",
    "nvcc": "needs nvcc",
    "ptx": "needs the emulator of PTX",
}


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    """A lost GPU ends this worker, if it is one: another starts, and no later test fails for it."""
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    if parallel and report.when == "call" and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)


def why_not(marker, config):
    """Why the tests of a marker cannot run here, or None."""
    if marker == "backend" and os.environ.get("DSPARK_BACKEND") == "reference":
        return "a reference compared with itself proves nothing"
    if marker == "ptx" and config.getoption("--device") != "ptx":
        return "they need the emulator of PTX, tests/run_ptx.sh"
    if marker == "cuda" and config.getoption("--device") in ("cpu", "ptx"):
        return "they need a CUDA device, --device cuda or emulated"
    if marker == "compiled" and config.getoption("--device") not in ("cuda", "ptx"):
        return "they need the kernels of a GPU, --device cuda or ptx"
    if marker == "compiled" and config.getoption("--device") == "ptx" and not shutil.which("nvcc"):
        return "they need the CUDA kernels, and there is no nvcc on the PATH"
    if marker == "gpu" and config.getoption("--device") != "cuda":
        return "they need a GPU, --device cuda"
    if marker == "emulated" and config.getoption("--device") != "emulated":
        return "they test the device of --device emulated"
    if marker == "nvcc" and shutil.which("nvcc") is None:
        return "they need nvcc on the PATH"
    return None


def pytest_configure(config):
    if folder := config.getoption("--package"):
        sys.path.insert(0, str(folder))
        from dspark_kernels import _library

        if not _library.NATIVE_PATH.is_relative_to(folder.resolve()):
            raise pytest.UsageError(f"{_library.NATIVE_PATH} was loaded, not one below {folder}")
    for marker, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{marker}: {meaning}")
    config.left_out = {}


def pytest_collection_modifyitems(config, items):
    """Tests that cannot run here are no part of the run; the summary says why, see below."""
    reasons = {marker: reason for marker in MARKERS if (reason := why_not(marker, config))}
    left_out = {
        marker: [item for item in items if item.get_closest_marker(marker)] for marker in reasons
    }
    config.left_out = {marker: len(some) for marker, some in left_out.items() if some}
    gone = {item for some in left_out.values() for item in some}
    config.hook.pytest_deselected(items=[item for item in items if item in gone])
    items[:] = [item for item in items if item not in gone]


def pytest_sessionfinish(session):
    if output := getattr(session.config, "workeroutput", None):
        output["left_out"] = session.config.left_out


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Every worker collects the same tests, and leaves out the same."""
    node.config.left_out |= getattr(node, "workeroutput", {}).get("left_out", {})


TABLES = {
    "CUDA kernels": ("kernel", "arch", "registers", "shared memory", "stack", "spills"),
    "Triton kernels": (
        "kernel", "sizes", "arch", "registers", "shared memory", "stack", "instructions"
    ),
}  # fmt: skip


@pytest.fixture
def tabulate(record_property):
    """Called with the name of a table in the summary and a row of it."""
    return lambda name, *cells: record_property(name, [str(cell) for cell in cells])


@pytest.fixture
def press_ctrl_c():
    """Called to press Ctrl-C, which means something even where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    now = signal.signal(signal.SIGINT, before)
    assert now is signal.default_int_handler, "who held Ctrl-C back did not let it go"


def pytest_terminal_summary(terminalreporter, config):
    for marker, count in config.left_out.items():
        terminalreporter.write_line(f"{count} tests left out: {why_not(marker, config)}")
    reports = [report for some in terminalreporter.stats.values() for report in some]
    called = [report for report in reports if getattr(report, "when", None) == "call"]
    recorded = [pair for report in called for pair in report.user_properties]
    for name, header in TABLES.items():
        rows = sorted(tuple(row) for table, row in recorded if table == name)
        if not rows:
            continue
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        terminalreporter.section(name)
        for row in (header, *rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            terminalreporter.write_line("  ".join(cells).rstrip())


@pytest.fixture(scope="session", autouse=True)
def device(request, tmp_path_factory):
    """The device that tests put their tensors on; an emulated one runs under every test."""
    name = request.config.getoption("--device")
    if name == "ptx":
        from ptx import device

        device.install(request.config.getoption("--capability"))
        yield torch.device("cpu")
        return
    if name != "emulated":
        yield torch.device(name)
        return
    from emulated import cuda

    cuda.install(tmp_path_factory.mktemp("emulated"))
    with cuda.device, pytest.MonkeyPatch.context() as patch:
        # a parameter there is a tensor of the device's own class
        patch.setattr("dspark_kernels.integrations.kinds.is_parameter", lambda tensor: True)
        patch.setattr("dspark_kernels.graph.captures_steps", lambda: True)  # the CPU's kernels are
        yield cuda.DEVICE


@pytest.fixture(scope="session")
def fitting(request):
    """Called with a size for emulators and one for processors; returns the one for the device."""
    emulated = INTERPRETED or request.config.getoption("--device") == "ptx"
    return lambda small, large: small if emulated else large


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Tests keep what they measure to themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
