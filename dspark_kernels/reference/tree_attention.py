"""Definition of `tree_attention`."""

import torch


def tree_attention(
    q, k_cache, v_cache, cache_seqlens, ancestors, scale, block_table, window, softcap,
    k_scale, v_scale, rows=None,
):  # fmt: skip
    """Attention of each node over the cached prefix and its ancestors, see `ops.tree_attention`."""
    if rows is not None:
        bits = ancestors.masked_fill((rows < 0)[:, :, None], 0)
        parts = tree_attention(
            spread(q, rows), k_cache, v_cache, cache_seqlens, bits, scale, block_table, window,
            softcap, k_scale, v_scale,
        )  # fmt: skip
        return tuple(collect(part, rows, len(q)) for part in parts)
    nodes, heads = q.shape[1:3]
    present = None
    if block_table is not None:
        present = (block_table >= 0) & (block_table < k_cache.shape[0])  # [B, max_blocks]
        present = present.repeat_interleave(k_cache.shape[1], dim=1)
        k_cache, v_cache = gather_blocks(k_cache, block_table), gather_blocks(v_cache, block_table)
    keys = dequantise(k_cache, k_scale).repeat_interleave(heads // k_cache.shape[2], dim=2)
    values = dequantise(v_cache, v_scale).repeat_interleave(heads // v_cache.shape[2], dim=2)
    visible = visible_slots(ancestors, cache_seqlens, k_cache.shape[1], nodes, window)  # [B, N, S]
    if present is not None:
        visible &= present[:, None]

    logits = torch.einsum("bnhe,bshe->bhns", q.float(), keys) * scale
    if softcap > 0:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~visible[:, None], float("-inf"))
    lse = torch.logsumexp(logits, dim=-1)  # [B, Hq, N]
    weights = torch.exp(logits - lse[..., None]).nan_to_num(0.0)  # rows that see nothing are zero
    reachable = visible.any(dim=1)[:, :, None, None]  # never multiply a weight of 0 by stale NaNs
    values = torch.where(reachable, values, 0.0)
    out = torch.einsum("bhns,bshe->bnhe", weights, values)
    return out.to(q.dtype).contiguous(), lse.transpose(1, 2).contiguous()


def spread(x, rows):
    """[T, ...] -> [B, N, ...]: to each node its row, zeros where rows [B, N] says -1."""
    known = (rows >= 0).view(*rows.shape, *[1] * (x.dim() - 1))
    return torch.where(known, x[rows.clamp(min=0)], 0)


def collect(x, rows, count):
    """[B, N, ...] -> [T, ...], T being `count`: the reverse of `spread`."""
    out = x.new_zeros(count + 1, *x.shape[2:])  # the last one takes those without a row
    return out.index_copy_(0, (rows % (count + 1)).flatten(), x.flatten(0, 1))[:count]


def gather_blocks(cache, block_table):
    """[num_blocks, block_size, Hkv, E] through block_table [B, max_blocks] -> [B, S, Hkv, E]."""
    return cache[block_table.clamp(0, cache.shape[0] - 1).long()].flatten(1, 2)


def dequantise(cache, scale):
    """Float32 values of a cache [B, S, Hkv, E] whose heads carry a scale [Hkv]."""
    values = cache.float()
    return values if scale is None else values * scale.float()[:, None]


def unpack_ancestors(ancestors, nodes):
    """Ancestor words [B, N, W] -> bool [B, N, N]: column j is row i or an ancestor of it."""
    column = torch.arange(nodes, device=ancestors.device)
    return (ancestors[..., column // 64] >> (column % 64)) & 1 == 1


def visible_slots(ancestors, cache_seqlens, capacity, nodes, window):
    """Which cache slots each node sees: bool [B, N, capacity]."""
    slot = torch.arange(capacity, device=ancestors.device)
    lengths = cache_seqlens.long()[:, None]  # [B, 1]
    related = unpack_ancestors(ancestors, nodes)  # [B, N, N]
    depth = related.sum(dim=-1) - 1  # [B, N]
    column = slot - lengths  # [B, S], which node a slot holds
    in_tail = (column >= 0) & (column < nodes)
    column = column.clamp(0, nodes - 1)
    tail = related.gather(2, column[:, None].expand(-1, nodes, -1)) & in_tail[:, None]
    visible = (slot < lengths)[:, None] | tail
    if window > 0:
        key_position = torch.where(in_tail, lengths + depth.gather(1, column), slot)
        visible &= key_position[:, None] > (lengths + depth)[..., None] - window
    return visible
