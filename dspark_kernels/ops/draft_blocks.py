"""The residual draft heads, all in one launch."""

import torch

from .._library import ops
from ._check import Check


def draft_blocks(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    features: torch.Tensor | None = None,
    residual_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hidden states of H draft heads, each one residual block on the target's hidden state.

    Equivalent to::

        update = torch.einsum("bf,hdf->bhd", features, weight) + bias
        return hidden[:, None] * residual_scale + silu(update)

    Args:
        hidden: [B, D] float32, bfloat16 or float16, the target's normed last hidden state.
        weight: [H, D, F], same dtype.
        bias: [H, D], same dtype.
        features: [B, F], same dtype, what the heads read; `hidden` if None (then F = D).
        residual_scale: [H, D], same dtype; ones if None.

    Returns:
        [B, H, D] in the dtype of `hidden`; sums are taken in float32.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device.

    Source: the heads of Medusa (Cai et al. 2024, arXiv 2401.10774), with a learnt residual scale.
    """
    check = Check("draft_blocks")
    check.tensor("hidden", hidden, "B D")
    check.columns("hidden", hidden)
    check.tensor("weight", weight, "H D F" if features is not None else "H D D")
    check.tensor("bias", bias, "H D")
    check.tensor("features", features, "B F", optional=True)
    check.tensor("residual_scale", residual_scale, "H D", optional=True)
    check.same_dtype(
        "hidden", hidden.dtype, weight=weight, bias=bias, features=features,
        residual_scale=residual_scale,
    )  # fmt: skip
    return ops.draft_blocks.default(hidden, weight, bias, features, residual_scale)
