"""Ahead-of-time compilation: the launches of an op on meta tensors, and the code they become."""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from dspark_kernels.triton import config

SMS = {80: 108, 90: 132, 100: 148}
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32",
    torch.int64: "i64", torch.float8_e4m3fn: "fp8e4nv",
}  # fmt: skip
TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Launch(NamedTuple):
    """One launch of a kernel: what to compile, and with which options."""

    source: ASTSource
    options: dict[str, int]


class Code(NamedTuple):
    """What the compiler made of a launch."""

    kernel: str
    registers: int
    stack: int  # bytes; not 0 when registers were spilled
    shared: int
    instructions: dict[str, int]


def _launch(function, args, kwargs):
    """The launch of function[grid](*args, **kwargs), specialised as Triton would."""
    options = {key: kwargs.pop(key) for key in ("num_warps", "num_stages") if key in kwargs}
    values = dict(zip(function.arg_names, args, strict=False)) | kwargs
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(function.params):
        name, value = parameter.name, values[parameter.name]
        specialised = not parameter.do_not_specialize
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            attributes[index,] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or (specialised and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if specialised and value % 16 == 0:
                attributes[index,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    return Launch(ASTSource(function, signature, constants, attributes), options)


def record(monkeypatch, capability, call):
    """The launches that call() makes with meta tensors, as on a GPU of this capability."""
    launches = []

    def run(function, *args, grid, warmup, **kwargs):
        launches.append(_launch(function, args, kwargs))

    with monkeypatch.context() as patch:
        patch.setattr(config, "INTERPRETER", False)
        patch.setattr(config, "_cuda_device", lambda _: config.Device(capability, SMS[capability]))
        patch.setattr(JITFunction, "run", run)
        call()
    return launches


def compile_launch(launch, capability) -> Code:
    """Compile, and read registers, stack, shared memory and instructions off the code."""
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(launch.source, target=target, options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(compiled.asm["cubin"])
    usage = subprocess.run(
        [TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True
    ).stdout
    os.unlink(file.name)
    ptx = compiled.asm["ptx"]
    patterns = {
        "mma": r"\bmma\.sync", "wgmma": r"wgmma\.mma_async", "tcgen05": r"tcgen05\.mma",
        "cp.async 16": r"cp\.async\.cg\.shared\.global.*0x10",
        "ld 16": r"ld\.global.*v(4\.b32|2\.b64)",
    }  # fmt: skip
    return Code(
        launch.source.name,
        int(re.search(r"REG:(\d+)", usage)[1]),
        int(re.search(r"STACK:(\d+)", usage)[1]),
        compiled.metadata.shared,
        {kind: len(re.findall(pattern, ptx)) for kind, pattern in patterns.items()},
    )
