"""`tree_attention`: split-KV attention of tree nodes, with a mask on the tail only.

The query heads of a KV group and the nodes are packed into the rows of a tile, node-major, so that
a tile of the cache is read once for all of them. Every program owns a share of the prefix, which
needs no mask; the last one adds the tail, with one ancestor word per row and tile of nodes. The
shares are merged by a second kernel rather than by the last program to arrive: that needs no
counters to reset between launches.
"""

import math

import torch
import triton
import triton.language as tl

from .config import EXACT, ceil_div, device_of, next_power_of_2, tile

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
MAX_SPLITS = 64  # shares of a request


@triton.jit
def _popcount(x):
    """Set bits of an int64."""
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    x += x >> 32
    x += x >> 16
    return ((x + (x >> 8)) & 0xFF).to(tl.int32)


@triton.jit
def _depth(words_ptr, WORDS: tl.constexpr):
    """Depths of nodes, given pointers to their ancestor words."""
    ancestors = tl.zeros(words_ptr.shape, tl.int32)
    for word in tl.static_range(WORDS):
        ancestors += _popcount(tl.load(words_ptr + word))
    return ancestors - 1


@triton.jit
def _all_there(table_ptr, first, end, num_blocks, BLOCK_SIZE: tl.constexpr):
    """Whether the block table names a block for each of the slots first .. end - 1."""
    AT_ONCE: tl.constexpr = 128
    missing, last = tl.zeros((AT_ONCE,), tl.int32), tl.cdiv(end, BLOCK_SIZE)
    for start in range(first // BLOCK_SIZE, last, AT_ONCE):
        entry = start + tl.arange(0, AT_ONCE)
        block = tl.load(table_ptr + entry, entry < last, other=0)
        missing |= ((block < 0) | (block >= num_blocks)).to(tl.int32)
    return tl.max(missing, axis=0) == 0


@triton.jit
def _attend(
    acc, maximum, total, q, k_ptr, v_ptr, table_ptr, slots, valid, visible, num_blocks,
    k_stride_block, k_stride_slot, v_stride_block, v_stride_slot, scale, softcap,
    BLOCK_SIZE: tl.constexpr, E: tl.constexpr, SCALED: tl.constexpr, SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Online softmax over the cache slots [BLOCK_N]; the maximum is in units of log 2.

    Slots that are not valid [BLOCK_N] are never read; others count where visible [.., BLOCK_N].
    Without MASKED all of them are valid and visible; then, without SCALED, the scale is above 0 and
    applied behind the maximum, where it costs nothing.
    """
    column = tl.arange(0, q.shape[1])
    block, place = tl.zeros(slots.shape, tl.int64), slots.to(tl.int64)
    if table_ptr is not None:
        entries = table_ptr + slots // BLOCK_SIZE
        if MASKED:
            block = tl.load(entries, valid, other=-1)
            valid &= (block >= 0) & (block < num_blocks)
        else:
            block = tl.load(entries)
        block, place = block.to(tl.int64), place % BLOCK_SIZE
    known = (column < E)[None, :]
    if MASKED:
        known &= valid[:, None]
    k_ptrs = k_ptr + (block * k_stride_block + place * k_stride_slot)[:, None] + column[None, :]
    k = tl.load(k_ptrs, known, other=0.0)
    scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee")
    factor = scale * LOG2_E
    if SOFTCAP:  # c·tanh(s / c) = c - 2c / (exp(2s / c) + 1)
        scores = softcap - 2.0 * softcap / (tl.exp2(2.0 / softcap * factor * scores) + 1.0)
        factor = LOG2_E
    if MASKED or SCALED:
        scores *= factor
        factor = 1.0
    if MASKED:
        scores = tl.where(visible & valid[None, :], scores, float("-inf"))

    new_maximum = tl.maximum(maximum, tl.max(scores, axis=1) * factor)
    shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    weights = tl.exp2(scores * factor - shift[:, None])  # one multiply-add
    rescale = tl.exp2(maximum - shift)
    v_ptrs = v_ptr + (block * v_stride_block + place * v_stride_slot)[:, None] + column[None, :]
    v = tl.load(v_ptrs, known, other=0.0).to(q.dtype)
    acc = tl.dot(weights.to(q.dtype), v, acc * rescale[:, None], input_precision="ieee")
    return acc, new_maximum, total * rescale + tl.sum(weights, axis=1)


@triton.jit(do_not_specialize=["N", "tokens", "window", "num_blocks"])
def _tree_attention_kernel(
    q_ptr, k_ptr, v_ptr, seqlens_ptr, ancestors_ptr, table_ptr, k_scale_ptr, v_scale_ptr, rows_ptr,
    out_ptr, lse_ptr, scale, softcap, N, tokens, capacity, num_blocks, window,
    q_stride_b, q_stride_n, q_stride_h,
    k_stride_block, k_stride_slot, k_stride_h, v_stride_block, v_stride_slot, v_stride_h,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr,
    WORDS: tl.constexpr, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, SCALED: tl.constexpr,
    SOFTCAP: tl.constexpr, WHOLE: tl.constexpr, TAIL: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(1) // KV_HEADS).to(tl.int64)
    kv_head = (tl.program_id(1) % KV_HEADS).to(tl.int64)
    split, splits = tl.program_id(2), tl.num_programs(2)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # over nodes and heads of the group
    inside = row < N * GROUP
    node = tl.minimum(row // GROUP, N - 1)
    head = kv_head * GROUP + row % GROUP
    column = tl.arange(0, BLOCK_E)

    q_ptrs = q_ptr + batch * q_stride_b + node.to(tl.int64) * q_stride_n + head * q_stride_h
    if rows_ptr is not None:
        token = tl.load(rows_ptr + batch * N + node)
        q_ptrs = q_ptr + tl.maximum(token, 0) * q_stride_n + head * q_stride_h
    q = tl.load(
        q_ptrs[:, None] + column[None, :], inside[:, None] & (column < E)[None, :], other=0.0
    )
    k_ptr += kv_head * k_stride_h
    v_ptr += kv_head * v_stride_h
    if table_ptr is not None:
        table_ptr += batch * (capacity // BLOCK_SIZE)
    else:
        k_ptr += batch * k_stride_block
        v_ptr += batch * v_stride_block
    if k_scale_ptr is not None:
        scale *= tl.load(k_scale_ptr + kv_head)
    seqlen = tl.load(seqlens_ptr + batch)
    node_words = ancestors_ptr + batch * N * WORDS + node * WORDS  # [BLOCK_M]
    first = 0
    if WINDOW:
        oldest = seqlen + _depth(node_words, WORDS) - window  # the last position out of sight
        first = tl.maximum(seqlen - window + 1, 0)

    acc = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    prefix_end = tl.minimum(seqlen, capacity)
    share = tl.cdiv(prefix_end + N - first, splits * BLOCK_N) * BLOCK_N
    first += split * share
    prefix_end = tl.minimum(first + share, prefix_end)
    if WHOLE:
        whole_end = first + tl.maximum(prefix_end - first, 0) // BLOCK_N * BLOCK_N
        if table_ptr is not None:
            there = _all_there(table_ptr, first, whole_end, num_blocks, BLOCK_SIZE)
            whole_end = tl.where(there, whole_end, first)
        place, slots = first.to(tl.int64), tl.arange(0, BLOCK_N)  # their offsets are constant
        for _ in range(first, whole_end, BLOCK_N):
            entries, inside_block = table_ptr, place
            if table_ptr is not None:
                entries, inside_block = table_ptr + place // BLOCK_SIZE, place % BLOCK_SIZE
            acc, maximum, total = _attend(
                acc, maximum, total, q, k_ptr + inside_block * k_stride_slot,
                v_ptr + inside_block * v_stride_slot, entries, slots, None, None, num_blocks,
                k_stride_block, k_stride_slot, v_stride_block, v_stride_slot, scale, softcap,
                BLOCK_SIZE, E, SCALED, SOFTCAP, False,
            )  # fmt: skip
            place += BLOCK_N
        first = whole_end
    for start in range(first, prefix_end, BLOCK_N):
        slots = start + tl.arange(0, BLOCK_N)
        valid = slots < prefix_end
        visible = valid[None, :]
        if WINDOW:
            visible = slots[None, :] > oldest[:, None]
        acc, maximum, total = _attend(
            acc, maximum, total, q, k_ptr, v_ptr, table_ptr, slots, valid, visible, num_blocks,
            k_stride_block, k_stride_slot, v_stride_block, v_stride_slot, scale, softcap,
            BLOCK_SIZE, E, SCALED, SOFTCAP, True,
        )  # fmt: skip
    if split == splits - 1:
        for start in tl.range(0, N, TAIL, num_stages=1):
            other = start + tl.arange(0, TAIL)  # the nodes in the columns
            valid = (other < N) & (seqlen + other < capacity)
            if rows_ptr is not None:
                valid &= tl.load(rows_ptr + batch * N + other, other < N, other=-1) >= 0
            word = tl.load(node_words + start // 64)
            visible = ((word[:, None] >> (other % 64)[None, :].to(tl.int64)) & 1) == 1
            if WINDOW:
                other_words = ancestors_ptr + (batch * N + tl.minimum(other, N - 1)) * WORDS
                position = seqlen + _depth(other_words, WORDS)
                visible &= position[None, :] > oldest[:, None]
            acc, maximum, total = _attend(
                acc, maximum, total, q, k_ptr, v_ptr, table_ptr, seqlen + other, valid, visible,
                num_blocks, k_stride_block, k_stride_slot, v_stride_block, v_stride_slot, scale,
                softcap, BLOCK_SIZE, E, SCALED, SOFTCAP, True,
            )  # fmt: skip

    # one part of [splits, tokens, Hq, E] and [splits, tokens, Hq]
    if rows_ptr is not None:
        # an address of its own: shared with the one above, it would stay in registers meanwhile
        token = tl.load(rows_ptr + batch * N + row // GROUP, inside, other=-1)
        inside = token >= 0
        out = split.to(tl.int64) * tokens + token
    else:
        requests = tl.num_programs(1) // KV_HEADS
        out = (split * requests + batch) * N + node
    out = out * (KV_HEADS * GROUP) + head
    factor = 1.0 / tl.where(total == 0.0, 1.0, total)
    if v_scale_ptr is not None:
        factor *= tl.load(v_scale_ptr + kv_head)
    out_ptrs = out_ptr + out[:, None] * E + column[None, :]
    tl.store(
        out_ptrs,
        (acc * factor[:, None]).to(out_ptr.dtype.element_ty),
        inside[:, None] & (column < E)[None, :],
    )
    shift = tl.where(maximum == float("-inf"), 0.0, maximum)
    tl.store(lse_ptr + out, (shift + tl.log2(total)) * LN_2, inside)


@triton.jit(do_not_specialize=["splits"])
def _merge_splits_kernel(
    parts_ptr, parts_lse_ptr, out_ptr, lse_ptr, splits,
    E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One row: the mean of its parts [splits, rows, E], weighted by exp(logsumexp)."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    split, column = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_E)
    place = split.to(tl.int64) * rows + row
    lse = tl.load(parts_lse_ptr + place, split < splits, other=float("-inf"))
    maximum = tl.max(lse, axis=0)
    shift = tl.where(maximum == float("-inf"), 0.0, maximum)
    weights = tl.exp(lse - shift)
    total = tl.sum(weights, axis=0)
    known = (weights > 0.0)[:, None] & (column < E)[None, :]
    parts = tl.load(parts_ptr + place[:, None] * E + column[None, :], known, other=0.0)
    mean = tl.sum(parts * weights[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + row * E + column, mean.to(out_ptr.dtype.element_ty), column < E)
    tl.store(lse_ptr + row, shift + tl.log(total))


def split_count(programs: int, tiles: int, places: int) -> int:
    """The fewest splits within 15 % of the best time, in tiles that a place works through.

    programs: without splits; tiles: of the prefix, of which a split has two at least.
    """
    most = max(1, min(MAX_SPLITS, tiles // 2))
    times = [
        math.ceil(tiles / splits) * math.ceil(programs * splits / places)
        for splits in range(1, most + 1)
    ]
    return next(i for i, time in enumerate(times, 1) if time <= 1.15 * min(times))


def _unit_stride(tensor):
    """The tensor with contiguous rows of E, so that strides are given for the other axes only."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def tree_attention(
    q, k_cache, v_cache, cache_seqlens, ancestors, scale, block_table, window, softcap,
    k_scale, v_scale, rows,
):  # fmt: skip
    """Attention of each tree node over prefix and ancestors, see `ops.tree_attention`."""
    q, k_cache, v_cache = map(_unit_stride, (q, k_cache, v_cache))
    cache_seqlens, ancestors, block_table, k_scale, v_scale, rows = (
        None if t is None else t.contiguous()
        for t in (cache_seqlens, ancestors, block_table, k_scale, v_scale, rows)
    )
    (batch, nodes), (heads, head_dim) = ancestors.shape[:2], q.shape[-2:]
    blocks, block_size, kv_heads, _ = k_cache.shape
    max_blocks, page = (1, 1) if block_table is None else (block_table.shape[1], block_size)
    group = heads // kv_heads
    device = device_of(q)
    dtype = q.dtype if q.dtype == torch.float32 else k_cache.dtype  # float32 on the plain cores
    slots = max_blocks * block_size
    work = ceil_div(batch * kv_heads * slots, device.sms)
    chosen = tile("tree_attention", device, dtype, nodes * group, head_dim, work)
    grid = (ceil_div(nodes * group, chosen.blocks["BLOCK_M"]), batch * kv_heads)
    tiles = ceil_div(slots, chosen.blocks["BLOCK_N"])
    splits = split_count(max(1, grid[0] * grid[1]), tiles, device.sms * chosen.per_sm)
    out, lse = (
        torch.empty_like(q, memory_format=torch.contiguous_format),
        q.new_empty(q.shape[:-1], dtype=torch.float32),
    )
    parts, parts_lse = out, lse
    if splits > 1:
        parts = q.new_empty(splits, *out.shape, dtype=torch.float32)
        parts_lse = q.new_empty(splits, *lse.shape, dtype=torch.float32)
    block_e = max(16, next_power_of_2(head_dim))
    options = chosen.options()
    sizes = chosen.blocks["BLOCK_N"], page
    if block_table is not None:  # a cache tile waits for its block ids: twice the distance
        options["num_stages"] = 2 * chosen.num_stages - 1
    with torch.cuda.device_of(q):
        _tree_attention_kernel[*grid, splits](
            q, k_cache, v_cache, cache_seqlens, ancestors, block_table, k_scale, v_scale, rows,
            parts, parts_lse, scale, softcap, nodes, q.shape[:-2].numel(),
            slots, blocks, window, 0 if q.dim() == 3 else q.stride(0),
            *q.stride()[-3:-1], *k_cache.stride()[:3], *v_cache.stride()[:3],
            KV_HEADS=kv_heads, GROUP=group, E=head_dim, BLOCK_E=block_e,
            WORDS=ancestors.shape[2], BLOCK_SIZE=page,
            WINDOW=window > 0, SOFTCAP=softcap > 0,
            SCALED=softcap > 0 or k_scale is not None or scale <= 0,
            WHOLE=not window and max(sizes) % min(sizes) == 0,
            TAIL=min(64, chosen.blocks["BLOCK_N"], max(16, next_power_of_2(nodes))),
            **options,
        )  # fmt: skip
        if splits > 1:
            _merge_splits_kernel[(lse.numel(),)](
                parts, parts_lse, out, lse, splits, E=head_dim, BLOCK_E=block_e,
                BLOCK_S=next_power_of_2(splits), **EXACT,
            )  # fmt: skip
    return out, lse
