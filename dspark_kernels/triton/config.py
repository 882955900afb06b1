"""Which tile a kernel uses: a table by (op, dtype class, compute capability) and shape class.

`tiles.py` holds the table; `python -m benchmarks.tune` regenerates it on a GPU.
"""

import functools
from typing import NamedTuple

import torch

from .._library import INTERPRETER
from .tiles import CROSSOVER, TILES

REGISTERS = 65536  # of an SM
# Launch options of small kernels, which have no tile: no product is contracted into a sum, else
# threads that hold the same sum may round it differently. Said in every launch: from Triton 3.10 on
# none is by default, and 3.9 warns of it.
EXACT = {"enable_fp_fusion": False}
DTYPE_CLASS = {torch.float32: "single", torch.float8_e4m3fn: "fp8"}  # the others are "half"


class Device(NamedTuple):
    """What the choice of a tile may depend on."""

    capability: int  # of the table: 80 (also every chip with 99 KB of shared memory), 90 or 100
    sms: int


class Tile(NamedTuple):
    """Block sizes and launch options of a kernel, and how many of its programs an SM holds."""

    blocks: dict[str, int]
    num_warps: int
    num_stages: int
    per_sm: int

    def options(self) -> dict[str, int]:
        """Keyword arguments of the launch; registers are few enough for what an SM holds."""
        options = {
            **self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }  # fmt: skip
        registers = REGISTERS // (32 * self.num_warps * self.per_sm) // 8 * 8  # of a thread
        if self.per_sm > 1 and registers < 256:  # a thread's most anyway
            options["maxnreg"] = registers
        return options


def _key(op, device, dtype):
    """Of both tables."""
    return op, DTYPE_CLASS.get(dtype, "half"), device.capability


@functools.cache
def _cuda_device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    capability = {9: 90, 10: 100}.get(properties.major, 80)
    return Device(capability, properties.multi_processor_count)


def device_of(tensor: torch.Tensor) -> Device:
    """The device class of a tensor; the interpreter pretends to have two SMs."""
    return Device(80, 2) if INTERPRETER else _cuda_device(tensor.get_device())


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up; Triton's own, which kernels may call too, takes the host 5 µs."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The lowest power of 2 that is at least n, for n > 0; see `ceil_div`."""
    return 1 << (n - 1).bit_length()


def crossover(op: str, device: Device, dtype: torch.dtype) -> int:
    """The largest number of rows for which one fused pass over the weight beats plain products."""
    return CROSSOVER[_key(op, device, dtype)]


def tile(op: str, device: Device, dtype: torch.dtype, *sizes: int) -> Tile:
    """The first tile of the table whose size limits hold all of `sizes`, else the last."""
    entries = TILES[_key(op, device, dtype)]
    fitting = (
        tile
        for limits, *tile in entries
        if all(size <= limit for size, limit in zip(sizes, limits, strict=True))
    )
    return Tile(*next(fitting, entries[-1][1:]))
