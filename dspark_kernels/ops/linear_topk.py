"""Top-k of a linear layer without its logits: the draft heads' candidates and the target's draw."""

import torch

from .._library import ops
from ._check import INT64, Check

MAX_K = 64


def linear_topk(
    x: torch.Tensor,
    weight: torch.Tensor,
    k: int,
    *,
    bias: torch.Tensor | None = None,
    temperature: torch.Tensor | None = None,
    seed: torch.Tensor | None = None,
    position: torch.Tensor | None = None,
    id_map: torch.Tensor | None = None,
    vocab_offset: int = 0,
    seen: torch.Tensor | None = None,
    repetition_penalty: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k largest of x·Wᵀ per row, and its logsumexp, in one pass over W and without the logits.

    Where a row's temperature τ is positive the quantity is (x·Wᵀ + bias) / τ + Gumbel noise, so
    that the first id is a draw from softmax((x·Wᵀ + bias) / τ). Equivalent to::

        scores = penalize(x.float() @ weight.float().T + bias) / τ + gumbel(seed, position, ids)
        keys, columns = scores.sort(descending=True, stable=True)
        return keys[:, :k], ids[columns[:, :k]], scores.logsumexp(1)

    Args:
        x: [M, D] float32, bfloat16 or float16.
        weight: [V, D], same dtype: the LM head, or a shard or a selection of its rows.
        k: 1 to 64, at most V.
        bias: [V], same dtype, or None.
        temperature: float32 [B], 0 for no noise; None means 0 in every row. B divides M: an
            entry serves M / B rows in succession, say those of a request.
        seed, position: int64 [B] and [M], of the noise (see `reference.noise`); needed with
            `temperature`.
        id_map: int64 [V], 0 or more, strictly increasing: the token each row of `weight` stands
            for. Noise and results use these ids. None: row number + vocab_offset.
        vocab_offset: the id of the first row when `weight` is a shard; 0 together with `id_map`.
        seen: int64 [R, words], the tokens before each draw, by ids, as `seen_tokens` gives them;
            ids beyond its bits are not seen. R divides M, like B.
        repetition_penalty: float32 [B], above 0, 1 for off; together with `seen`, whose tokens'
            logits are divided by it where they are above 0, else multiplied (Keskar et al. 2019).

    Returns:
        keys float32 [M, k] in descending order, ids int64 [M, k], logsumexp float32 [M]. Ties go to
        the lowest row, NaN scores count as -inf.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, value or device.

    Source: the Gumbel-max trick; fused with the LM head as in FlashSampling.
    """
    check = Check("linear_topk")
    check.tensor("x", x, "M D")
    check.columns("x", x)
    check.tensor("weight", weight, "V D")
    check.integer("k", k, 1, MAX_K)
    check.require(k <= weight.shape[0], "k", f"be at most V={weight.shape[0]}", k)
    check.tensor("bias", bias, "V", optional=True)
    check.same_dtype("x", x.dtype, weight=weight, bias=bias)
    check.noise(temperature, seed, position)
    check.penalty(seen, repetition_penalty)
    check.tensor("id_map", id_map, "V", INT64, optional=True)
    check.integer("vocab_offset", vocab_offset, 0)
    check.require(
        id_map is None or vocab_offset == 0, "vocab_offset", "be 0 with id_map", vocab_offset
    )
    return ops.linear_topk.default(
        x, weight, k, bias, temperature, seed, position, id_map, vocab_offset, seen,
        repetition_penalty,
    )  # fmt: skip
