"""Attention of the nodes of a draft tree over the KV cache and their ancestors."""

import torch

from .._library import ops
from ._check import FLOAT32, FLOATS, INT32, INT64, MAX_NODES, Check

MAX_HEAD_DIM = 256
FP8, FP8_CAPABILITY = torch.float8_e4m3fn, (8, 9)


def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cache_seqlens: torch.Tensor,
    ancestors: torch.Tensor,
    *,
    scale: float | None = None,
    block_table: torch.Tensor | None = None,
    window: int | None = None,
    softcap: float = 0.0,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of each of N tree nodes over the cached prefix and the node's ancestors.

    The keys and values of the nodes are in the cache already: node i of request b at slot
    cache_seqlens[b] + i. A node at depth d sees the slots below cache_seqlens[b], and the slots of
    the nodes in its `ancestors` words (itself among them); its position is cache_seqlens[b] + d.

    Args:
        q: [B, N, Hq, E] float32, bfloat16 or float16, or with `rows` [T, Hq, E]; N and E up to 256.
        k_cache, v_cache: [B, S, Hkv, E] with Hkv dividing Hq; or, with `block_table`,
            [num_blocks, block_size, Hkv, E]. Dtype of `q`, or float8_e4m3fn, on a GPU from compute
            capability 8.9 on.
        cache_seqlens: int32 [B], tokens in the cache before the tree; cache_seqlens + N <= S.
        ancestors: int64 [B, N, ceil(N / 64)], see `DraftTree`. A node without any bit, its own
            included, takes no part: what is returned for it means nothing, and may cost nothing.
        scale: of the dot products; 1 / sqrt(E) if None.
        block_table: int32 [B, max_blocks], the block of each run of block_size slots; entries
            outside 0 .. num_blocks - 1 are never read.
        window: a node at position p sees positions above p - window only; None for no limit.
        softcap: c > 0 replaces the scaled dot product s by c · tanh(s / c).
        k_scale, v_scale: float32 [Hkv], factors of the cached keys and values; ones if None.
        rows: int64 [B, N], for a batch whose trees differ in size: the row of `q` which holds a
            node, each another; -1 for a node that takes no part, whose slot is never read.
        return_lse: also return the logsumexp of each row's scores.

    Returns:
        The shape and dtype of `q`; with return_lse also float32, without the last dimension.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, value or device.

    Source: the layout of FlashAttention's flash_attn_with_kvcache; tree masks as in SpecInfer
    (Miao et al. 2024, arXiv 2305.09781).
    """
    check = Check("tree_attention")
    check.tensor("q", q, "B N Hq E" if rows is None else "T Hq E")
    check.tensor("rows", rows, "B N", INT64, optional=True)
    nodes, (heads, head_dim) = (q if rows is None else rows).shape[1], q.shape[-2:]
    check.require(1 <= nodes <= MAX_NODES, "q", f"have 1 to {MAX_NODES} nodes (N)", f"N={nodes}")
    check.require(
        1 <= head_dim <= MAX_HEAD_DIM, "q", f"have head dimensions from 1 to {MAX_HEAD_DIM}",
        head_dim,
    )  # fmt: skip
    cache_dims = "B S Hkv E" if block_table is None else "num_blocks block_size Hkv E"
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        check.tensor(name, cache, cache_dims, (*FLOATS, FP8))
        if cache.dtype != FP8:
            check.same_dtype("q", q.dtype, **{name: cache})
    check.same_dtype("k_cache", k_cache.dtype, v_cache=v_cache)
    if k_cache.dtype == FP8 and k_cache.is_cuda:
        capability = torch.cuda.get_device_capability(k_cache.device)
        check.require(
            capability >= FP8_CAPABILITY, "k_cache",
            "be on a GPU of compute capability 8.9 or later to be float8_e4m3fn", capability,
        )  # fmt: skip
    kv_heads = k_cache.shape[2]
    check.require(
        kv_heads > 0 and heads % kv_heads == 0,
        "k_cache", f"have shape [{cache_dims.replace(' ', ', ')}] with Hkv dividing Hq={heads}",
        f"Hkv={kv_heads}",
    )  # fmt: skip
    check.tensor("cache_seqlens", cache_seqlens, "B", INT32)
    check.tensor("ancestors", ancestors, f"B N {(nodes + 63) // 64}", INT64)
    check.tensor("block_table", block_table, "B max_blocks", INT32, optional=True)
    slots = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    check.require(nodes <= slots, "k_cache", f"hold N={nodes} nodes per request", f"{slots} slots")
    check.values("cache_seqlens", cache_seqlens, 0, slots - nodes)
    if window is not None:
        check.integer("window", window, 1)
    if scale is None:
        scale = head_dim**-0.5
    check.number("scale", scale)
    check.number("softcap", softcap, 0)
    check.tensor("k_scale", k_scale, "Hkv", FLOAT32, optional=True)
    check.tensor("v_scale", v_scale, "Hkv", FLOAT32, optional=True)
    check.values("rows", rows, -1, len(q) - 1)
    out, lse = ops.tree_attention.default(
        q, k_cache, v_cache, cache_seqlens, ancestors, scale, block_table, window or 0, softcap,
        k_scale, v_scale, rows,
    )  # fmt: skip
    return (out, lse) if return_lse else out
