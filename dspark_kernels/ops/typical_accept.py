"""Medusa's typical acceptance, which is lossy; `accept_tree` is the lossless rule."""

from collections.abc import Sequence

import torch

from .._library import ops
from ..tree import DraftTree
from ._check import FLOAT32, INT64, Check


def typical_accept(
    tree: DraftTree,
    target_tokens: torch.Tensor,
    logits: torch.Tensor,
    caches: Sequence[torch.Tensor],
    cache_seqlens: torch.Tensor,
    *,
    temperature: torch.Tensor | None = None,
    epsilon: float = 0.09,
    delta: float = 0.3,
    block_table: torch.Tensor | None = None,
    max_depth: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The deepest path of typical tokens, and the move of its keys and values. This rule is lossy.

    A child c of an accepted node u is accepted iff, with p = softmax(logits[u] / τ) and H its
    entropy::

        p[tokens[c]] > min(epsilon, delta * exp(-H))

    The path ends at the deepest accepted node (of several, the lowest index), where the bonus is
    target_tokens; the caches are compacted as in `accept_tree`.

    Args:
        tree, target_tokens, caches, cache_seqlens, block_table, max_depth: as in `accept_tree`.
        logits: [B, N, V] float32, bfloat16 or float16, the target's; NaN counts as -inf.
        temperature: float32 [B], τ; 1 where it is 0, or if None.
        epsilon: a probability above it is always enough, > 0.
        delta: factor of exp(-entropy), > 0.

    Returns:
        path, tokens, num_accepted, last_node: as in `accept_tree`.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, value or device.

    Source: Medusa (Cai et al. 2024, arXiv 2401.10774), section 2.3.1.
    """
    check = Check("typical_accept")
    check.tree(tree)
    check.tensor("target_tokens", target_tokens, "B N", INT64)
    check.tensor("logits", logits, "B N V")
    check.columns("logits", logits)
    check.caches(caches, cache_seqlens, block_table)
    check.tensor("temperature", temperature, "B", FLOAT32, optional=True)
    check.values("temperature", temperature, 0)
    check.number("epsilon", epsilon, 0, strict=True)
    check.number("delta", delta, 0, strict=True)
    if max_depth is None:
        max_depth = tree.tokens.shape[1] - 1
    check.integer("max_depth", max_depth, 0)
    return ops.typical_accept.default(
        tree.tokens, tree.parents, tree.num_nodes, target_tokens, logits, temperature, epsilon,
        delta, list(caches), cache_seqlens, block_table, max_depth,
    )  # fmt: skip
