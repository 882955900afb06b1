"""merge_topk against its reference."""

import torch

import dspark_kernels
from dspark_kernels.reference.merge_topk import merge_topk as reference

from .common import Case


def cases(device, dtype):
    for S, M, K in ((2, 5, 8), (8, 64, 8), (8, 64, 64)):

        def make(seed, S=S, M=M, K=K):
            g = torch.Generator(device).manual_seed(seed)
            keys = torch.randn(S, M, K, generator=g, device=device).sort(descending=True).values
            ids = torch.rand(M, S * K, generator=g, device=device).argsort(1)
            ids = ids.view(M, S, K).transpose(0, 1).contiguous()
            return keys, ids, keys.logsumexp(-1), K

        yield Case(
            shape=f"S {S} M {M} K {K}",
            make=make,
            ours=dspark_kernels.merge_topk,
            baselines={"reference in PyTorch": reference},
            expected=reference,
            bytes=S * M * K * 12,
            flops=0,
        )
