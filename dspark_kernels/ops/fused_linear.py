"""Linear layers of a transformer block with everything around them that touches the same rows."""

from collections.abc import Sequence

import torch

from .._library import ops
from ._check import Check

MAX_WEIGHTS = 4


def fused_linear(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    *,
    biases: Sequence[torch.Tensor] = (),
    gated: bool = False,
    residual: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """One to four linear layers on the same few rows, with gate, residual and the norm behind them.

    Equivalent to::

        outputs = [linear(x, weight, bias) for weight, bias in zip(weights, biases)]
        out = silu(outputs[0]) * outputs[1] if gated else torch.cat(outputs, dim=1)
        out = out if residual is None else residual + out
        normed = rms_norm(out, out.shape[-1:], norm_weight, eps)

    For the few rows of a verification pass: the queries, keys and values of a layer in one call,
    its gated MLP in two. The end of a block adds to the residual stream and norms it for the next
    block at once. On CUDA, more rows than a crossover (64 in half precision) go through plain
    products, of which the ends are fused.

    Args:
        x: [M, D] float32, bfloat16 or float16.
        weights: [N_i, D] each, same dtype; the same N for both if gated.
        biases: [N_i] each, same dtype, one per weight; or none.
        gated: SiLU of the first product times the second (SwiGLU, Shazeer 2020, arXiv 2002.05202).
        residual: [M, width of the output], same dtype, added at the end.
        norm_weight: [width of the output], same dtype, if the rows of the output are also wanted
            divided by their root mean square and times this weight.
        eps: added to the mean square.

    Returns:
        out [M, ΣN_i], or [M, N] if gated, in the dtype of `x`; sums are taken in float32. With
        norm_weight (out, normed), both of this shape and dtype.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device.
    """
    check = Check("fused_linear")
    check.tensor("x", x, "M D")
    check.columns("x", x)
    check.require(
        1 <= len(weights) <= MAX_WEIGHTS, "weights", f"hold 1 to {MAX_WEIGHTS} tensors",
        len(weights),
    )  # fmt: skip
    check.require(
        not gated or len(weights) == 2, "weights", "hold 2 tensors if gated", len(weights)
    )
    check.require(
        len(biases) in (0, len(weights)), "biases", "be empty or hold a tensor per weight",
        len(biases),
    )  # fmt: skip
    for i, weight in enumerate(weights):
        columns = "N" if gated else f"N{i}"
        check.tensor(f"weights[{i}]", weight, f"{columns} D")
        check.same_dtype("x", x.dtype, **{f"weights[{i}]": weight})
        if biases:
            check.tensor(f"biases[{i}]", biases[i], columns)
            check.same_dtype("x", x.dtype, **{f"biases[{i}]": biases[i]})
    check.sizes["width"] = sum(len(weight) for weight in weights[: 1 if gated else None])
    check.tensor("residual", residual, "M width", optional=True)
    check.tensor("norm_weight", norm_weight, "width", optional=True)
    check.same_dtype("x", x.dtype, norm_weight=norm_weight, residual=residual)
    check.number("eps", eps, 0)
    outputs = ops.fused_linear.default(
        x, list(weights), list(biases), gated, residual, norm_weight, eps
    )
    return outputs[0] if norm_weight is None else tuple(outputs)
