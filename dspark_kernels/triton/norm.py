"""RMS norm: what kernels share of it, and rows normalized in a launch of its own.

Rows are normalized where they are written. Every program of a product reads all of x: normalizing
there would put arithmetic between the load and the tensor core.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .config import EXACT, next_power_of_2


@triton.jit
def rms_factor(squares, eps, width):
    """1 / sqrt(mean + eps), given sums of squares of `width` numbers."""
    return 1.0 / tl.sqrt(squares / width + eps)


@triton.jit
def normalized(x, weight_ptr, column, mask, eps, width):
    """x / rms(x) · weight, float32; x: a row of `width` numbers, zeros where the mask is not."""
    weight = tl.load(weight_ptr + column, mask, other=0.0).to(tl.float32)
    return x * rms_factor(tl.sum(x * x, axis=0), eps, width) * weight


@triton.jit
def _rms_norm_kernel(x_ptr, weight_ptr, out_ptr, eps, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """out[row] = x[row] / rms(x[row]) · weight."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    x = tl.load(x_ptr + row * D + column, column < D, other=0.0).to(tl.float32)
    out = normalized(x, weight_ptr, column, column < D, eps, D)
    tl.store(out_ptr + row * D + column, out.to(out_ptr.dtype.element_ty), column < D)


class Norm(NamedTuple):
    """The norm of rows [M, D]: its weight [D], and where it is to go [M, D]."""

    weight: torch.Tensor
    eps: float
    out: torch.Tensor


def row_options(width: int) -> dict:
    """Launch options of a program which holds a row of so many numbers."""
    return {"num_warps": min(16, max(4, next_power_of_2(width) // 512)), **EXACT}


def rms_norm(x: torch.Tensor, norm: Norm) -> None:
    """Norm the rows of x [M, D], M > 0; all tensors contiguous."""
    rows, width = x.shape
    block = next_power_of_2(width)
    _rms_norm_kernel[rows,](
        x, norm.weight, norm.out, norm.eps, D=width, BLOCK_D=block, **row_options(width)
    )
