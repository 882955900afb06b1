"""Acceptance: how far the target's own draws lead down the tree, and the compaction of its K/V."""

from collections.abc import Sequence

import torch

from .._library import ops
from ..tree import DraftTree
from ._check import INT64, Check


def accept_tree(
    tree: DraftTree,
    target_tokens: torch.Tensor,
    caches: Sequence[torch.Tensor],
    cache_seqlens: torch.Tensor,
    *,
    block_table: torch.Tensor | None = None,
    max_depth: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The path on which tree and target agree, and the move of its keys and values, in one launch.

    From the root the walk goes to the first child which carries the target's draw at the current
    node, until there is none; every token so emitted is the target's own draw. Then the entries of
    the n nodes on the path move from slot cache_seqlens + path[i] to cache_seqlens + i, in place,
    in all caches. The walk is::

        while any(child := (parents == node) & (tokens == target_tokens[node])):
            node = child.int().argmax()

    Args:
        tree: the verified `DraftTree`.
        target_tokens: int64 [B, N], the target's draw at each node.
        caches: tensors [B, S, ...] (say keys and values of every layer), or with `block_table`
            [num_blocks, block_size, ...]; the first two sizes are the same in all. Modified in
            place. Slots beyond S or the table, and blocks outside 0 .. num_blocks - 1, are left
            alone.
        cache_seqlens: int32 [B], tokens in the cache before the tree.
        block_table: int32 [B, max_blocks], the block of each run of block_size slots.
        max_depth: P, the walk stops there; N - 1 if None.

    Returns:
        path int32 [B, P + 1]: the root (node 0), then the accepted nodes, -1 padded.
        tokens int64 [B, P + 1]: the accepted tokens, then the bonus target_tokens[last], -1 padded.
        num_accepted int32 [B]: n, entries in use in both: drafted tokens accepted, and one.
        last_node int32 [B]: the last node of the path.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, value or device.

    Source: SpecInfer (Miao et al. 2024, arXiv 2305.09781), with draws coupled by shared noise.
    """
    check = Check("accept_tree")
    check.tree(tree)
    check.tensor("target_tokens", target_tokens, "B N", INT64)
    check.caches(caches, cache_seqlens, block_table)
    if max_depth is None:
        max_depth = tree.tokens.shape[1] - 1
    check.integer("max_depth", max_depth, 0)
    return ops.accept_tree.default(
        tree.tokens, tree.parents, tree.num_nodes, target_tokens, list(caches), cache_seqlens,
        block_table, max_depth,
    )  # fmt: skip
