"""`sample_logits` of the few logits whose tokens are listed, and what the draw from all shares.

One program holds a row, and compares all pairs.
"""

import torch
import triton
import triton.language as tl

from .config import EXACT, next_power_of_2
from .logits_topk import rows_per_entry
from .noise import gumbel
from .topk import finite_or_zero, pack, unpack


@triton.jit
def load_scaled(row_ptr, column, V, temperature):
    """logits / τ of one row; NaN, and columns beyond V, as -inf."""
    x = tl.load(row_ptr + column, column < V, other=float("-inf")).to(tl.float32)
    x = tl.div_rn(x, tl.full(x.shape, temperature, tl.float32))
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def min_p_floor(p, highest):
    """The lowest logits / τ that min-p keeps."""
    return tl.where(p > 0.0, highest + tl.log(tl.maximum(p, 0.0)), float("-inf"))


@triton.jit(do_not_specialize=["rows_per_entry", "logits_stride"])
def _listed_kernel(
    logits_ptr, ids_ptr, temperature_ptr, seed_ptr, position_ptr, top_k_ptr, top_p_ptr, min_p_ptr,
    out_ptr, rows_per_entry, logits_stride, V: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The draw of one row."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_V)
    entry = tl.program_id(0) // rows_per_entry
    ids_ptr += row * V
    x = load_scaled(logits_ptr + row * logits_stride, column, V, 1.0)
    if temperature_ptr is not None:
        temperature = tl.load(temperature_ptr + entry)
        if temperature > 0.0:
            x = tl.div_rn(x, tl.full(x.shape, temperature, tl.float32))
            kept = column < V
            above = x[None, :] > x[:, None]  # [i, j]: whether j is above i
            highest = tl.max(x, axis=0)
            if top_k_ptr is not None:
                k = tl.load(top_k_ptr + entry)
                kept &= (k <= 0) | (tl.sum(above.to(tl.int32), axis=1) < k)
            if top_p_ptr is not None:
                p = tl.load(top_p_ptr + entry)
                weight = tl.where(kept, tl.exp(x - finite_or_zero(highest)), 0.0)
                mass = tl.sum(tl.where(above, weight[None, :], 0.0), axis=1)
                limit = tl.where(p >= 1.0, float("inf"), p * tl.sum(weight, axis=0))
                kept &= (x == highest) | (mass < limit)
            if min_p_ptr is not None:
                kept &= x >= min_p_floor(tl.load(min_p_ptr + entry), highest)
            here = tl.zeros((1,), tl.int64)
            seed, position = tl.load(seed_ptr + entry + here), tl.load(position_ptr + row + here)
            ids = tl.load(ids_ptr + column, column < V, other=0)
            noise = tl.reshape(gumbel(seed, position, ids, 0, False), x.shape)
            x = tl.where(kept, x + noise, float("-inf"))
    _, best = unpack(tl.max(pack(x, column.to(tl.int64)), axis=0))
    tl.store(out_ptr + row, tl.load(ids_ptr + best))


def draw_listed(logits, ids, noise, cuts):
    """The draw from the few tokens of logits [rows, V] that ids [rows, V] names."""
    rows, columns = logits.shape
    drawn = logits.new_empty(rows, dtype=torch.int64)
    if rows > 0:
        _listed_kernel[rows,](
            logits, ids.contiguous(), *noise, *cuts, drawn, rows_per_entry(rows, noise[0]),
            logits.stride(0), V=columns, BLOCK_V=max(2, next_power_of_2(columns)), **EXACT,
        )  # fmt: skip
    return drawn
