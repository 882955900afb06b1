"""Definition of `fused_linear`."""

import torch

from .rotary_append import rms_norm


def fused_linear(x, weights, biases, gated, residual, norm_weight, eps):
    """Linear layers with gate, residual and the norm behind them, see `ops.fused_linear`."""
    outputs = [x.float() @ weight.float().T for weight in weights]  # [M, N_i]
    if biases:
        outputs = [out + bias.float() for out, bias in zip(outputs, biases, strict=True)]
    if gated:
        gate, up = outputs
        outputs = [torch.nn.functional.silu(gate) * up]
    out = torch.cat(outputs, dim=1)
    if residual is not None:
        out = out + residual.float()
    out = out.to(x.dtype)
    if norm_weight is None:
        return [out]
    return [out, rms_norm(out.float(), norm_weight, eps).to(x.dtype)]
