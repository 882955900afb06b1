"""rotary_append against the PyTorch calls it stands for."""

import torch

import dspark_kernels
from dspark_kernels.reference.rotary_append import rotary_append as reference

from .common import Case, compiled

CAPACITY, LENGTH = 1024, 500


def plain(qkv, cos, sin, k_cache, v_cache, cache_seqlens):
    kv_heads = k_cache.shape[2]
    q, k, v = qkv.split((qkv.shape[2] - 2 * kv_heads, kv_heads, kv_heads), dim=2)
    cos, sin = cos[:, :, None], sin[:, :, None]

    def rotate(x):
        low, high = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-high, low), dim=-1) * sin

    request = torch.arange(len(qkv), device=qkv.device)[:, None]
    slot = cache_seqlens.long()[:, None] + torch.arange(qkv.shape[1], device=qkv.device)
    k_cache.index_put_((request, slot), rotate(k))
    v_cache.index_put_((request, slot), v)
    return rotate(q)


def cases(device, dtype):
    for N, Hq, Hkv, E in ((1, 9, 3, 64), (32, 9, 3, 64), (32, 32, 8, 128)):

        def make(seed, N=N, Hq=Hq, Hkv=Hkv, E=E):
            g = torch.Generator(device).manual_seed(seed)
            shapes = ((1, N, Hq + 2 * Hkv, E), (1, N, E), *[(1, CAPACITY, Hkv, E)] * 2)
            qkv, angle, k, v = (torch.randn(s, generator=g, device=device) for s in shapes)
            seqlens = torch.tensor([LENGTH], dtype=torch.int32, device=device)
            tensors = (qkv, angle.cos(), angle.sin(), k, v)
            return *(tensor.to(dtype) for tensor in tensors), seqlens

        def expected(qkv, cos, sin, k, v, seqlens):
            tensors = (tensor.float() for tensor in (k, v))
            angles = cos.float(), sin.float()
            return reference(qkv.float(), *angles, *[None] * 3, 0.0, *tensors, seqlens, None)

        yield Case(
            shape=f"N {N} Hq/Hkv/E {Hq}/{Hkv}/{E}",
            make=make,
            ours=dspark_kernels.rotary_append,
            baselines={"PyTorch, two index_put": plain, "torch.compile of it": compiled(plain)},
            expected=expected,
            bytes=2 * N * (Hq + 2 * Hkv) * E * dtype.itemsize,
            flops=0,
        )
