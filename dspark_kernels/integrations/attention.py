"""Attention of a prompt to itself, which both ways of running a target share."""

import torch
import torch.nn.functional as F

ROWS = 256  # of a prompt whose scores are in memory at a time, where SDPA cannot serve


def causal_attention(query, key, value, scaling, window, sinks=None, softcap=None):
    """query [B, Hq, N, E], key, value [B, Hkv, N, E] -> [B, N, Hq, E].

    Padding is on the right, where causality hides it. `window`: how many positions are seen, or
    None. `sinks` [Hq]: scores of a slot without a value, which every position sees. `softcap`: c of
    scores c·tanh(s / c), or None; without sinks then.
    """
    if softcap is not None:
        return _softcapped(query, key, value, scaling, window, softcap)
    if sinks is not None:  # the slot stands before the others, and its query is nobody's
        query, key, value = (F.pad(part, (0, 8, 1, 0)) for part in (query, key, value))
        query[..., -1] = sinks[:, None] / scaling
        key[:, :, 0, -1] = 1.0
    mask, length = None, query.shape[2]
    if window is not None and length > window:
        position = torch.arange(length, device=query.device)
        mask = _seen(position, position, window)
        if sinks is not None:
            mask[:, 0] = True
        # with a mask, only kernels that hold all scores take fewer heads of keys
        key, value = _per_head(query, key, value)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )
    return (out if sinks is None else out[:, :, 1:, :-8]).transpose(1, 2)


def _seen(rows, columns, window):
    """Which positions [N] each of the positions [M] sees, bool [M, N]."""
    seen = columns <= rows[:, None]
    return seen if window is None else seen & (columns > rows[:, None] - window)


def _per_head(query, key, value):
    """Keys and values of every query head: [B, Hq, N, E] each."""
    group = query.shape[1] // key.shape[1]
    return (part.repeat_interleave(group, dim=1) for part in (key, value))


def _softcapped(query, key, value, scaling, window, softcap):
    key, value = _per_head(query, key, value)
    parts, positions = [], torch.arange(query.shape[2], device=query.device)
    for rows, some in zip(query.split(ROWS, dim=2), positions.split(ROWS), strict=True):
        scores = softcap * torch.tanh(rows @ key.mT * (scaling / softcap))
        scores = scores.masked_fill(~_seen(some, positions, window), float("-inf"))
        parts.append(scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value)
    return torch.cat(parts, dim=2).transpose(1, 2)
