"""Definition of `rotary_append`."""

import torch

from .tree_attention import collect, spread


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, in float32."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def rotary_append(
    qkv, cos, sin, positions, q_norm_weight, k_norm_weight, eps, k_cache, v_cache, cache_seqlens,
    block_table, rows=None,
):  # fmt: skip
    """The rotated queries; keys and values go into the caches, see `ops.rotary_append`."""
    count = len(qkv)
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    if rows is not None:
        qkv, cos, sin = (spread(part, rows) for part in (qkv, cos, sin))
    kv_heads = k_cache.shape[2]
    q, k, v = qkv.split((qkv.shape[2] - 2 * kv_heads, kv_heads, kv_heads), dim=2)
    q, k = (
        _rotate(part.float(), cos.float()[:, :, None], sin.float()[:, :, None], weight, eps)
        for part, weight in ((q, q_norm_weight), (k, k_norm_weight))
    )
    request, node = torch.meshgrid(*map(torch.arange, qkv.shape[:2]), indexing="ij")
    request, node = request.to(qkv.device), node.to(qkv.device)
    slot = cache_seqlens.long()[:, None] + node
    block_size = k_cache.shape[1]
    if block_table is None:
        block, used = request, slot < block_size
    else:
        column = (slot // block_size).clamp(max=block_table.shape[1] - 1)
        block = block_table.long().gather(1, column)
        used = (slot < block_size * block_table.shape[1]) & (block >= 0)
        used &= block < k_cache.shape[0]
    if rows is not None:
        used = used & (rows >= 0)
    place = slot % block_size
    for cache, new in ((k_cache, k), (v_cache, v)):
        cache[block[used], place[used]] = new[used].to(cache.dtype)
    q = q if rows is None else collect(q, rows, count)
    return q.to(qkv.dtype)


def _rotate(x, cos, sin, weight, eps):
    if weight is not None:
        x = rms_norm(x, weight, eps)
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin
