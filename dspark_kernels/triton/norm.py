"""RMS norm: the factor that kernels share, and rows normalized once for all that read them.

Every program of a product reads all of x. Normalizing there would put arithmetic between the load
and the tensor core, and unscaled rows do not fit float16; a launch of its own costs less.
"""

import torch
import triton
import triton.language as tl

from .config import EXACT, next_power_of_2


@triton.jit
def rms_factor(squares, eps, WIDTH: tl.constexpr):
    """1 / sqrt(mean + eps), given sums of squares of `WIDTH` numbers."""
    return 1.0 / tl.sqrt(squares / WIDTH + eps)


@triton.jit
def _rms_norm_kernel(
    x_ptr, weight_ptr, out_ptr, x_stride, eps, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """out[row] = x[row] / rms(x[row]) · weight."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    x = tl.load(x_ptr + row * x_stride + column, column < D, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, column < D, other=0.0).to(tl.float32)
    out = x * rms_factor(tl.sum(x * x, axis=0), eps, D) * weight
    tl.store(out_ptr + row * D + column, out.to(out_ptr.dtype.element_ty), column < D)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Rows of x [M, D], M > 0, with adjacent elements, normalized; weight [D] contiguous."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, width = x.shape
    block = next_power_of_2(width)
    _rms_norm_kernel[rows,](
        x, weight, out, x.stride(0), eps, D=width, BLOCK_D=block,
        num_warps=min(16, max(4, block // 512)), **EXACT,
    )  # fmt: skip
    return out
