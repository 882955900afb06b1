"""Definition of `seen_tokens`, and of what is done to the logits of such tokens."""

import torch

from .noise import per_row
from .tree_attention import unpack_ancestors


def seen_tokens(history, lengths, vocab_size, tokens, ancestors, slots):
    """Which tokens stand before each draw, one bit per token, see `ops.seen_tokens`."""
    known = torch.arange(history.shape[1], device=history.device) < lengths[:, None]
    text = torch.where(known, history, -1)  # [B, S]
    if tokens is not None:
        nodes = tokens.shape[1]
        path = torch.where(unpack_ancestors(ancestors, nodes), tokens[:, None], -1)  # [B, N, N]
        text = torch.cat((text[:, None].expand(-1, nodes, -1), path), dim=2).flatten(0, 1)
    if slots is not None:
        text = text[slots]
    words = (vocab_size + 63) // 64
    bits = torch.zeros(len(text), words * 64 + 1, dtype=torch.int64, device=text.device)
    inside = (text >= 0) & (text < vocab_size)
    bits.scatter_(1, torch.where(inside, text, words * 64), 1)
    bits = bits[:, :-1].unflatten(1, (words, 64))
    return (bits << torch.arange(64, device=bits.device)).sum(dim=2)


def penalize(logits, ids, seen, repetition_penalty):
    """logits [M, V] of the tokens ids [V], those seen divided by the penalty, or if they are below
    0 multiplied."""
    if repetition_penalty is None:
        return logits
    seen, penalty = per_row(len(logits), seen, repetition_penalty)
    word = (ids // 64).clamp(max=seen.shape[1] - 1)
    marked = ((seen[:, word] >> ids % 64) & 1 == 1) & (ids < seen.shape[1] * 64)
    penalty = penalty[:, None]
    return torch.where(marked, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
