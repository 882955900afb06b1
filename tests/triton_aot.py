"""The launches of an op on meta tensors, compiled as on a GPU, and the code they become."""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from benchmarks import tune
from dspark_kernels.triton import config

SMS = {80: 108, 90: 132, 100: 148}
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Code(NamedTuple):
    """What the compiler made of a launch."""

    kernel: str
    registers: int
    stack: int  # bytes; not 0 when registers were spilled
    shared: int
    instructions: dict[str, int]


def launches(monkeypatch, capability, call):
    """The compiled kernels that call() launches with meta tensors, on a GPU of this capability."""
    kernels, device = [], config.Device(capability, SMS[capability])

    def launch(*args, **options):
        assert "enable_fp_fusion" in options, args[0]  # its default is not that of every Triton
        kernels.append(run(*args, **options))

    with monkeypatch.context() as patch:
        patch.setattr(config, "INTERPRETER", False)
        tune.compile_only(GPUTarget("cuda", capability, 32), device, patch.setattr)
        run = JITFunction.run
        patch.setattr(JITFunction, "run", launch)
        call()
    return kernels


def constant(kernel, name):
    """The value of a kernel's constexpr; None if it has none of that name."""
    names = kernel.src.fn.arg_names
    return kernel.src.constants[names.index(name),] if name in names else None


def code_of(kernel) -> Code:
    """Registers, stack, shared memory and instructions of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(kernel.asm["cubin"])
    usage = subprocess.run(
        [TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True
    ).stdout
    os.unlink(file.name)
    ptx = kernel.asm["ptx"]
    patterns = {
        "mma": r"\bmma\.sync", "wgmma": r"wgmma\.mma_async", "tcgen05": r"tcgen05\.mma",
        "cp.async 16": r"cp\.async\.cg\.shared\.global.*0x10",
        "ld 16": r"ld\.global.*v(4\.b32|2\.b64)",
    }  # fmt: skip
    return Code(
        kernel.name,
        int(re.search(r"REG:(\d+)", usage)[1]),
        int(re.search(r"STACK:(\d+)", usage)[1]),
        kernel.metadata.shared,
        {kind: len(re.findall(pattern, ptx)) for kind, pattern in patterns.items()},
    )
