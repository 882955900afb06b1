"""The CPU in the place of a GPU: each op runs the PTX its kernels are compiled to, see run_ptx.sh.

Tensors stay on the CPU. Calls of our ops go to what serves them on CUDA: nvcc's kernels through
their own launchers, whose CUDA runtime is the emulator; Triton's through a driver of ours.
"""

import ctypes
import itertools
import os
import subprocess
import warnings
from functools import partial

import torch
from torch._C import DispatchKey
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton_aot import TOOL

from dspark_kernels import _library
from dspark_kernels.triton import config

from . import compiler

SHARED_MEMORY = 227 << 10
SMS = 4
CTYPES = {
    "i1": ctypes.c_int8, "i8": ctypes.c_int8, "i16": ctypes.c_int16, "i32": ctypes.c_int32,
    "i64": ctypes.c_int64, "fp32": ctypes.c_float, "fp64": ctypes.c_double,
}  # fmt: skip

_emulator = ctypes.CDLL("libtorch_cuda.so")  # the one that was preloaded
_emulator.ptx_load.restype = _emulator.ptx_launch.restype = ctypes.c_char_p
_emulator.ptx_launches.restype = ctypes.c_int64
_overrides = torch.library.Library("dspark", "IMPL")
_names = itertools.count()


def _check(error):
    if error is not None:
        raise RuntimeError(error.decode())


def load(text: str) -> None:
    """Add the functions of a PTX module."""
    _check(_emulator.ptx_load(text.encode()))


def launch(name, grid, threads, dynamic_bytes, arguments) -> None:
    """Run a function; tensors among its arguments stand for their addresses."""
    values = [
        ctypes.c_void_p(value.data_ptr()) if isinstance(value, torch.Tensor) else value
        for value in arguments
    ]
    addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    blocks, sizes = (ctypes.c_int64 * 3)(*grid), map(ctypes.c_int64, (threads, dynamic_bytes))
    _check(_emulator.ptx_launch(name.encode(), blocks, *sizes, addresses))


def clock(file: str) -> None:
    """Append to a file what clocks say of every block that runs, see clock.h; "": no more."""
    _emulator.ptx_clock(file.encode())


def launches(part: str) -> int:
    """How many functions with this in their name have run."""
    return _emulator.ptx_launches(part.encode())


class _Launcher:
    """For Triton's CudaLauncher."""

    def __init__(self, source, metadata):
        self.kinds = list(source.signature.values())
        self.threads, self.shared = 32 * metadata.num_warps, metadata.shared
        assert metadata.global_scratch_size == metadata.profile_scratch_size == 0

    def __call__(
        self, x, y, z, stream, function, packed, launch_metadata, enter, leave, *arguments
    ):
        values = [
            argument if kind[0] == "*" else CTYPES[kind](argument)
            for kind, argument in zip(self.kinds, arguments, strict=True)
            if kind != "constexpr"
        ]
        scratch = [ctypes.c_void_p()] * 2  # of the grid and of a profiler
        if x * y * z > 0:  # as the real one does
            launch(function, (x, y, z), self.threads, self.shared, values + scratch)


class _Driver:
    """For Triton's CudaDriver, of a GPU with a compute capability."""

    launcher_cls = _Launcher

    def __init__(self, capability):
        self.capability = capability
        self.utils = self

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_device_properties(self, device):
        return {"max_shared_mem": SHARED_MEMORY, "multiprocessor_count": SMS}

    def load_binary(self, name, kernel, shared, device):
        function = f"{name}_{next(_names)}"  # a kernel has many specializations, of one name
        load(kernel.decode().replace(f".entry {name}(", f".entry {function}("))
        return None, function, 0, 0, 1024  # registers, spills, threads at most


def _on_the_cpu(op):
    function = getattr(torch.ops.dspark, op).default
    with warnings.catch_warnings(action="ignore"):  # that the CPU has kernels of its own
        _overrides.impl(op, partial(function._op_dk, DispatchKey.CUDA), "CPU", allow_override=True)


def install(capability: int) -> None:
    """Let our ops run their PTX; for the rest of the process."""
    clock(os.environ.get("PTX_CLOCK", ""))
    compiler.install()
    driver._active = _Driver(capability)
    tiles = max(known for known in (80, 90, 100) if known <= capability)
    config._cuda_device = lambda index: config.Device(tiles, SMS)
    for op in _library.TRITON_OPS:
        _on_the_cpu(op)
    if not _library.NATIVE_CUDA_ARCHS:
        return
    dump = [TOOL, "-ptx", _library.NATIVE_PATH]
    text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    if ".entry" not in text:
        raise RuntimeError("no PTX in the library: DSPARK_CUDA_ARCHS must name one such as 90")
    load(text)
    for op in _library.NATIVE_CUDA_OPS:
        _on_the_cpu(op)
