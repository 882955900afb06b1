"""Definition of `linear_topk`."""

import torch

from .noise import gumbel, per_row
from .seen_tokens import penalize


def linear_topk(
    x, weight, k, bias, temperature, seed, position, id_map, vocab_offset, seen, repetition_penalty
):
    """Top-k and logsumexp of x·Wᵀ + bias, perturbed where τ > 0, see `ops.linear_topk`."""
    logits = x.float() @ weight.float().T  # [M, V]
    if bias is not None:
        logits = logits + bias.float()
    rows = torch.arange(weight.shape[0], device=x.device)
    ids = rows + vocab_offset if id_map is None else id_map
    logits = penalize(logits, ids, seen, repetition_penalty)
    temperature, seed = per_row(len(x), temperature, seed)
    return select_topk(perturb(logits, ids, temperature, seed, position), ids, k)


def perturb(logits, ids, temperature, seed, position):
    """logits / τ + Gumbel noise in rows with τ > 0, the logits elsewhere; NaN counts as -inf."""
    if temperature is not None and temperature.numel():
        scale = torch.where(temperature > 0, temperature, 1.0)[:, None]
        noisy = logits / scale + gumbel(seed, position, ids)
        logits = torch.where(temperature[:, None] > 0, noisy, logits)
    return torch.where(logits.isnan(), float("-inf"), logits)


def select_topk(scores, ids, k):
    """The k largest of scores [M, V], descending, ties in column order, and the logsumexp."""
    keys, columns = torch.sort(scores, dim=1, descending=True, stable=True)
    return (
        keys[:, :k].contiguous(),
        ids[columns[:, :k]],
        torch.logsumexp(scores, dim=1),
    )
