"""The nodes of a batch's trees that the target runs over, packed into the rows of a pass."""

from typing import NamedTuple

import numpy as np
import torch


class Budget(NamedTuple):
    """How much a step verifies: the most nodes of one tree, and of all trees together."""

    num_nodes: int
    total: int


class Packing(NamedTuple):
    """T slots out of B trees of N, packed into the rows of a pass; see `ops.best_slots`."""

    slots: torch.Tensor  # int64 [T], request·N + node of each row, increasing
    rows: torch.Tensor  # int64 [B, N], row of each slot, -1 for one that is left out
    counts: torch.Tensor  # int32 [B], nodes of each tree that are kept; unused slots do not count


def lag_weight(remaining):
    """What a token is worth to requests with so many to go, an array of floats.

    A batch lasts as long as its last request, so the tokens of those that lag behind count for
    more, but only by the square root: else the others lose what these win. A finished request has
    none to go. The op `best_slots` weighs scores so, too.
    """
    return remaining**0.5


def pack(x: torch.Tensor, packing: Packing | None) -> torch.Tensor:
    """[B, N, ...] -> [T, ...]: all slots, or those of a packing."""
    x = x.flatten(0, 1)
    return x if packing is None else x[packing.slots]


def unpack(x: torch.Tensor, packing: Packing | None, batch: int, nodes: int) -> torch.Tensor:
    """[T, ...] -> [B, N, ...], the last row in slots which are left out."""
    return x.view(batch, nodes, *x.shape[1:]) if packing is None else x[packing.rows]


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
