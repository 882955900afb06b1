"""Rotary embedding of new tokens, and their keys and values into the KV cache."""

import torch

from .._library import ops
from ._check import INT32, INT64, Check

MAX_HEAD_DIM = 512


def rotary_append(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cache_seqlens: torch.Tensor,
    *,
    positions: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    q_norm_weight: torch.Tensor | None = None,
    k_norm_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate queries and keys by their positions and write keys and values behind the cache's end.

    Equivalent to, for each head of the queries and keys::

        x = x if norm_weight is None else rms_norm(x, (E,), norm_weight, eps)
        x = x * cos + cat((-x[E / 2:], x[: E / 2])) * sin

    and `k_cache[b, cache_seqlens[b] + n] = k[b, n]`, the same for the values. What lies beyond the
    capacity, or in a block outside the cache, is not written. `cache_seqlens` stays as it is: the
    new entries are those of the current tree, and `accept_tree` says which remain.

    Args:
        qkv: [B, N, Hq + 2·Hkv, E] float32, bfloat16 or float16: queries, keys, values; E even.
            With `rows` [T, Hq + 2·Hkv, E].
        cos, sin: [B, N, E] or [T, E], same dtype: of the angles at the tokens' positions. With
            `positions` tables of all of them, [L, E].
        k_cache, v_cache: [B, S, Hkv, E], or paged [num_blocks, block_size, Hkv, E], same dtype;
            written in place.
        cache_seqlens: int32 [B], tokens in the cache.
        positions: int64 [B, N] or [T], 0 to L - 1, the rows of cos and sin.
        block_table: int32 [B, max_blocks] of a paged cache.
        q_norm_weight, k_norm_weight: [E], same dtype; heads are normalized first (Qwen3).
        eps: added to the mean square.
        rows: int64 [B, N], the row of `qkv` which holds a request's n-th token, each another; -1
            for none. See `tree_attention`.

    Returns:
        The rotated queries, [B, N, Hq, E] or [T, Hq, E] in the dtype of `qkv`; arithmetic is in
        float32.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device.

    Source: RoFormer (Su et al. 2021, arXiv 2104.09864), in the layout of halves of GPT-NeoX.
    """
    check = Check("rotary_append")
    tokens = "B N" if rows is None else "T"
    check.tensor("qkv", qkv, f"{tokens} heads E")
    angles = tokens if positions is None else "L"
    check.tensor("cos", cos, f"{angles} E")
    check.tensor("sin", sin, f"{angles} E")
    check.tensor("positions", positions, tokens, INT64, optional=True)
    check.require(positions is None or len(cos) >= 1, "cos", "have a row per position", len(cos))
    check.values("positions", positions, 0, len(cos) - 1)
    check.tensor("rows", rows, "B N", INT64, optional=True)
    heads, head_dim = qkv.shape[-2:]
    check.require(
        head_dim % 2 == 0 and head_dim <= MAX_HEAD_DIM, "qkv",
        f"have an even head dimension up to {MAX_HEAD_DIM}", head_dim,
    )  # fmt: skip
    dims = "B S Hkv E" if block_table is None else "num_blocks block_size Hkv E"
    check.tensor("k_cache", k_cache, dims)
    check.tensor("v_cache", v_cache, dims)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        check.require(
            cache.stride(3) == 1, name, "have adjacent elements in a head", cache.stride()
        )
    kv_heads = k_cache.shape[2]
    check.require(heads > 2 * kv_heads, "qkv", f"have more than {2 * kv_heads} heads", heads)
    check.tensor("cache_seqlens", cache_seqlens, "B", INT32)
    check.values("cache_seqlens", cache_seqlens, 0)
    check.values("rows", rows, -1, len(qkv) - 1)
    check.tensor("block_table", block_table, "B max_blocks", INT32, optional=True)
    check.tensor("q_norm_weight", q_norm_weight, "E", optional=True)
    check.tensor("k_norm_weight", k_norm_weight, "E", optional=True)
    check.number("eps", eps, 0)
    check.same_dtype(
        "qkv", qkv.dtype, cos=cos, sin=sin, k_cache=k_cache, v_cache=v_cache,
        q_norm_weight=q_norm_weight, k_norm_weight=k_norm_weight,
    )  # fmt: skip
    return ops.rotary_append.default(
        qkv, cos, sin, positions, q_norm_weight, k_norm_weight, eps, k_cache, v_cache,
        cache_seqlens, block_table, rows,
    )  # fmt: skip
