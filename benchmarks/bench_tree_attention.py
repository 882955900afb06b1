"""tree_attention against SDPA with a boolean mask, FlexAttention and FlashInfer."""

import functools

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import dspark_kernels
from dspark_kernels.reference.tree_attention import tree_attention as reference
from dspark_kernels.reference.tree_attention import unpack_ancestors

from .common import Case, compiled, installed

ONE_TOKEN, OURS_ONE_TOKEN, OURS_PAGED = "SDPA, one token", "ours, one token", "ours, blocks of 16"
YARDSTICKS = ONE_TOKEN, OURS_ONE_TOKEN, OURS_PAGED  # no alternatives
CPU = (  # B, N, S, Hq, Hkv, E
    (1, 32, 4096, 9, 3, 64),
    (1, 32, 16384, 9, 3, 64),
    (1, 32, 4096, 32, 8, 128),
    (1, 32, 16384, 32, 8, 128),
    (1, 1, 4096, 9, 3, 64),
    (1, 1, 16384, 32, 8, 128),
)
GPU = tuple(
    (B, N, S, 32, 8, 128)
    for B, N, S in (
        *((1, 16, 131072), (1, 64, 131072), (8, 32, 16384), (32, 16, 16384)),
        *((1, 32, 2048), (32, 64, 2048)),
    )
)


def tree_words(batch, nodes, device):
    """Ancestor words [B, N, W] of binary trees."""
    related = torch.eye(nodes, dtype=torch.bool)
    for node in range(1, nodes):
        related[node] |= related[(node - 1) // 2]
    words = related.long() << (torch.arange(nodes) % 64)
    words = torch.nn.functional.pad(words, (0, -nodes % 64)).unflatten(1, (-1, 64)).sum(2)
    return words[None].repeat(batch, 1, 1).to(device)


def flex(related, prefix):
    """FlexAttention over a block mask of the prefix and the tree."""
    device, nodes = related.device, related.shape[-1]
    ancestors = related[0]

    def visible(batch, head, query, key):
        node = (key - prefix).clamp(min=0)
        return (key < prefix) | ancestors[query, node]

    @functools.cache
    def mask():
        return create_block_mask(visible, None, None, nodes, prefix + nodes, device=device)

    attend = compiled(flex_attention)

    def call(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return attend(q, k, v, block_mask=mask(), enable_gqa=True).transpose(1, 2)

    return call


def flashinfer_attention(visible):
    """FlashInfer's prefill with a dense mask, one request."""
    import flashinfer

    def call(q, k, v):
        return flashinfer.single_prefill_with_kv_cache(q[0], k[0], v[0], custom_mask=visible)

    return call


def decode_attention(prefix):
    """Plain decoding over the same cache: one token, no mask. It computes something else."""

    def call(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q[:, :1], k[:, :prefix], v[:, :prefix]))
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(q, k, v, enable_gqa=True).transpose(1, 2)

    return call


def one_node(seqlens):
    """Ours for plain decoding: a tree of one node, the last token of the prefix."""
    seqlens, words = seqlens - 1, tree_words(len(seqlens), 1, seqlens.device)

    def call(q, k, v):
        return dspark_kernels.tree_attention(q[:, :1].contiguous(), k, v, seqlens, words)

    return call


def in_blocks(seqlens, words, prefix, size=16):
    """Ours over the same cache as blocks, those of the prefix, a multiple of `size`, shuffled."""
    batch, nodes = words.shape[:2]
    blocks = (prefix + nodes) // size
    table = torch.arange(batch * blocks, dtype=torch.int32).view(batch, blocks)
    table[:, : prefix // size] = table[:, torch.randperm(prefix // size)]
    table = table.to(words.device)

    def call(q, k, v):
        k, v = (cache.view(-1, size, *cache.shape[2:]) for cache in (k, v))
        return dspark_kernels.tree_attention(q, k, v, seqlens, words, block_table=table)

    return call


def cases(device, dtype):
    for B, N, S, Hq, Hkv, E in GPU if device == "cuda" else CPU:
        words = tree_words(B, N, device)
        related = unpack_ancestors(words[:1], N)
        visible = torch.ones(1, 1, N, S + N, dtype=torch.bool, device=device)
        visible[..., S:] = related
        seqlens = torch.full((B,), S, dtype=torch.int32, device=device)

        def make(seed, B=B, N=N, S=S, Hq=Hq, Hkv=Hkv, E=E):
            g = torch.Generator(device).manual_seed(seed)
            shapes = ((B, N, Hq, E), (B, S + N, Hkv, E), (B, S + N, Hkv, E))
            return tuple(torch.randn(s, generator=g, device=device).to(dtype) for s in shapes)

        def ours(q, k, v, seqlens=seqlens, words=words):
            return dspark_kernels.tree_attention(q, k, v, seqlens, words)

        def plain(q, k, v, visible=visible):
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            attend = torch.nn.functional.scaled_dot_product_attention
            return attend(q, k, v, attn_mask=visible, enable_gqa=True).transpose(1, 2)

        others = {"FlexAttention compiled": flex(related, S)}
        if device == "cuda":
            others |= {
                ONE_TOKEN: decode_attention(S),
                OURS_ONE_TOKEN: one_node(seqlens),
                OURS_PAGED: in_blocks(seqlens, words, S),
            }
        if B == 1 and installed("flashinfer", device):
            others["FlashInfer, custom mask"] = flashinfer_attention(visible[0, 0])

        def expected(q, k, v, seqlens=seqlens, words=words, E=E):
            q, k, v = q.float(), k.float(), v.float()
            return reference(q, k, v, seqlens, words, E**-0.5, None, 0, 0.0, None, None)

        yield Case(
            shape=f"{f'B {B} ' * (B > 1)}N {N} S {S} Hq/Hkv/E {Hq}/{Hkv}/{E}",
            make=make,
            ours=ours,
            baselines={"SDPA, boolean mask": plain, **others},
            expected=expected,
            bytes=2 * B * S * Hkv * E * dtype.itemsize,
            flops=4 * B * N * Hq * E * S,
        )
