"""draft_blocks against the three PyTorch calls it stands for."""

import torch

import dspark_kernels
from dspark_kernels.reference.draft_blocks import draft_blocks as reference

from .common import Case, compiled

H = 5
CPU = (1, 576), (8, 576), (1, 4096), (8, 4096)  # B, D
GPU = (1, 4096), (8, 4096), (64, 4096)


def plain(hidden, weight, bias):
    heads, dim = bias.shape
    linear = torch.nn.functional.linear(hidden, weight.flatten(0, 1), bias.flatten())
    return hidden[:, None] + torch.nn.functional.silu(linear.view(-1, heads, dim))


def cases(device, dtype):
    for B, D in GPU if device == "cuda" else CPU:

        def make(seed, B=B, D=D):
            g = torch.Generator(device).manual_seed(seed)
            shapes = ((B, D), (H, D, D), (H, D))
            tensors = (torch.randn(s, generator=g, device=device) for s in shapes)
            hidden, weight, bias = tensors
            return hidden.to(dtype), (weight * D**-0.5).to(dtype), bias.to(dtype)

        yield Case(
            shape=f"B {B} H {H} D {D}",
            make=make,
            ours=dspark_kernels.draft_blocks,
            baselines={"F.linear, silu, add": plain, "the same compiled": compiled(plain)},
            expected=lambda *tensors: reference(*(t.float() for t in tensors)),
            bytes=H * D * D * dtype.itemsize,
            flops=2 * B * H * D * D,
        )
