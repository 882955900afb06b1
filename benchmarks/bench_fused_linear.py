"""fused_linear against the PyTorch calls it stands for: the layers of SmolLM2 and of a 7B model."""

import itertools

import torch
import torch.nn.functional as F

import dspark_kernels
from dspark_kernels.reference.fused_linear import fused_linear as reference

from .common import Case, compiled

LAYERS = {  # D, rows of the weights, whether gated, whether it ends a block: residual and norm
    (576, "qkv"): (576, (576, 192, 192), False, False),
    (576, "gate, up"): (576, (1536, 1536), True, False),
    (4096, "qkv"): (4096, (4096, 1024, 1024), False, False),
    (4096, "out"): (4096, (4096,), False, True),
    (4096, "gate, up"): (4096, (14336, 14336), True, False),
    (4096, "down"): (14336, (4096,), False, True),
}


def plain(gated):
    def call(x, residual, norm_weight, *weights):
        outputs = [F.linear(x, weight) for weight in weights]
        out = F.silu(outputs[0]) * outputs[1] if gated else torch.cat(outputs, dim=1)
        if norm_weight is None:
            return out
        out = residual + out
        return out, F.rms_norm(out, out.shape[1:], norm_weight, 1e-5)

    return call


def cases(device, dtype):
    layers = [layer for layer in LAYERS if device == "cpu" or layer[0] == 4096]
    for (width, name), M in itertools.product(layers, (1, 16, 64)):
        D, columns, gated, ends = LAYERS[width, name]

        def make(seed, D=D, M=M, columns=columns, ends=ends):
            g = torch.Generator(device).manual_seed(seed)

            def normal(*shape, scale=1.0):
                return (torch.randn(shape, generator=g, device=device) * scale).to(dtype)

            residual, norm = (normal(M, *columns), normal(*columns)) if ends else (None, None)
            weights = (normal(n, D, scale=D**-0.5) for n in columns)
            return normal(M, D), residual, norm, *weights

        def ours(x, residual, norm_weight, *weights, gated=gated):
            return dspark_kernels.fused_linear(
                x, weights, gated=gated, residual=residual, norm_weight=norm_weight, eps=1e-5
            )

        def expected(x, residual, norm_weight, *weights, gated=gated):
            floats = [weight.float() for weight in weights]
            return tuple(reference(x.float(), floats, [], gated, residual, norm_weight, 1e-5))

        yield Case(
            shape=f"D {width} M {M} {name}",
            make=make,
            ours=ours,
            baselines={
                "F.linear, residual and rms_norm": plain(gated),
                "torch.compile of it": compiled(plain(gated)),
            },
            expected=expected,
            compared=lambda output: torch.cat(output) if isinstance(output, tuple) else output,
            bytes=sum(columns) * D * dtype.itemsize,
            flops=2 * M * D * sum(columns),
        )
