"""fused_linear against the PyTorch calls it stands for: the layers of SmolLM2 and of a 7B model."""

import torch
import torch.nn.functional as F

import dspark_kernels
from dspark_kernels.reference.fused_linear import fused_linear as reference

from .common import Case, compiled

LAYERS = {  # rows of the weights, whether gated
    576: {"qkv": ((576, 192, 192), False), "gate, up": ((1536, 1536), True)},
    4096: {"qkv": ((4096, 1024, 1024), False), "gate, up": ((14336, 14336), True)},
}


def plain(gated):
    def call(x, norm_weight, *weights):
        rows = F.rms_norm(x, x.shape[1:], norm_weight, 1e-5)
        outputs = [F.linear(rows, weight) for weight in weights]
        return F.silu(outputs[0]) * outputs[1] if gated else torch.cat(outputs, dim=1)

    return call


def cases(device, dtype):
    if device != "cpu":  # the op is meant for the CPU
        return
    shapes = [(D, name, M) for D in LAYERS for name in LAYERS[D] for M in (1, 16, 64)]
    for D, name, M in shapes:
        columns, gated = LAYERS[D][name]

        def make(seed, D=D, M=M, columns=columns):
            g = torch.Generator(device).manual_seed(seed)
            shapes = ((M, D), (D,), *((n, D) for n in columns))
            x, norm, *weights = (torch.randn(s, generator=g, device=device) for s in shapes)
            weights = [(weight * D**-0.5).to(dtype) for weight in weights]
            return x.to(dtype), norm.to(dtype), *weights

        def ours(x, norm_weight, *weights, gated=gated):
            return dspark_kernels.fused_linear(
                x, weights, norm_weight=norm_weight, eps=1e-5, gated=gated
            )

        def expected(x, norm_weight, *weights, gated=gated):
            floats = [weight.float() for weight in weights]
            return reference(x.float(), floats, [], norm_weight.float(), 1e-5, gated, None)

        yield Case(
            shape=f"D {D} M {M} {name}",
            make=make,
            ours=ours,
            baselines={
                "rms_norm and F.linear": plain(gated),
                "torch.compile of it": compiled(plain(gated)),
            },
            expected=expected,
            bytes=sum(columns) * D * dtype.itemsize,
            flops=2 * M * D * sum(columns),
        )
