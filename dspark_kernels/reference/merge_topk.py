"""Definition of `merge_topk`."""

import torch


def merge_topk(keys, ids, logsumexp, k):
    """Merge the [S, M, k'] results of S vocabulary shards exactly, see `ops.merge_topk`."""
    keys, ids = keys.movedim(0, 1).flatten(1), ids.movedim(0, 1).flatten(1)  # [M, S·k']
    by_id = torch.argsort(ids, dim=1)
    keys, ids = keys.gather(1, by_id), ids.gather(1, by_id)
    order = torch.argsort(keys, dim=1, descending=True, stable=True)[:, :k]
    return keys.gather(1, order), ids.gather(1, order), torch.logsumexp(logsumexp, dim=0)
