"""Definition of `chain_reject`."""

import torch

from .noise import STREAM_ACCEPT, STREAM_RESIDUAL, gumbel, uniform


def chain_reject(draft_tokens, draft_logits, target_logits, temperature, seed, position):
    """Speculative sampling of a chain of K drafted tokens, see `ops.chain_reject`."""
    batch, length = draft_tokens.shape
    vocab = target_logits.shape[2]
    rows = torch.arange(batch, device=draft_tokens.device)
    step = torch.arange(length, device=draft_tokens.device)
    log_p = log_softmax(target_logits, temperature)  # [B, K + 1, V]
    log_q = log_softmax(draft_logits, temperature)  # [B, K, V]

    known = (draft_tokens >= 0) & (draft_tokens < vocab)
    drafted = known.cumprod(dim=1).sum(dim=1)  # tokens before the first -1
    token = torch.where(known, draft_tokens, 0)[..., None]
    ratio = torch.exp(log_p[:, :length].gather(2, token) - log_q.gather(2, token))[..., 0]
    zero = torch.zeros(1, dtype=torch.int64, device=draft_tokens.device)
    draws = uniform(
        seed[:, None].expand(-1, length).flatten(), (position[:, None] + step).flatten(), zero,
        STREAM_ACCEPT,
    ).view(batch, length)  # fmt: skip
    accepted = ((draws < ratio) & (step < drafted[:, None])).cumprod(dim=1).sum(dim=1)  # [B]

    # where all were accepted the bonus is a draw from p: a residual with q = 0
    p = log_p[rows, accepted].exp().nan_to_num(0.0)
    q = torch.zeros_like(p)
    if length:
        q = log_q[rows, accepted.clamp(max=length - 1)].exp().nan_to_num(0.0)
        q = torch.where((accepted < drafted)[:, None], q, 0.0)
    residual = (p - q).clamp(min=0)
    residual = torch.where(residual.sum(dim=1, keepdim=True) > 0, residual, p)
    ids = torch.arange(vocab, device=draft_tokens.device)
    noise = gumbel(seed, position + accepted, ids, STREAM_RESIDUAL)
    drawn = (residual.log() + noise).argmax(dim=1, keepdim=True)

    tokens = torch.cat((draft_tokens, torch.zeros_like(drawn)), 1)
    tokens.scatter_(1, accepted[:, None], drawn)
    emitted = torch.arange(length + 1, device=tokens.device) <= accepted[:, None]
    return torch.where(emitted, tokens, -1), (accepted + 1).int()


def log_softmax(logits, temperature):
    """log softmax(logits / τ) of logits [B, K, V] in float32; NaN logits count as -inf."""
    logits = torch.where(logits.isnan(), float("-inf"), logits.float())
    return (logits / temperature[:, None, None]).log_softmax(dim=-1)
