"""The target's draw from materialised logits: for truncated sampling and logit processors."""

import torch

from .._library import ops
from ._check import FLOAT32, INT32, INT64, Check
from .linear_topk import MAX_K


def sample_logits(
    logits: torch.Tensor,
    *,
    ids: torch.Tensor | None = None,
    temperature: torch.Tensor | None = None,
    seed: torch.Tensor | None = None,
    position: torch.Tensor | None = None,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
    min_p: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
    repetition_penalty: torch.Tensor | None = None,
) -> torch.Tensor:
    """One draw per row from softmax(logits / τ), cut by top-k, then top-p, then min-p.

    The draw is argmax(logits / τ + Gumbel noise) over the tokens kept, with the noise of
    `linear_topk`; at τ = 0 it is argmax(logits). Truncation looks at logits / τ only, and tokens of
    equal logits are kept or dropped together: top-k keeps all that reach the k-th largest, top-p
    keeps a token while those above it hold less than top_p of the (top-k) mass, min-p keeps
    p >= min_p · max p.

    Args:
        logits: [M, V] float32, bfloat16 or float16.
        ids: int64 [M, V], V at most 64: the token that each logit is of, such as `linear_topk`
            lists them, where top-k leaves out all others; None: its column. Noise is of tokens.
        temperature: float32 [B], 0 for argmax; None means 0 in every row. B, the same in all
            options, divides M: an entry serves M / B rows in succession, say those of a request.
        seed, position: int64 [B] and [M], of the noise; needed with `temperature`.
        top_k: int32 [B], 0 for off.
        top_p: float32 [B] in (0, 1], 1 for off.
        min_p: float32 [B] in [0, 1], 0 for off.
        seen: int64 [R, words], the tokens before each draw, by ids, as `seen_tokens` gives them;
            ids beyond its bits are not seen. R divides M, like B.
        repetition_penalty: float32 [B], above 0, 1 for off; together with `seen`, whose tokens'
            logits are divided by it where they are above 0, else multiplied. Not with `ids`: what
            `linear_topk` lists, it has penalized.

    Returns:
        The tokens drawn, int64 [M]; ties go to the first column, NaN logits count as -inf.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, value or device.
    """
    check = Check("sample_logits")
    check.tensor("logits", logits, "M V")
    check.columns("logits", logits)
    check.tensor("ids", ids, "M V", INT64, optional=True)
    few = ids is None or logits.shape[1] <= MAX_K
    check.require(few, "logits", f"have at most {MAX_K} columns with ids", list(logits.shape))
    check.values("ids", ids, 0, 2**32 - 1)
    check.noise(temperature, seed, position)
    check.option("top_k", top_k, INT32)
    check.values("top_k", top_k, 0)
    check.option("top_p", top_p, FLOAT32)
    check.values("top_p", top_p, 0, 1)
    check.option("min_p", min_p, FLOAT32)
    check.values("min_p", min_p, 0, 1)
    check.penalty(seen, repetition_penalty)
    check.require(ids is None or seen is None, "seen", "be left out with ids", "both")
    return ops.sample_logits.default(
        logits, ids, temperature, seed, position, top_k, top_p, min_p, seen, repetition_penalty
    )
