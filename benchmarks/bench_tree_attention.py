"""tree_attention against scaled_dot_product_attention with enable_gqa and a boolean mask."""

import torch

import dspark_kernels
from dspark_kernels.reference.tree_attention import tree_attention as reference
from dspark_kernels.reference.tree_attention import unpack_ancestors

from .common import Case


def tree_words(nodes, device):
    """Ancestor words [1, N, W] of a binary tree."""
    related = torch.eye(nodes, dtype=torch.bool)
    for node in range(1, nodes):
        related[node] |= related[(node - 1) // 2]
    words = related.long() << (torch.arange(nodes) % 64)
    words = torch.nn.functional.pad(words, (0, -nodes % 64)).unflatten(1, (-1, 64)).sum(2)
    return words[None].to(device)


def cases(device, dtype):
    for N, S, Hq, Hkv, E in (
        (32, 4096, 9, 3, 64),
        (32, 16384, 9, 3, 64),
        (32, 4096, 32, 8, 128),
        (32, 16384, 32, 8, 128),
        (1, 4096, 9, 3, 64),
        (1, 16384, 32, 8, 128),
    ):
        words = tree_words(N, device)
        related = unpack_ancestors(words, N)
        visible = torch.ones(1, 1, N, S + N, dtype=torch.bool, device=device)
        visible[..., S:] = related
        seqlens = torch.full((1,), S, dtype=torch.int32, device=device)

        def make(seed, N=N, S=S, Hq=Hq, Hkv=Hkv, E=E):
            g = torch.Generator(device).manual_seed(seed)
            shapes = ((1, N, Hq, E), (1, S + N, Hkv, E), (1, S + N, Hkv, E))
            return tuple(torch.randn(s, generator=g, device=device).to(dtype) for s in shapes)

        def ours(q, k, v, seqlens=seqlens, words=words):
            return dspark_kernels.tree_attention(q, k, v, seqlens, words)

        def plain(q, k, v, visible=visible):
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            attend = torch.nn.functional.scaled_dot_product_attention
            return attend(q, k, v, attn_mask=visible, enable_gqa=True).transpose(1, 2)

        def expected(q, k, v, seqlens=seqlens, words=words, E=E):
            q, k, v = q.float(), k.float(), v.float()
            return reference(q, k, v, seqlens, words, E**-0.5, None, 0, 0.0, None, None)

        yield Case(
            shape=f"N {N} S {S} Hq/Hkv/E {Hq}/{Hkv}/{E}",
            make=make,
            ours=ours,
            baseline=plain,
            baseline_name="scaled_dot_product_attention, enable_gqa, boolean mask",
            expected=expected,
            bytes=2 * S * Hkv * E * dtype.itemsize,
            flops=4 * N * Hq * E * S,
        )
