"""`rotary_append`: queries rotated, keys and values on their way into the cache, in one launch."""

import torch
import triton
import triton.language as tl

from .config import EXACT, ceil_div, next_power_of_2
from .norm import rms_factor

BLOCK_H = 8  # heads of a program


@triton.jit
def _normalized(low, high, these, weight_ptr, column, mask, eps, E: tl.constexpr):
    """Halves of heads [BLOCK_H, BLOCK_E], those of `these` over their root mean square."""
    factor = rms_factor(tl.sum(low * low + high * high, axis=1), eps, E)[:, None]
    low_weight = tl.load(weight_ptr + column, mask, other=0.0).to(tl.float32)
    high_weight = tl.load(weight_ptr + E // 2 + column, mask, other=0.0).to(tl.float32)
    low = tl.where(these[:, None], low * factor * low_weight[None, :], low)
    high = tl.where(these[:, None], high * factor * high_weight[None, :], high)
    return low, high


@triton.jit
def _store(ptrs, low, high, mask, E: tl.constexpr):
    """Both halves of heads, in the dtype of the pointers."""
    tl.store(ptrs, low.to(ptrs.dtype.element_ty), mask)
    tl.store(ptrs + E // 2, high.to(ptrs.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["N", "capacity", "num_blocks", "angles"])
def _rotary_append_kernel(
    qkv_ptr, cos_ptr, sin_ptr, positions_ptr, q_norm_ptr, k_norm_ptr, eps, k_ptr, v_ptr,
    seqlens_ptr, table_ptr, rows_ptr, out_ptr, N, capacity, num_blocks, angles,
    k_stride_block, k_stride_slot, k_stride_h, v_stride_block, v_stride_slot, v_stride_h,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Token program_id(0) of [B, N], heads program_id(1)·BLOCK_H and on."""
    token = tl.program_id(0).to(tl.int64)
    batch, node = token // N, token % N
    row = token
    if rows_ptr is not None:
        row = tl.load(rows_ptr + token)
    slot = tl.load(seqlens_ptr + batch).to(tl.int64) + node
    block, place, fits = batch, slot, slot < capacity
    if table_ptr is not None:
        max_blocks = capacity // BLOCK_SIZE
        entry = tl.minimum(slot // BLOCK_SIZE, max_blocks - 1)
        block = tl.load(table_ptr + batch * max_blocks + entry).to(tl.int64)
        place = slot % BLOCK_SIZE
        fits &= (block >= 0) & (block < num_blocks)

    head, column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_E)
    half = column < E // 2
    is_query, is_value = head < Q_HEADS, head >= Q_HEADS + KV_HEADS
    is_key = (head >= Q_HEADS) & (head < Q_HEADS + KV_HEADS)
    known = ((head < Q_HEADS + 2 * KV_HEADS) & (row >= 0))[:, None] & half[None, :]
    heads = row * (Q_HEADS + 2 * KV_HEADS) + head
    qkv_ptrs = qkv_ptr + heads[:, None] * E + column[None, :]
    low = tl.load(qkv_ptrs, known, other=0.0).to(tl.float32)
    high = tl.load(qkv_ptrs + E // 2, known, other=0.0).to(tl.float32)
    if q_norm_ptr is not None:
        low, high = _normalized(low, high, is_query, q_norm_ptr, column, half, eps, E)
    if k_norm_ptr is not None:
        low, high = _normalized(low, high, is_key, k_norm_ptr, column, half, eps, E)
    angle = tl.maximum(row, 0)
    if positions_ptr is not None:
        angle = tl.minimum(tl.maximum(tl.load(positions_ptr + angle), 0), angles - 1)
    angle = angle * E + column
    cos_low = tl.load(cos_ptr + angle, half, other=0.0).to(tl.float32)[None, :]
    cos_high = tl.load(cos_ptr + angle + E // 2, half, other=0.0).to(tl.float32)[None, :]
    sin_low = tl.load(sin_ptr + angle, half, other=0.0).to(tl.float32)[None, :]
    sin_high = tl.load(sin_ptr + angle + E // 2, half, other=0.0).to(tl.float32)[None, :]
    turned_low = tl.where(is_value[:, None], low, low * cos_low - high * sin_low)
    turned_high = tl.where(is_value[:, None], high, high * cos_high + low * sin_high)

    out_ptrs = out_ptr + (row * Q_HEADS + head)[:, None] * E + column[None, :]
    _store(out_ptrs, turned_low, turned_high, known & is_query[:, None], E)
    written = known & fits
    key = (head - Q_HEADS).to(tl.int64)
    k_ptrs = k_ptr + block * k_stride_block + place * k_stride_slot + key[:, None] * k_stride_h
    _store(k_ptrs + column[None, :], turned_low, turned_high, written & is_key[:, None], E)
    value = key - KV_HEADS
    v_ptrs = v_ptr + block * v_stride_block + place * v_stride_slot + value[:, None] * v_stride_h
    _store(v_ptrs + column[None, :], turned_low, turned_high, written & is_value[:, None], E)


def rotary_append(
    qkv, cos, sin, positions, q_norm_weight, k_norm_weight, eps, k_cache, v_cache, cache_seqlens,
    block_table, rows,
):  # fmt: skip
    """The rotated queries; keys and values go into the caches, see `ops.rotary_append`."""
    qkv, cos, sin, cache_seqlens = (t.contiguous() for t in (qkv, cos, sin, cache_seqlens))
    positions, q_norm_weight, k_norm_weight, block_table, rows = (
        None if t is None else t.contiguous()
        for t in (positions, q_norm_weight, k_norm_weight, block_table, rows)
    )
    *_, heads, head_dim = qkv.shape
    blocks, block_size, kv_heads, _ = k_cache.shape
    max_blocks = 1 if block_table is None else block_table.shape[1]
    batch, nodes = (qkv if rows is None else rows).shape[:2]
    out = qkv.new_empty(*qkv.shape[:-2], heads - 2 * kv_heads, head_dim)
    if batch * nodes == 0:
        return out
    with torch.cuda.device_of(qkv):
        _rotary_append_kernel[batch * nodes, ceil_div(heads, BLOCK_H)](
            qkv, cos, sin, positions, q_norm_weight, k_norm_weight, eps, k_cache, v_cache,
            cache_seqlens, block_table, rows, out, nodes, max_blocks * block_size, blocks, len(cos),
            *k_cache.stride()[:3], *v_cache.stride()[:3],
            Q_HEADS=heads - 2 * kv_heads, KV_HEADS=kv_heads, E=head_dim,
            BLOCK_E=next_power_of_2(head_dim // 2),
            BLOCK_SIZE=1 if block_table is None else block_size, BLOCK_H=BLOCK_H, **EXACT,
        )  # fmt: skip
    return out
