"""Definition of `sample_logits`."""

import torch

from .linear_topk import perturb
from .noise import per_row
from .seen_tokens import penalize


def sample_logits(
    logits, ids, temperature, seed, position, top_k, top_p, min_p, seen, repetition_penalty
):
    """One Gumbel-max draw per row from optionally truncated logits, see `ops.sample_logits`."""
    options = per_row(len(logits), temperature, seed, top_k, top_p, min_p)
    temperature, seed, top_k, top_p, min_p = options
    columns = torch.arange(logits.shape[1], device=logits.device)
    logits = penalize(logits.float(), columns, seen, repetition_penalty)
    logits = torch.where(logits.isnan(), float("-inf"), logits)
    kept = logits
    if temperature is not None:
        scaled = logits / torch.where(temperature > 0, temperature, 1.0)[:, None]
        kept = torch.where(kept_tokens(scaled, top_k, top_p, min_p), logits, float("-inf"))
        kept = torch.where(temperature[:, None] > 0, kept, logits)
    tokens = columns if ids is None else ids
    drawn = perturb(kept, tokens, temperature, seed, position).argmax(dim=1)
    return drawn if ids is None else ids.gather(1, drawn[:, None])[:, 0]


def kept_tokens(scaled, top_k, top_p, min_p):
    """Which tokens of logits/τ [M, V] survive top-k, top-p and min-p; equal logits share a fate."""
    ordered = scaled.sort(dim=1, descending=True).values
    kept = torch.ones_like(scaled, dtype=torch.bool)
    if top_k is not None:
        width = scaled.shape[1]
        k = torch.where(top_k > 0, top_k, width).clamp(max=width).long()
        kept = scaled >= ordered.gather(1, k[:, None] - 1)
        ordered = torch.where(ordered >= ordered.gather(1, k[:, None] - 1), ordered, float("-inf"))
    if top_p is not None:
        # a token stays while the tokens above it hold less than top_p of the mass
        probability = ordered.softmax(dim=1)
        above = probability.cumsum(dim=1) - probability
        stays = (above < top_p[:, None]) | (top_p[:, None] >= 1)
        stays[:, 0] = True
        lowest = torch.where(stays, ordered, float("inf")).amin(dim=1, keepdim=True)
        kept &= scaled >= lowest
    if min_p is not None:
        best = scaled.amax(dim=1, keepdim=True)
        floor = best + torch.log(min_p.clamp(min=0))[:, None]
        kept &= (scaled >= floor) | (min_p <= 0)[:, None]
    return kept
