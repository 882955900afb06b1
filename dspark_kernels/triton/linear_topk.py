"""`linear_topk`: x·Wᵀ, penalty, noise, top-k and logsumexp in one pass over W.

A persistent grid: every program owns equally many equally tall tiles of W, and keeps one running
top list and logsumexp per row of x; `merge_partials` merges what the programs found. The logits of
a tile pass through a scratch of the program's own, which stays in the L2, and are ranked a slice at
a time: that bounds the registers of the noise, whatever the tile. Meanwhile the first columns of
the next tile arrive.

With many rows some row finds a new entry in almost every slice. Each program then also tells the
others the best score it has met in a row, in one of K places, which several programs share: all
that is below the lowest of the K is out, whoever meets it.

Above the crossover the logits of a chunk of the vocabulary exist at a time: a plain product, then
`logits_topk`.
"""

import torch
import triton
import triton.language as tl

from .._library import INTERPRETER
from .config import ceil_div, crossover, device_of, next_power_of_2, tile
from .logits_topk import LogitsRanking, rows_per_entry
from .matmul import balanced_tiles, plain_product, weight_columns, x_columns
from .merge_topk import merge_partials
from .penalty import penalize, penalized, seen_arguments
from .topk import add_tile, empty_results, ordered_bits, store_part, token_ids

INTERPRETED = tl.constexpr(INTERPRETER)
CHUNK_ELEMENTS = 2**23  # float32 logits of one chunk: they stay in the L2
SHARED_FROM = 512  # rows times max(k, 16), from which programs tell each other what they found


@triton.jit
def _barrier():
    """Like tl.debug_barrier, but loads of the loop around it may be under way meanwhile."""
    if not INTERPRETED:
        tl.inline_asm_elementwise(
            "bar.sync 0; mov.u32 $0, 0;", "=r", [], tl.int32, is_pure=False, pack=1
        )


@triton.jit
def _biased(logits, bias_ptr, columns, valid):
    """Logits [SLICE, BLOCK_M] and the bias of their columns int64 [SLICE]."""
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + columns, valid, other=0.0).to(tl.float32)[:, None]
    return logits


@triton.jit
def _penalize_tile(
    scratch_ptr, bias_ptr, first, tile_rows, V, known, entries, id_map_ptr, vocab_offset,
    seen_ptr, penalty_ptr, rows_per_seen, seen_words, SLICE: tl.constexpr,
):  # fmt: skip
    """Bias and penalty of a tile's columns from `first` on, in place: not while they are ranked,
    which needs the registers."""
    for start in range(0, tile_rows, SLICE):
        place = start + tl.arange(0, SLICE)
        column, valid = first + place, (place < tile_rows) & (first + place < V)
        logits = _biased(tl.load(scratch_ptr + place[:, None]), bias_ptr, column, valid)
        tokens = token_ids(column, valid, id_map_ptr, vocab_offset)
        logits = penalized(
            logits, tokens, known, entries, seen_ptr, penalty_ptr, rows_per_seen, seen_words
        )
        tl.store(scratch_ptr + place[:, None], logits)


@triton.jit(do_not_specialize=["M", "rows_per_entry", "rows_per_seen", "seen_words", "tile_rows"])
def _linear_topk_kernel(
    x_ptr, weight_ptr, bias_ptr, temperature_ptr, seed_ptr, position_ptr, id_map_ptr,
    seen_ptr, penalty_ptr, rows_per_seen, seen_words,
    scratch_ptr, best_ptr, bar_ptr, packed_ptr, lse_ptr,
    M, rows_per_entry, V, tile_rows, x_stride, weight_stride, vocab_offset,
    D: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, CONSECUTIVE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, SLICE: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
):  # fmt: skip
    # tiles of x are the fastest axis: programs that read the same weight run side by side
    program, programs = tl.program_id(1), tl.num_programs(1)
    column = tl.arange(0, BLOCK_M)
    rows = tl.program_id(0) * BLOCK_M + column
    known = tl.minimum(rows, M - 1)
    entries, known = known // rows_per_entry, known.to(tl.int64)
    block = (tl.program_id(0) * programs + program).to(tl.int64)
    scratch_ptr += block * BLOCK_M * BLOCK_V + column[None, :] * BLOCK_V  # V contiguous
    offset, slice_offset, depth = tl.arange(0, BLOCK_V), tl.arange(0, SLICE), tl.arange(0, BLOCK_D)
    weight_offsets = offset[:, None].to(tl.int64) * weight_stride + depth[None, :]
    x_ptrs = x_ptr + known[None, :] * x_stride + depth[:, None]
    top, bar, maximum, total = empty_results(K, BLOCK_K, BLOCK_M)
    bar = tl.where(rows < M, bar, 2**31 - 1)  # the other rows never find anything
    if best_ptr is not None:
        slot = tl.arange(0, BLOCK_K)[:, None]
        best_ptr += known * K
        bar_ptr += block * BLOCK_M + column
    product = tl.zeros((BLOCK_V, BLOCK_M), tl.float32)
    # one loop over the columns of all tiles: the next tile is on its way while one is ranked
    STEPS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    tiles = tl.cdiv(tl.cdiv(V, tile_rows) - program, programs)
    for step in range(tiles * STEPS):
        first = tl.cast(program + step // STEPS * programs, tl.int64) * tile_rows
        d = step % STEPS * BLOCK_D
        w = weight_columns(
            weight_ptr + first * weight_stride + weight_offsets, d,
            offset < tl.minimum(tile_rows, V - first), depth, D, BLOCK_D,
        )  # fmt: skip
        x = x_columns(x_ptrs, d, rows < M, depth, D, BLOCK_D)
        if d == 0:  # a choice before each product: the compiler then awaits a wgmma
            product = tl.zeros((BLOCK_V, BLOCK_M), tl.float32)
        product = tl.dot(w, x, product, input_precision="ieee")
        if d + BLOCK_D >= D:
            if best_ptr is not None:
                best = tl.load(best_ptr[None, :] + slot, slot < K, other=2**31 - 1, volatile=True)
                tl.store(bar_ptr, tl.min(best, axis=0))  # once, so that all threads see the same
            tl.store(scratch_ptr + offset[:, None], product)
            # frees its registers for the ranking; from the tensor memory of an sm_100, Triton 3.6
            # would then read the product before it has arrived
            if IN_REGISTERS:
                product = tl.zeros((BLOCK_V, BLOCK_M), tl.float32)
            _barrier()
            if best_ptr is not None:
                bar = tl.maximum(bar, tl.load(bar_ptr))
            if seen_ptr is not None:
                _penalize_tile(
                    scratch_ptr, bias_ptr, first, tile_rows, V, known, entries, id_map_ptr,
                    vocab_offset, seen_ptr, penalty_ptr, rows_per_seen, seen_words, SLICE,
                )  # fmt: skip
                _barrier()
            for start in range(0, tile_rows, SLICE):
                place = start + slice_offset
                valid = (place < tile_rows) & (first + place < V)
                logits = tl.load(scratch_ptr + place[:, None])
                if seen_ptr is None:
                    logits = _biased(logits, bias_ptr, first + place, valid)
                top, bar, maximum, total = add_tile(
                    top, bar, maximum, total, logits, first + start, valid, known,
                    entries, temperature_ptr, seed_ptr, position_ptr, id_map_ptr, vocab_offset,
                    None, K, CONSECUTIVE,
                )  # fmt: skip
            if best_ptr is not None:
                found = ordered_bits(maximum)
                tl.atomic_max(best_ptr + program % K, found, rows < M, sem="relaxed")
            _barrier()
    store_part(packed_ptr, lse_ptr, program, rows, M, top, maximum, total, K, BLOCK_K)


def _fused(x, weight, k, bias, noise, id_map, vocab_offset, penalty):
    """Partial results in one pass over the weight."""
    (rows, width), vocabulary = x.shape, weight.shape[0]
    device = device_of(x)
    chosen = tile("linear_topk", device, x.dtype, rows, k)
    block_m, block_v = chosen.blocks["BLOCK_M"], chosen.blocks["BLOCK_V"]
    grid_rows = ceil_div(rows, block_m)
    programs, tile_rows = balanced_tiles(
        vocabulary, block_v, device.sms * chosen.per_sm // max(1, grid_rows)
    )
    scratch = x.new_empty(grid_rows, programs, block_m, block_v, dtype=torch.float32)
    packed = x.new_empty(programs, rows, k, dtype=torch.int64)
    logsumexp = x.new_empty(programs, rows, dtype=torch.float32)
    best = bar = None
    if rows * max(k, 16) >= SHARED_FROM and programs * tile_rows < vocabulary:
        best = x.new_full((rows, k), -(2**31), dtype=torch.int32)
        bar = x.new_empty(grid_rows, programs, block_m, dtype=torch.int32)
    _linear_topk_kernel[grid_rows, programs](
        x, weight, bias, *noise, id_map, *penalty, scratch, best, bar, packed, logsumexp,
        rows, rows_per_entry(rows, noise[0], penalty[1]), vocabulary, tile_rows, x.stride(0),
        weight.stride(0), vocab_offset,
        D=width, K=k, BLOCK_K=next_power_of_2(k),
        CONSECUTIVE=id_map is None and vocab_offset % 4 == 0,
        IN_REGISTERS=device.capability < 100, **chosen.options(),
    )  # fmt: skip
    return packed, logsumexp


def _chunked(x, weight, k, bias, noise, id_map, vocab_offset, penalty):
    """Partial results by plain products, one chunk of the vocabulary at a time."""
    rows, vocabulary = x.shape[0], weight.shape[0]
    chunk = max(1024, CHUNK_ELEMENTS // rows // 1024 * 1024)
    ranking = LogitsRanking(x, rows, min(chunk, vocabulary), k, ceil_div(vocabulary, chunk))
    for index, first in enumerate(range(0, vocabulary, chunk)):
        logits = plain_product(x, weight[first : first + chunk])
        if bias is not None:
            logits += bias[first : first + chunk]
        if penalty[0] is not None:
            penalize(logits, penalty, logits, id_map, vocab_offset, first)
        ranking.add(logits, noise, id_map, vocab_offset, first=first, chunk=index)
    return ranking.packed, ranking.logsumexp


def linear_topk(
    x, weight, k, bias, temperature, seed, position, id_map, vocab_offset, seen, repetition_penalty
):
    """Top-k and logsumexp of x·Wᵀ + bias, perturbed if temperature > 0, see `ops.linear_topk`."""
    x, weight = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, weight))
    bias, id_map, *noise = (
        None if t is None else t.contiguous() for t in (bias, id_map, temperature, seed, position)
    )
    penalty = seen_arguments(x.shape[0], seen, repetition_penalty)
    few = x.shape[0] <= crossover("linear_topk", device_of(x), x.dtype)
    run = _fused if few else _chunked
    with torch.cuda.device_of(x):
        return merge_partials(*run(x, weight, k, bias, noise, id_map, vocab_offset, penalty), k)
