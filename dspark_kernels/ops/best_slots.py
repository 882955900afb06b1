"""Which nodes of a batch's trees a pass of the target runs over."""

import torch

from .._library import ops
from ..packing import Packing
from ._check import FLOAT32, INT32, Check


def best_slots(
    scores: torch.Tensor,
    num_nodes: torch.Tensor,
    lengths: torch.Tensor,
    limit: torch.Tensor,
    done: torch.Tensor,
    *,
    nodes: int,
    total: int,
) -> Packing:
    """The `total` slots with the highest weighted scores, in one launch::

        remaining = where(done, 0, max(limit - lengths, 0))
        priority = max(scores[:, :nodes] * remaining[:, None] ** 0.5, 0)  # see `lag_weight`
        priority[:, 0] = where(remaining > 0, inf, 0)
        slots = priority.flatten().argsort(descending=True, stable=True)[:total].sort().values

    Roots of requests that go on come first, then what is worth most, of equals the lower slot.
    Where there are fewer nodes than `total`, unused slots fill up the rows.

    Args:
        scores: float32 [B, M], of trees whose parents come first and score no less than their
            children, so that with a node its ancestors are kept; 0 in unused slots.
        num_nodes: int32 [B], used slots of each tree.
        lengths: int32 [B], tokens of each request so far.
        limit: int32 [B], the length at which a request ends.
        done: bool [B], which have ended before it.
        nodes: N, 1 to M; later columns of scores take no part.
        total: T, 1 to B·N.

    Returns:
        slots int64 [T], request·N + node of those kept, increasing; rows int64 [B, N], the row of
        each slot, -1 for one left out; counts int32 [B], how many used ones each request keeps.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, value or device.
    """
    check = Check("best_slots")
    check.tensor("scores", scores, "B M", FLOAT32)
    for name, tensor in (("num_nodes", num_nodes), ("lengths", lengths), ("limit", limit)):
        check.tensor(name, tensor, "B", INT32)
    check.tensor("done", done, "B", (torch.bool,))
    check.integer("nodes", nodes, 1, scores.shape[1])
    check.integer("total", total, 1, scores.shape[0] * nodes)
    return Packing(*ops.best_slots.default(scores, num_nodes, lengths, limit, done, nodes, total))
