"""The product which both weight-streaming kernels share: weight rows times few activations."""

import triton
import triton.language as tl


@triton.jit
def weight_times_rows(
    weight_ptr, weight_stride, weight_rows, weight_mask, x_ptr, x_stride, x_rows,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """weight[weight_rows] · x[x_rows]ᵀ as float32 [BLOCK_V, BLOCK_M]; rows int64, x_rows in range.

    The weight is the left operand: its many rows fill the 64 rows of a wgmma, the few rows of x its
    narrow side.
    """
    column = tl.arange(0, BLOCK_D)
    weight_ptrs = weight_ptr + weight_rows[:, None] * weight_stride + column[None, :]
    x_ptrs = x_ptr + x_rows[None, :] * x_stride + column[:, None]
    acc = tl.zeros((weight_rows.shape[0], x_rows.shape[0]), tl.float32)
    for d in range(0, D, BLOCK_D):
        if D % BLOCK_D == 0:
            w = tl.load(
                weight_ptrs + d, weight_mask[:, None], other=0.0, eviction_policy="evict_first"
            )
            x = tl.load(x_ptrs + d, eviction_policy="evict_last")
        else:
            inside = column < D - d
            w = tl.load(weight_ptrs + d, weight_mask[:, None] & inside[None, :], other=0.0)
            x = tl.load(x_ptrs + d, inside[:, None], other=0.0)
        acc = tl.dot(w, x, acc, input_precision="ieee")
    return acc


def balanced_tiles(rows: int, block: int, programs: int) -> tuple[int, int]:
    """Programs to launch (at most `programs`) and rows per tile (at most `block`): equal shares."""
    rows, programs = max(1, rows), max(1, programs)
    tiles = triton.cdiv(rows, block * programs) * programs
    tile_rows = min(block, triton.cdiv(triton.cdiv(rows, tiles), 16) * 16)
    return min(programs, triton.cdiv(rows, tile_rows)), tile_rows
