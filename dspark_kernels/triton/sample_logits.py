"""`sample_logits`: the draw from logits that exist, cut at a floor found by search, not by sorting.

Top-k and top-p both keep the logits above which less than some limit lies: less than k logits, or
less than top_p of the mass. The floor is the lowest such value, found among the bit patterns of
float32 in 8 passes of 16 intervals.
"""

import torch
import triton
import triton.language as tl

from .config import device_of, tile
from .logits_topk import LogitsRanking
from .merge_topk import merge_partials
from .topk import finite_or_zero, ordered_bits, value_of

INTERVALS, PASSES = tl.constexpr(16), tl.constexpr(8)  # 16^8 = 2^32, all the bit patterns


@triton.jit
def _load_scaled(row_ptr, column, V, temperature):
    """logits / τ of one row; NaN, and columns beyond V, as -inf."""
    x = tl.load(row_ptr + column, column < V, other=float("-inf")).to(tl.float32)
    x = tl.div_rn(x, tl.full(x.shape, temperature, tl.float32))
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def _weigh(x, shift, floor, MASS: tl.constexpr):
    """What each of x counts: 1, or with MASS exp(x - shift); nothing below the floor."""
    weight = tl.exp(x - shift) if MASS else tl.full(x.shape, 1.0, tl.float32)
    return tl.where(x >= floor, weight, 0.0)


@triton.jit
def _lowest_kept(
    row_ptr, V, temperature, limit, shift, floor, MASS: tl.constexpr, BLOCK_V: tl.constexpr
):  # fmt: skip
    """The lowest value of the row above which there is less than `limit`.

    Among all int32 b in the order of floats, that is the smallest for which the weight above b is
    below the limit; each pass narrows b to one of 16 intervals.
    """
    low, width = tl.cast(-(2**31), tl.int64), tl.cast(2**32, tl.int64)
    for _ in range(PASSES):
        width = width // INTERVALS
        last = low + (tl.arange(0, INTERVALS) + 1) * width - 1  # of each interval
        above = tl.zeros((INTERVALS,), tl.float32)
        for start in range(0, V, BLOCK_V):
            x = _load_scaled(row_ptr, start + tl.arange(0, BLOCK_V), V, temperature)
            higher = ordered_bits(x).to(tl.int64)[None, :] > last[:, None]
            weight = _weigh(x, shift, floor, MASS)
            above += tl.sum(tl.where(higher, weight[None, :], 0.0), axis=1)
        low += tl.sum((above >= limit).to(tl.int64), axis=0) * width
    return value_of(tl.maximum(low, -0x7F800001).to(tl.int32))  # -inf at least


@triton.jit
def _floor_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, floor_ptr, V, logits_stride,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The lowest logits / τ that top-k, top-p and min-p of one row keep."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    temperature = tl.load(temperature_ptr + row)
    floor = tl.cast(float("-inf"), tl.float32)
    if temperature > 0.0:
        highest = tl.full((BLOCK_V,), float("-inf"), tl.float32)
        for start in range(0, V, BLOCK_V):
            x = _load_scaled(row_ptr, start + tl.arange(0, BLOCK_V), V, temperature)
            highest = tl.maximum(highest, x)
        maximum = tl.max(highest, axis=0)
        shift = finite_or_zero(maximum)
        if top_k_ptr is not None:
            k = tl.load(top_k_ptr + row)
            if (k > 0) & (k < V):
                floor = _lowest_kept(
                    row_ptr, V, temperature, k.to(tl.float32), shift, floor, False, BLOCK_V
                )
        if top_p_ptr is not None:
            p = tl.load(top_p_ptr + row)
            if p < 1.0:
                mass = tl.zeros((BLOCK_V,), tl.float32)
                for start in range(0, V, BLOCK_V):
                    x = _load_scaled(row_ptr, start + tl.arange(0, BLOCK_V), V, temperature)
                    mass += _weigh(x, shift, floor, True)
                limit = tl.maximum(p * tl.sum(mass, axis=0), 1e-38)  # the highest always stays
                nucleus = _lowest_kept(row_ptr, V, temperature, limit, shift, floor, True, BLOCK_V)
                floor = tl.maximum(floor, nucleus)
        if min_p_ptr is not None:
            p = tl.load(min_p_ptr + row)
            floor = tl.maximum(floor, maximum + tl.log(tl.maximum(p, 0.0)))
        floor = tl.minimum(floor, maximum)
    tl.store(floor_ptr + row, floor)


def sample_logits(logits, temperature, seed, position, top_k, top_p, min_p):
    """One Gumbel-max draw per row from optionally truncated logits, see `ops.sample_logits`."""
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    noise = [None if t is None else t.contiguous() for t in (temperature, seed, position)]
    cuts = [None if t is None else t.contiguous() for t in (top_k, top_p, min_p)]
    rows, vocabulary = logits.shape
    floor = None
    with torch.cuda.device_of(logits):
        if temperature is not None and any(cut is not None for cut in cuts):
            floor = logits.new_empty(rows, dtype=torch.float32)
            chosen = tile("sample_logits", device_of(logits), torch.float32, vocabulary)
            _floor_kernel[(rows,)](
                logits, noise[0], *cuts, floor, vocabulary, logits.stride(0), **chosen.options()
            )
        ranking = LogitsRanking(logits, rows, vocabulary, 1)
        ranking.add(logits, noise, floor=floor)
        _, ids, _ = merge_partials(ranking.packed, ranking.logsumexp, 1)
    return ids[:, 0]
