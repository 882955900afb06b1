"""linear_topk against F.linear, logsumexp and topk in the same dtype, without noise."""

import torch

import dspark_kernels
from dspark_kernels.reference.linear_topk import linear_topk as reference

from .common import Case, compiled

K = 8


def plain(x, weight, *noise):
    logits = torch.nn.functional.linear(x, weight)
    return *logits.topk(K, dim=1), logits.logsumexp(dim=1)


def expected(x, weight, *noise):
    return reference(x, weight, K, None, *(noise or (None,) * 3), None, 0)


def ours(x, weight, *noise):
    names = ("temperature", "seed", "position")[: len(noise)]
    return dspark_kernels.linear_topk(x, weight, K, **dict(zip(names, noise, strict=True)))


def cases(device, dtype):
    for V, D, M, noisy in (
        (49152, 576, 5, False),
        (49152, 576, 16, False),
        (49152, 576, 64, False),
        (49152, 576, 5, True),
        (49152, 576, 64, True),
        (102400, 4096, 5, False),
        (102400, 4096, 64, False),
    ):

        def make(seed, V=V, D=D, M=M, noisy=noisy):
            g = torch.Generator(device).manual_seed(seed)
            x = torch.randn(M, D, generator=g, device=device).to(dtype)
            weight = torch.empty(V, D, dtype=dtype, device=device).normal_(generator=g)
            weight *= D**-0.5
            rows = torch.arange(M, device=device)
            return (x, weight, torch.ones(M, device=device), rows, rows) if noisy else (x, weight)

        yield Case(
            shape=f"V {V} D {D} M {M}{' noise' if noisy else ''}",
            make=make,
            ours=ours,
            baselines={"F.linear, logsumexp, topk": plain, "the same compiled": compiled(plain)},
            expected=expected,
            bytes=V * D * dtype.itemsize,
            flops=2 * M * V * D,
        )
