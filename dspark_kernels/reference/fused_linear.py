"""Definition of `fused_linear`."""

import torch

from .rotary_append import rms_norm


def fused_linear(x, weights, biases, norm_weight, eps, gated, residual):
    """Linear layers with their norm, gate and residual, see `ops.fused_linear`."""
    rows = x.float()
    if norm_weight is not None:
        rows = rms_norm(rows, norm_weight, eps)
    outputs = [rows @ weight.float().T for weight in weights]  # [M, N_i]
    if biases:
        outputs = [out + bias.float() for out, bias in zip(outputs, biases, strict=True)]
    if gated:
        gate, up = outputs
        outputs = [torch.nn.functional.silu(gate) * up]
    out = torch.cat(outputs, dim=1)
    if residual is not None:
        out = out + residual.float()
    return out.to(x.dtype)
