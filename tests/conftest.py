"""The device under test, and which tests a backend runs."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    import triton_interpreter  # noqa: F401


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where ops run")


def pytest_configure(config):
    config.addinivalue_line("markers", "backend: compares the op as dispatched with its reference")


def pytest_collection_modifyitems(config, items):
    """A reference compared with itself proves nothing: those tests are not part of its run."""
    if os.environ.get("DSPARK_BACKEND") != "reference":
        return
    kept = [item for item in items if item.get_closest_marker("backend") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture
def device(request):
    """The device that tests put their tensors on."""
    return torch.device(request.config.getoption("--device"))
