"""Speculative sampling of a chain: the p/q rule, for engines which bring sampled drafts."""

import torch

from .._library import ops
from ._check import FLOAT32, INT64, Check


def chain_reject(
    draft_tokens: torch.Tensor,
    draft_logits: torch.Tensor,
    target_logits: torch.Tensor,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Accept or replace a chain of K tokens drawn from the draft, so that the target's law holds.

    With p = softmax(target_logits[i] / τ) and q = softmax(draft_logits[i] / τ), token x of place i
    is kept iff u < p[x] / q[x]; the first that is not kept is replaced by a draw from max(p - q,
    0), and if all are kept a draw from p after the last one is added. Lossless only for tokens
    drawn from q with randomness of their own (say `sample_logits`, stream 0): u comes from stream 1
    of the same noise, and the draws, argmax(log weight + Gumbel), from stream 2.

    Args:
        draft_tokens: int64 [B, K]; a chain ends at the first token outside [0, V), say -1.
        draft_logits: [B, K, V] float32, bfloat16 or float16; NaN counts as -inf.
        target_logits: [B, K + 1, V], same dtype.
        temperature: float32 [B], τ > 0.
        seed: int64 [B].
        position: int64 [B], the absolute position of the first drafted token.

    Returns:
        tokens int64 [B, K + 1]: the kept tokens and the one drawn, -1 padded.
        num_emitted int32 [B].

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, value or device.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Chen et al. 2023 (arXiv 2302.01318).
    """
    check = Check("chain_reject")
    check.tensor("draft_tokens", draft_tokens, "B K", INT64)
    check.tensor("draft_logits", draft_logits, "B K V")
    places = draft_tokens.shape[1] + 1
    check.tensor("target_logits", target_logits, f"B {places} V")
    check.same_dtype("draft_logits", draft_logits.dtype, target_logits=target_logits)
    check.columns("target_logits", target_logits)
    check.tensor("temperature", temperature, "B", FLOAT32)
    check.values("temperature", temperature, 1e-6)
    check.tensor("seed", seed, "B", INT64)
    check.tensor("position", position, "B", INT64)
    return ops.chain_reject.default(
        draft_tokens, draft_logits, target_logits, temperature, seed, position
    )
