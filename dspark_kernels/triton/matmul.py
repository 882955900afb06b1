"""The product which the weight-streaming kernels share: weight rows times few activations."""

import torch
import triton
import triton.language as tl

from .config import ceil_div


@triton.jit
def weight_columns(ptrs, d, mask, column, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The columns from d on of rows of a weight, [BLOCK_V, BLOCK_D], zeros outside."""
    if D % BLOCK_D == 0:
        return tl.load(ptrs + d, mask[:, None], other=0.0)
    return tl.load(ptrs + d, mask[:, None] & (column < D - d)[None, :], other=0.0)


@triton.jit
def x_columns(ptrs, d, mask, column, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The columns from d on of rows of x, transposed: [BLOCK_D, BLOCK_M], zeros outside."""
    if D % BLOCK_D == 0:
        return tl.load(ptrs + d, mask[None, :], other=0.0)
    return tl.load(ptrs + d, (column < D - d)[:, None] & mask[None, :], other=0.0)


@triton.jit
def weight_times_rows(
    weight_ptr, up_ptr, weight_stride, weight_rows, weight_mask, x_ptr, x_stride, x_rows, x_mask,
    first, last, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """weight[weight_rows] · x[x_rows]ᵀ, float32 [BLOCK_V, BLOCK_M]; zeros where a mask is false.

    The sum goes over the columns from first to last, multiples of BLOCK_D except where last is D.
    With `up_ptr`, a second weight, the products of both: a tile of x is then read once for two.

    The weight is the left operand: its many rows fill the 64 rows of a wgmma, the few rows of x its
    narrow side.
    """
    column = tl.arange(0, BLOCK_D)
    offsets = weight_rows[:, None] * weight_stride + column[None, :]
    x_ptrs = x_ptr + x_rows[None, :] * x_stride + column[:, None]
    acc = tl.zeros((weight_rows.shape[0], x_rows.shape[0]), tl.float32)
    if up_ptr is not None:
        up = tl.zeros((weight_rows.shape[0], x_rows.shape[0]), tl.float32)
    for d in range(first, last, BLOCK_D):
        w = weight_columns(weight_ptr + offsets, d, weight_mask, column, D, BLOCK_D)
        x = x_columns(x_ptrs, d, x_mask, column, D, BLOCK_D)
        acc = tl.dot(w, x, acc, input_precision="ieee")
        if up_ptr is not None:
            w = weight_columns(up_ptr + offsets, d, weight_mask, column, D, BLOCK_D)
            up = tl.dot(w, x, up, input_precision="ieee")
    if up_ptr is not None:
        return acc, up
    else:  # after the block it would be a second type to return
        return acc


def balanced_tiles(rows: int, block: int, programs: int) -> tuple[int, int]:
    """Programs to launch (at most `programs`) and rows per tile (at most `block`): equal shares.

    Tiles are of whole fours, each of which may be one call of the noise.
    """
    rows, programs = max(1, rows), max(1, programs)
    tiles = ceil_div(rows, block * programs) * programs
    tile_rows = min(block, ceil_div(ceil_div(rows, tiles), 4) * 4)
    return min(programs, ceil_div(rows, tile_rows)), tile_rows


def plain_product(x, weight):
    """x·Wᵀ in float32, without rounding to a lower precision on the way."""
    if x.dtype == torch.float32 or not x.is_cuda:
        return x.float() @ weight.float().T
    return torch.mm(x, weight.T, out_dtype=torch.float32)
