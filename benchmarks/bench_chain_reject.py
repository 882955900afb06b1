"""chain_reject against its reference."""

import torch

import dspark_kernels
from dspark_kernels.reference.chain_reject import chain_reject as reference

from .common import Case


def cases(device, dtype):
    for B, K, V in ((1, 4, 49152), (4, 4, 49152), (1, 4, 151936)):

        def make(seed, B=B, K=K, V=V):
            g = torch.Generator(device).manual_seed(seed)
            target = torch.randn(B, K + 1, V, generator=g, device=device) * 3
            draft = target[:, :K] + 0.3 * torch.randn(B, K, V, generator=g, device=device)
            rows = torch.arange(B, device=device)
            return (
                draft.argmax(dim=2), draft.to(dtype), target.to(dtype),
                torch.ones(B, device=device), rows, rows + 100,
            )  # fmt: skip

        yield Case(
            shape=f"B {B} K {K} V {V}",
            make=make,
            ours=dspark_kernels.chain_reject,
            baseline=reference,
            baseline_name="the PyTorch reference",
            expected=reference,
            bytes=B * (2 * K + 1) * V * dtype.itemsize,
            flops=0,
        )
