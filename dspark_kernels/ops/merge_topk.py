"""Merging the top-k of vocabulary shards: tensor parallelism for `linear_topk`."""

import torch

from .._library import ops
from ._check import FLOAT32, INT64, Check


def merge_topk(
    keys: torch.Tensor, ids: torch.Tensor, logsumexp: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The exact result of `linear_topk` on a whole vocabulary from the results on its S shards.

    Args:
        keys: float32 [S, M, K], the keys of each shard.
        ids: int64 [S, M, K], their token ids, distinct within a row.
        logsumexp: float32 [S, M].
        k: 1 to 64, at most S·K; the result is exact when k <= K.

    Returns:
        keys float32 [M, k] in descending order, ids int64 [M, k], logsumexp float32 [M]; ties go to
        the lowest id.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, value or device.
    """
    check = Check("merge_topk")
    check.tensor("keys", keys, "S M K", FLOAT32)
    check.tensor("ids", ids, "S M K", INT64)
    check.tensor("logsumexp", logsumexp, "S M", FLOAT32)
    candidates = keys.shape[0] * keys.shape[2]
    check.integer("k", k, 1, 64)
    check.require(k <= candidates, "k", f"be at most S·K={candidates}", k)
    return ops.merge_topk.default(keys, ids, logsumexp, k)
