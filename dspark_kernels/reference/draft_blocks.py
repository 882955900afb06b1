"""Definition of `draft_blocks`."""

import torch


def draft_blocks(hidden, weight, bias, features=None, residual_scale=None):
    """residual_scale_i · hidden + SiLU(W_i f + b_i) for every head i, see `ops.draft_blocks`."""
    source = hidden if features is None else features  # [B, F]
    update = torch.einsum("bf,hdf->bhd", source.float(), weight.float()) + bias.float()
    residual = hidden.float()[:, None]  # [B, 1, D]
    if residual_scale is not None:
        residual = residual * residual_scale.float()
    return (residual + torch.nn.functional.silu(update)).to(hidden.dtype)
