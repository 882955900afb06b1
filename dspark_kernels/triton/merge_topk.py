"""`merge_topk`, and the merge of what the programs of one launch found."""

import torch
import triton
import triton.language as tl

from .config import EXACT, ceil_div, next_power_of_2
from .topk import LOWEST, finite_or_zero, pack, unpack

CANDIDATES = 4096  # that one program sorts


@triton.jit(do_not_specialize=["M", "shards"])
def _merge_topk_kernel(
    packed_ptr, keys_ptr, ids_ptr, lse_ptr, out_packed_ptr, out_keys_ptr, out_ids_ptr, out_lse_ptr,
    M, shards,
    K_IN: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One row of one group of BLOCK_S shards: inputs [shards, M, K_IN], outputs [groups, M, K]."""
    row, group = tl.program_id(0), tl.program_id(1)
    out = group.to(tl.int64) * M + row
    first = group * BLOCK_S

    shard = first + tl.arange(0, BLOCK_S)
    lse = tl.load(lse_ptr + shard.to(tl.int64) * M + row, shard < shards, other=float("-inf"))
    shift = finite_or_zero(tl.max(lse, axis=0))
    tl.store(out_lse_ptr + out, shift + tl.log(tl.sum(tl.exp(lse - shift), axis=0)))

    candidate = tl.arange(0, BLOCK_C)
    shard = first + candidate // K_IN
    known = (candidate < BLOCK_S * K_IN) & (shard < shards)
    source = (shard.to(tl.int64) * M + row) * K_IN + candidate % K_IN
    if packed_ptr is not None:
        packed = tl.load(packed_ptr + source, known, other=LOWEST)
    else:
        keys = tl.load(keys_ptr + source, known, other=0.0)
        packed = tl.where(known, pack(keys, tl.load(ids_ptr + source, known, other=0)), LOWEST)
    best = tl.topk(packed, BLOCK_K)  # in descending order
    slot = tl.arange(0, BLOCK_K)
    if out_packed_ptr is not None:
        tl.store(out_packed_ptr + out * K + slot, best, slot < K)
    else:
        keys, ids = unpack(best)
        tl.store(out_keys_ptr + out * K + slot, keys, slot < K)
        tl.store(out_ids_ptr + out * K + slot, ids, slot < K)


def _merge(packed, keys, ids, logsumexp, k):
    """Merge packed values (or keys and ids) [S, M, k_in], level by level in groups of shards."""
    source = keys if packed is None else packed
    shards, rows, k_in = source.shape
    block_s = min(next_power_of_2(shards), 1 << max(1, CANDIDATES // k_in).bit_length() - 1)
    block_k = max(2, next_power_of_2(k))  # tl.topk has no k = 1
    groups = ceil_div(shards, block_s)
    out_lse = logsumexp.new_empty(groups, rows)
    if groups == 1:
        out_packed = None
        out_keys = logsumexp.new_empty(1, rows, k)
        out_ids = logsumexp.new_empty(1, rows, k, dtype=torch.int64)
    else:
        out_packed = logsumexp.new_empty(groups, rows, k, dtype=torch.int64)
        out_keys = out_ids = None
    _merge_topk_kernel[rows, groups](
        packed, keys, ids, logsumexp, out_packed, out_keys, out_ids, out_lse, rows, shards,
        K_IN=k_in, K=k, BLOCK_K=block_k, BLOCK_S=block_s,
        BLOCK_C=max(block_k, next_power_of_2(block_s * k_in)), num_warps=8, **EXACT,
    )  # fmt: skip
    if groups == 1:
        return out_keys[0], out_ids[0], out_lse[0]
    return _merge(out_packed, None, None, out_lse, k)


def merge_partials(packed, logsumexp, k):
    """Keys, ids, logsumexp of the whole from packed int64 [S, M, k], logsumexp [S, M] of parts."""
    return _merge(packed, None, None, logsumexp, k)


def merge_topk(keys, ids, logsumexp, k):
    """Merge the results of vocabulary shards, see `ops.merge_topk`; ids are in [0, 2^32)."""
    with torch.cuda.device_of(keys):
        return _merge(None, keys.contiguous(), ids.contiguous(), logsumexp.contiguous(), k)
