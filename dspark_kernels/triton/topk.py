"""Device functions of a running top-k and logsumexp over tiles of logits [BLOCK_V, BLOCK_M].

A score and its token id travel packed in one int64, ordered by (score, lower id), so that every
maximum of packed values already breaks ties; ids are in [0, 2^32).
"""

import triton
import triton.language as tl

from .noise import gumbel

MANY = tl.constexpr(8)  # rounds that cost more than sorting
LOWEST, HIGHEST = tl.constexpr(-(2**63)), tl.constexpr(2**63 - 1)


@triton.jit
def ordered_bits(x):
    """int32 in the order of the float32 (not NaN) they are made of; -0.0 like 0.0."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(ordered):
    """The float32 with these ordered bits."""
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def pack(scores, ids):
    """Float32 scores (not NaN) and int64 ids -> int64, ordered by score and then by lower id."""
    return (ordered_bits(scores).to(tl.int64) << 32) | (0xFFFFFFFF - ids)


@triton.jit
def unpack(packed):
    """The float32 scores and int64 ids of packed values."""
    return value_of((packed >> 32).to(tl.int32)), 0xFFFFFFFF - (packed & 0xFFFFFFFF)


@triton.jit
def finite_or_zero(x):
    """x, or 0 where it is infinite: a safe shift for exponentials."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


@triton.jit
def empty_results(K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr):
    """(top, bar, maximum, total) of no tile: a list [BLOCK_K, BLOCK_M], the rest [BLOCK_M].

    Scores whose ordered bits are below the bar of their row cannot be among its K best. The list
    starts with K distinct values above LOWEST; its padding is out of reach.
    """
    slot = tl.arange(0, BLOCK_K)
    low = tl.where(slot < K, LOWEST + 1 + slot.to(tl.int64), HIGHEST)
    top = tl.broadcast_to(low[:, None], (BLOCK_K, BLOCK_M))
    bar = tl.full((BLOCK_M,), -(2**31), tl.int32)
    maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    return top, bar, maximum, tl.zeros((BLOCK_M,), tl.float32)


@triton.jit
def _keep_best(top, bar, packed, K: tl.constexpr):
    """The K largest of the distinct values of top [BLOCK_K, BLOCK_M] and packed [BLOCK_V, BLOCK_M].

    And the new bar; what is below the old one may be left out. As many rounds as the row with the
    most new entries needs. Where that is many, as in a first tile, both are sorted instead: of two
    lists of K in opposite orders, the larger of each pair are the K largest of all.
    """
    lowest = tl.min(top, axis=0)
    threshold = tl.maximum(lowest, bar.to(tl.int64) << 32)
    entering = tl.sum((packed > threshold[None, :]).to(tl.int32), axis=0)
    rounds = tl.minimum(tl.max(entering, axis=0), K)
    if K > MANY and packed.shape[0] >= top.shape[0]:
        if rounds > MANY:
            ascending = tl.sort(tl.trans(top))
            top = tl.trans(tl.maximum(ascending, tl.topk(tl.trans(packed), top.shape[0])))
            lowest = tl.min(top, axis=0)
            rounds = 0
    best = tl.full(lowest.shape, HIGHEST, tl.int64)
    for _ in range(rounds):
        best = tl.max(tl.where(packed < best[None, :], packed, LOWEST), axis=0)
        replaced = (top == lowest[None, :]) & (best > lowest)[None, :]
        top = tl.where(replaced, best[None, :], top)
        lowest = tl.min(top, axis=0)
    return top, tl.maximum(bar, (lowest >> 32).to(tl.int32))


@triton.jit
def token_ids(columns, valid, id_map_ptr, vocab_offset):
    """The tokens int64 of columns; of those that are not valid any."""
    if id_map_ptr is not None:
        return tl.load(id_map_ptr + columns, valid, other=0)
    else:
        return columns + vocab_offset


@triton.jit
def add_tile(
    top, bar, maximum, total, logits, first, valid, rows, entries, temperature_ptr, seed_ptr,
    position_ptr, id_map_ptr, vocab_offset, floor_ptr, K: tl.constexpr, CONSECUTIVE: tl.constexpr,
):  # fmt: skip
    """Perturb a tile of logits and add it to the running results.

    Its columns count up from the int64 `first`, its rows are numbers int64 [BLOCK_M], and entries
    the places of their temperature and seed. Rows with a temperature above 0 drop what is below
    their floor after the division by it. CONSECUTIVE: the tokens count up from a multiple of 4.
    """
    columns = first + tl.arange(0, logits.shape[0])
    tokens = token_ids(columns, valid, id_map_ptr, vocab_offset)
    kept = valid[:, None] & (logits == logits)  # NaN counts as -inf
    if temperature_ptr is not None:
        temperature = tl.load(temperature_ptr + entries)[None, :]
        scale = tl.where(temperature > 0.0, temperature, 1.0)
        logits = tl.div_rn(logits, tl.broadcast_to(scale, logits.shape))
        if floor_ptr is not None:
            kept &= (logits >= tl.load(floor_ptr + rows)[None, :]) | (temperature <= 0.0)
        seed, position = tl.load(seed_ptr + entries), tl.load(position_ptr + rows)
        noise = gumbel(seed, position, tokens, first + vocab_offset, CONSECUTIVE)
        logits = tl.where(temperature > 0.0, logits + noise, logits)
    scores = tl.where(kept, logits, float("-inf"))
    best = tl.max(scores, axis=0)
    new_maximum = tl.maximum(maximum, best)
    shift = finite_or_zero(new_maximum)
    total = total * tl.exp(maximum - shift) + tl.sum(tl.exp(scores - shift[None, :]), axis=0)
    if tl.max((ordered_bits(best) >= bar).to(tl.int32), axis=0) > 0:
        packed = tl.where(valid[:, None], pack(scores, tokens[:, None]), LOWEST)
        top, bar = _keep_best(top, bar, packed, K)
    return top, bar, new_maximum, total


@triton.jit
def store_part(
    packed_ptr, lse_ptr, part, rows, M, top, maximum, total, K: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """Write one part of the results: packed [parts, M, K], unordered, and lse [parts, M]."""
    slot = tl.arange(0, BLOCK_K)
    out = part.to(tl.int64) * M + rows
    inside = (slot < K)[:, None] & (rows < M)[None, :]
    tl.store(packed_ptr + out[None, :] * K + slot[:, None], top, inside)
    tl.store(lse_ptr + out, finite_or_zero(maximum) + tl.log(total), rows < M)
