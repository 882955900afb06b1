"""Attention of a prompt to itself, which both ways of running a target share."""

import torch
import torch.nn.functional as F


def causal_attention(query, key, value, scaling, window, sinks=None):
    """query [B, Hq, N, E], key, value [B, Hkv, N, E] -> [B, N, Hq, E].

    Padding is on the right, where causality hides it. `window`: how many positions are seen, or
    None. `sinks` [Hq]: scores of a slot without a value, which every position sees.
    """
    if sinks is not None:  # the slot stands before the others, and its query is nobody's
        query, key, value = (F.pad(part, (0, 8, 1, 0)) for part in (query, key, value))
        query[..., -1] = sinks[:, None] / scaling
        key[:, :, 0, -1] = 1.0
    mask, length = None, query.shape[2]
    if window is not None and length > window:
        position = torch.arange(length, device=query.device)
        own = position[:, None]
        mask = (position <= own) & (position > own - window)
        if sinks is not None:
            mask[:, 0] = True
        # with a mask, only kernels that hold all scores take fewer heads of keys
        group = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )
    return (out if sinks is None else out[:, :, 1:, :-8]).transpose(1, 2)
