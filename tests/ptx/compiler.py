"""Triton's compiler up to PTX, in a process of its own: under AddressSanitizer, which the emulator
needs, it takes twice as long. What it compiles, this process finds in Triton's cache."""

import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import triton.compiler
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource

CHECKOUT = Path(__file__).parents[2]
PACKAGE = "dspark_kernels."


def stop_at_ptx():
    """Let Triton's compiler end with PTX, not with a GPU's own code."""
    make, add_stages = CUDABackend.__init__, CUDABackend.add_stages

    def __init__(self, target):
        make(self, target)
        self.binary_ext = "ptx"

    def without_binary(self, stages, *arguments):
        add_stages(self, stages, *arguments)
        del stages["cubin"]

    CUDABackend.__init__, CUDABackend.add_stages = __init__, without_binary


def install():
    """Compile to PTX from here on, our kernels in a process without sanitizers."""
    stop_at_ptx()
    compile_here, helper = triton.compiler.compile, None

    def compile(source, target=None, options=None, **others):
        nonlocal helper
        if source.fn.__module__.startswith(PACKAGE):
            if helper is None:
                environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
                helper = subprocess.Popen(
                    [sys.executable, "-P", __file__], env=environment,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                )  # fmt: skip
            name = source.fn.__module__, source.fn.__name__
            job = *name, source.signature, source.constants, source.attrs, target, options
            pickle.dump(job, helper.stdin)
            helper.stdin.flush()
            answer = helper.stdout.readline().decode()
            if answer != "\n":
                raise RuntimeError(f"the process that compiles says {answer or 'nothing'!r}")
        return compile_here(source, target=target, options=options, **others)

    triton.compiler.compile = compile


def main():
    """Compile jobs of standard input, and say of each that it is done, or why not."""
    sys.path.insert(0, str(CHECKOUT))
    stop_at_ptx()
    while sys.stdin.buffer.peek(1):
        module, name, *parts, target, options = pickle.load(sys.stdin.buffer)
        try:
            source = ASTSource(getattr(importlib.import_module(module), name), *parts)
            triton.compiler.compile(source, target=target, options=options)
            print(flush=True)
        except Exception as error:
            print(repr(error).replace("\n", " "), flush=True)


if __name__ == "__main__":
    main()
