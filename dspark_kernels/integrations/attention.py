"""What both ways of running a target share: attention of a prompt to itself, packed rows."""

import torch
import torch.nn.functional as F


def causal_attention(query, key, value, scaling, window):
    """query [B, Hq, N, E], key, value [B, Hkv, N, E] -> [B, N, Hq, E].

    Padding is on the right, where causality hides it. `window`: how many positions are seen, or
    None.
    """
    mask, length = None, query.shape[2]
    if window is not None and length > window:
        position = torch.arange(length, device=query.device)
        distance = position[:, None] - position
        mask = (distance >= 0) & (distance < window)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2)


def pack(x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """[B, N, ...] -> [T, ...]: all slots, or those of `rows`, int64 [T] of request·N + node."""
    x = x.flatten(0, 1)
    return x if rows is None else x[rows]


def unpack(x: torch.Tensor, rows: torch.Tensor | None, batch: int, nodes: int) -> torch.Tensor:
    """[T, ...] -> [B, N, ...], zeros in slots which are not in `rows`."""
    if rows is not None:
        x = x.new_zeros(batch * nodes, *x.shape[1:]).index_copy_(0, rows, x)
    return x.view(batch, nodes, *x.shape[1:])
