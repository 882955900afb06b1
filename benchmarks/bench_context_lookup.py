"""context_lookup against its reference."""

import torch

import dspark_kernels
from dspark_kernels.reference.context_lookup import context_lookup as reference

from .common import Case


def cases(device, dtype):
    for B, S in ((1, 1024), (1, 16384), (1, 131072), (4, 16384)):

        def make(seed, B=B, S=S):
            g = torch.Generator(device).manual_seed(seed)
            # token frequencies fall like those of text
            weights = 1.0 / (torch.arange(30000, device=device) + 10.0)
            history = torch.multinomial(weights, B * S, replacement=True, generator=g)
            return history.view(B, S), torch.full((B,), S, dtype=torch.int32, device=device)

        yield Case(
            shape=f"B {B} S {S}",
            make=make,
            ours=dspark_kernels.context_lookup,
            baseline=lambda *tensors: reference(*tensors, 3, 2, 4, 10),
            baseline_name="the PyTorch reference",
            expected=lambda *tensors: reference(*tensors, 3, 2, 4, 10),
            bytes=B * S * 8,
            flops=0,
        )
