"""`sample_logits`: the draw from logits that exist, cut at a floor found by search, not by sorting.

Top-k and top-p both keep the logits above which less than some limit lies: less than k logits, or
less than top_p of the mass. The floor is the lowest such value, found among the bit patterns of
float32 in 8 passes of 16 intervals. The first of them are launches, in which several programs share
a row; what they count is added up, in a fixed order, by the next one. The last launch notes which
columns it has in its intervals, which are narrow by then, and what is above them; these alone are
read in the other passes, by one program.
"""

import torch
import triton
import triton.language as tl

from .config import EXACT, ceil_div, device_of, next_power_of_2, tile
from .logits_topk import LogitsRanking, rows_per_entry
from .merge_topk import merge_partials
from .penalty import penalize, seen_arguments
from .sample_listed import draw_listed, load_scaled, min_p_floor
from .topk import finite_or_zero, ordered_bits, value_of

INTERVALS, PASSES = tl.constexpr(16), tl.constexpr(8)  # 16^8 = 2^32, all the bit patterns
LAUNCHED = tl.constexpr(5)  # passes that are launches of their own
MAX_PARTS = 16  # programs that share a row: as many in any batch, so that sums are the same
LISTED = tl.constexpr(256)  # columns that a program notes at most
FINISH_WARPS = 8  # of a program that does the last passes


@triton.jit
def _weigh(x, shift, floor, MASS: tl.constexpr):
    """What each of x counts: 1, or with MASS exp(x - shift); nothing below the floor."""
    weight = tl.exp(x - shift) if MASS else tl.full(x.shape, 1.0, tl.float32)
    return tl.where(x >= floor, weight, 0.0)


@triton.jit(do_not_specialize=["rows_per_entry", "V"])
def _highest_kernel(
    logits_ptr, temperature_ptr, highest_ptr, rows_per_entry, V, logits_stride,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The highest logits / τ of a row in part program_id(1): highest [rows, parts]."""
    row, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    entry = tl.program_id(0) // rows_per_entry
    temperature = tl.load(temperature_ptr + entry)
    highest = tl.full((BLOCK_V,), float("-inf"), tl.float32)
    if temperature > 0.0:
        for start in range(part * BLOCK_V, V, parts * BLOCK_V):
            column = start + tl.arange(0, BLOCK_V)
            x = load_scaled(logits_ptr + row * logits_stride, column, V, temperature)
            highest = tl.maximum(highest, x)
    tl.store(highest_ptr + row * parts + part, tl.max(highest, axis=0))


@triton.jit
def _highest(highest_ptr, row, parts, BLOCK_P: tl.constexpr):
    """The highest logits / τ of a row."""
    part = tl.arange(0, BLOCK_P)
    highest = tl.load(highest_ptr + row * parts + part, part < parts, other=float("-inf"))
    return tl.max(highest, axis=0)


@triton.jit
def _cuts(cut_ptr, temperature, V, MASS: tl.constexpr):
    """Whether top-k (or with MASS top-p) leaves out anything of a row."""
    cut = tl.load(cut_ptr)
    if MASS:
        return (temperature > 0.0) & (cut < 1.0)
    else:
        return (temperature > 0.0) & (cut > 0) & (cut < V)


@triton.jit
def _limit(cut_ptr, total_ptr, row, parts, MASS: tl.constexpr, BLOCK_P: tl.constexpr):
    """The weight that all above the value looked for stays below."""
    limit = tl.load(cut_ptr).to(tl.float32)
    if MASS:
        part = tl.arange(0, BLOCK_P)
        total = tl.sum(tl.load(total_ptr + row * parts + part, part < parts, other=0.0), axis=0)
        limit = tl.maximum(limit * total, 1e-38)  # the highest always stays
    return limit


@triton.jit
def _width(number):
    """Of the intervals of a pass: how many bit patterns, int64."""
    return tl.cast(1, tl.int64) << (4 * (PASSES - 1 - number))


@triton.jit
def _ends(low, number):
    """The last bit patterns of the intervals of a pass from `low` on, int32 [INTERVALS]."""
    return (low + (tl.arange(0, INTERVALS) + 1) * _width(number) - 1).to(tl.int32)


@triton.jit
def _above(bits, weight, ends):
    """What of each weight [BLOCK] is above the intervals' ends, [INTERVALS, BLOCK]."""
    return tl.where(bits[None, :] > ends[:, None], weight[None, :], 0.0)


@triton.jit
def _narrow(low, number, above, limit):
    """The start of that one of the intervals from `low` on in which the value looked for lies.

    Among all int32 b in the order of floats it is the smallest for which the weight above b is
    below the limit: above [INTERVALS] holds the weights above the intervals' ends. It is in one of
    them, whatever these are rounded to.
    """
    ended = tl.minimum(tl.sum((above >= limit).to(tl.int64), axis=0), INTERVALS - 1)
    return low + ended * _width(number)


@triton.jit
def _after_pass(low_ptr, above_ptr, number, limit, row, rows, parts, BLOCK_P: tl.constexpr):
    """The start of the interval that a pass leaves, and the weight above all of its intervals."""
    part, place = tl.arange(0, BLOCK_P), tl.cast(number, tl.int64) * rows + row
    above_ptrs = above_ptr + (place * parts + part)[:, None] * INTERVALS
    above_ptrs += tl.arange(0, INTERVALS)[None, :]
    above = tl.sum(tl.load(above_ptrs, (part < parts)[:, None], other=0.0), axis=0)
    return _narrow(tl.load(low_ptr + place), number, above, limit), tl.min(above, axis=0)


@triton.jit(do_not_specialize=["rows_per_entry", "V", "number"])
def _pass_kernel(
    logits_ptr, temperature_ptr, cut_ptr, highest_ptr, floor_ptr, low_ptr, above_ptr, total_ptr,
    list_ptr, length_ptr, rows_per_entry, V, logits_stride, number,
    MASS: tl.constexpr, NOTE: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Pass `number` over a row's part program_id(1).

    low [LAUNCHED, rows] is where its intervals start, above [LAUNCHED, rows, parts, INTERVALS] the
    weights above their ends, total [rows, parts] all weight. Only what is at least `floor` counts.
    With NOTE, list [rows, parts, LISTED] gets the columns of all that is in the intervals, and
    length [rows, parts] how many they are, or -1 if they do not fit.
    """
    row, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    rows = tl.num_programs(0)
    entry = tl.program_id(0) // rows_per_entry
    temperature = tl.load(temperature_ptr + entry)
    cut_ptr += entry
    if _cuts(cut_ptr, temperature, V, MASS):
        low = tl.cast(-(2**31), tl.int64)
        if number > 0:
            limit = _limit(cut_ptr, total_ptr, row, parts, MASS, BLOCK_P)
            low, _ = _after_pass(low_ptr, above_ptr, number - 1, limit, row, rows, parts, BLOCK_P)
        if part == 0:
            tl.store(low_ptr + number * rows + row, low)
        ends = _ends(low, number)
        shift = finite_or_zero(_highest(highest_ptr, row, parts, BLOCK_P))
        floor = tl.cast(float("-inf"), tl.float32)
        if floor_ptr is not None:
            floor = tl.load(floor_ptr + row)
        above = tl.zeros((INTERVALS, BLOCK_V), tl.float32)
        total = tl.zeros((BLOCK_V,), tl.float32)
        written = 0
        for start in range(part * BLOCK_V, V, parts * BLOCK_V):
            column = start + tl.arange(0, BLOCK_V)
            x = load_scaled(logits_ptr + row * logits_stride, column, V, temperature)
            weight = _weigh(x, shift, floor, MASS)
            bits = ordered_bits(x)
            above += _above(bits, weight, ends)
            total += weight
            if NOTE:
                inside = (bits >= low) & (bits < low + _width(number) * INTERVALS) & (column < V)
                inside &= (x >= floor) & (x > float("-inf"))  # others weigh nothing, or are masked
                to = written + tl.cumsum(inside.to(tl.int32), axis=0) - 1
                own_list = list_ptr + (row * parts + part) * LISTED
                tl.store(own_list + to, column, inside & (to < LISTED))
                written += tl.sum(inside.to(tl.int32), axis=0)
        if NOTE:
            tl.store(length_ptr + row * parts + part, tl.where(written <= LISTED, written, -1))
        out = (number.to(tl.int64) * rows + row) * parts + part
        tl.store(above_ptr + out * INTERVALS + tl.arange(0, INTERVALS), tl.sum(above, axis=1))
        if MASS:
            if number == 0:
                tl.store(total_ptr + row * parts + part, tl.sum(total, axis=0))


@triton.jit
def _last_passes(
    logits_ptr, temperature, shift, floor, limit, low, beyond, list_ptr, length_ptr, row, V, parts,
    MASS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The value looked for, as int64 in the order of floats: it is among the 16^(PASSES - LAUNCHED)
    from `low` on. beyond: the weight above what was noted. Of all columns, if it is not complete.
    """
    place = tl.arange(0, BLOCK_P * LISTED)
    part = place // LISTED
    length = tl.load(length_ptr + row * parts + part, part < parts, other=0)
    listed = tl.min(length, axis=0) >= 0
    column = tl.load(
        list_ptr + row * parts * LISTED + place, listed & (place % LISTED < length), other=V
    )
    x = load_scaled(logits_ptr, column, V, temperature)
    bits, weight = ordered_bits(x), _weigh(x, shift, floor, MASS)
    if not listed:
        beyond = tl.cast(0.0, tl.float32)
    for number in range(LAUNCHED, PASSES):
        ends = _ends(low, number)
        above = tl.sum(_above(bits, weight, ends), axis=1) + beyond
        if not listed:
            for start in range(0, V, BLOCK_P * LISTED):
                other = load_scaled(logits_ptr, start + place, V, temperature)
                other_weight = _weigh(other, shift, floor, MASS)
                above += tl.sum(_above(ordered_bits(other), other_weight, ends), axis=1)
        low = _narrow(low, number, above, limit)
    return low


@triton.jit(do_not_specialize=["rows_per_entry", "V", "parts"])
def _floor_kernel(
    logits_ptr, temperature_ptr, cut_ptr, highest_ptr, before_ptr, low_ptr, above_ptr, total_ptr,
    list_ptr, length_ptr, min_p_ptr, floor_ptr, rows_per_entry, V, logits_stride, parts,
    MASS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The lowest logits / τ that a row keeps: after a search, after `before`, and with min-p."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    entry = tl.program_id(0) // rows_per_entry
    temperature = tl.load(temperature_ptr + entry)
    highest = _highest(highest_ptr, row, parts, BLOCK_P)
    floor = tl.cast(float("-inf"), tl.float32)
    if before_ptr is not None:
        floor = tl.load(before_ptr + row)
    if cut_ptr is not None:
        cut_ptr += entry
        if _cuts(cut_ptr, temperature, V, MASS):
            limit = _limit(cut_ptr, total_ptr, row, parts, MASS, BLOCK_P)
            low, beyond = _after_pass(
                low_ptr, above_ptr, LAUNCHED - 1, limit, row, rows, parts, BLOCK_P
            )
            low = _last_passes(
                logits_ptr + row * logits_stride, temperature, finite_or_zero(highest), floor,
                limit, low, beyond, list_ptr, length_ptr, row, V, parts, MASS, BLOCK_P,
            )  # fmt: skip
            lowest = value_of(tl.maximum(low, -0x7F800001).to(tl.int32))  # -inf at least
            floor = tl.maximum(floor, lowest)
    if min_p_ptr is not None:
        floor = tl.maximum(floor, min_p_floor(tl.load(min_p_ptr + entry), highest))
    tl.store(floor_ptr + row, tl.minimum(floor, highest))


def _floor(logits, temperature, top_k, top_p, min_p):
    """The lowest logits / τ that top-k, top-p and min-p keep, float32 [rows]."""
    rows, vocabulary = logits.shape
    per_entry = rows_per_entry(rows, temperature)
    chosen = tile("sample_logits", device_of(logits), torch.float32, vocabulary)
    parts = min(ceil_div(vocabulary, chosen.blocks["BLOCK_V"]), MAX_PARTS)
    grid, block_p = (rows, parts), next_power_of_2(parts)
    highest, total = (logits.new_empty(rows, parts, dtype=torch.float32) for _ in range(2))
    low = logits.new_empty(LAUNCHED.value, rows, dtype=torch.int64)
    above = logits.new_empty(LAUNCHED.value, rows, parts, INTERVALS.value, dtype=torch.float32)
    columns = logits.new_empty(rows, parts, LISTED.value, dtype=torch.int32)
    length = logits.new_empty(rows, parts, dtype=torch.int32)
    found = low, above, total, columns, length
    _highest_kernel[grid](
        logits, temperature, highest, per_entry, vocabulary, logits.stride(0), **chosen.options()
    )
    floor = None
    searches = [(cut, cut is top_p) for cut in (top_k, top_p) if cut is not None]
    for index, (cut, mass) in enumerate(searches or [(None, False)]):
        for number in range(LAUNCHED.value if searches else 0):
            _pass_kernel[grid](
                logits, temperature, cut, highest, floor, *found, per_entry, vocabulary,
                logits.stride(0), number, MASS=mass, NOTE=number + 1 == LAUNCHED.value,
                BLOCK_P=block_p, **chosen.options(),
            )  # fmt: skip
        before, floor = floor, logits.new_empty(rows, dtype=torch.float32)
        _floor_kernel[(rows,)](
            logits, temperature, cut, highest, before, *found,
            min_p if index + 1 >= len(searches) else None, floor, per_entry, vocabulary,
            logits.stride(0), parts, MASS=mass, BLOCK_P=block_p, num_warps=FINISH_WARPS, **EXACT,
        )  # fmt: skip
    return floor


def sample_logits(
    logits, ids, temperature, seed, position, top_k, top_p, min_p, seen, repetition_penalty
):
    """One Gumbel-max draw per row from optionally truncated logits, see `ops.sample_logits`."""
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    noise = [None if t is None else t.contiguous() for t in (temperature, seed, position)]
    cuts = [None if t is None else t.contiguous() for t in (top_k, top_p, min_p)]
    rows, vocabulary = logits.shape
    floor = None
    with torch.cuda.device_of(logits):
        if seen is not None and rows > 0:
            out = logits.new_empty(rows, vocabulary, dtype=torch.float32)
            logits = penalize(logits, seen_arguments(rows, seen, repetition_penalty), out)
        if ids is not None:
            return draw_listed(logits, ids, noise, cuts)
        if temperature is not None and any(cut is not None for cut in cuts):
            floor = _floor(logits, noise[0], *cuts)
        ranking = LogitsRanking(logits, rows, vocabulary, 1)
        ranking.add(logits, noise, floor=floor)
        _, ids, _ = merge_partials(ranking.packed, ranking.logsumexp, 1)
    return ids[:, 0]
