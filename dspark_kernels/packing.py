"""Which nodes of a batch's trees the target runs over: the best of all requests together."""

from typing import NamedTuple

import numpy as np
import torch


class Budget(NamedTuple):
    """How much a step verifies: the most nodes of one tree, and of all trees together."""

    num_nodes: int
    total: int


class Rows(NamedTuple):
    """T slots out of B trees of N, packed into the rows of a pass."""

    slots: torch.Tensor  # int64 [T], request·N + node, increasing
    kept: torch.Tensor  # bool [B, N], which slots these are
    place: torch.Tensor  # int64 [B, N], row of a slot; 0 for one that is left out


def lag_weight(remaining):
    """What a token is worth to requests with so many to go, floats in a tensor or an array.

    A batch lasts as long as its last request, so the tokens of those that lag behind count for
    more, but only by the square root: else the others lose what these win. A finished request has
    none to go.
    """
    return remaining**0.5


def best_rows(scores: torch.Tensor, remaining: torch.Tensor, total: int) -> Rows:
    """The `total` slots with the highest weighted scores, and all roots of requests that go on.

    scores: float32 [B, N], of trees whose parents come first and score no less than their children,
    so that with a node its ancestors are kept. remaining: int [B], tokens to go, 0 for a finished
    request. Where there are fewer nodes than `total`, unused slots fill up the rows.
    """
    weight = lag_weight(remaining.float())[:, None]
    priority = scores * weight
    priority[:, :1] = torch.where(weight > 0, torch.inf, 0.0)
    order = priority.flatten().argsort(descending=True, stable=True)
    slots = order[:total].sort().values
    kept = torch.zeros_like(scores, dtype=torch.bool).view(-1).index_fill_(0, slots, True)
    row = torch.arange(total, device=slots.device)
    place = torch.zeros_like(order).index_copy_(0, slots, row)
    return Rows(slots, kept.view_as(scores), place.view_as(scores))


def pack(x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """[B, N, ...] -> [T, ...]: all slots, or those of `rows`, int64 [T] of request·N + node."""
    x = x.flatten(0, 1)
    return x if rows is None else x[rows]


def unpack(x: torch.Tensor, rows: torch.Tensor | None, batch: int, nodes: int) -> torch.Tensor:
    """[T, ...] -> [B, N, ...], zeros in slots which are not in `rows`."""
    if rows is not None:
        x = x.new_zeros(batch * nodes, *x.shape[1:]).index_copy_(0, rows, x)
    return x.view(batch, nodes, *x.shape[1:])


def survivors(running: np.ndarray) -> np.ndarray | None:
    """Which requests go on, int64 [K]; None if all do, or none. running: bool [B].

    In an order which moves few of them, see `KVCache.select`.
    """
    count = int(running.sum())
    if count in (0, len(running)):
        return None
    kept = np.arange(count)
    kept[~running[:count]] = count + np.flatnonzero(running[count:])
    return kept
