"""The gate: which N nodes of the tree of candidates the target verifies."""

import torch

from .._library import ops
from ..tree import DraftTree
from ._check import FLOAT32, INT64, MAX_NODES, Check

MAX_HEADS, MAX_CANDIDATES, MAX_RANK = 16, 64, 256
MAX_PATHS, MAX_PATH_LENGTH = 16, 64


def glm_tree(
    ids: torch.Tensor,
    keys: torch.Tensor,
    logsumexp: torch.Tensor,
    gate: torch.Tensor,
    root: torch.Tensor,
    table_in: torch.Tensor,
    table_out: torch.Tensor,
    mix: torch.Tensor,
    depth_scale: torch.Tensor,
    num_nodes: int,
    *,
    calibration: torch.Tensor | None = None,
    temperature: torch.Tensor | None = None,
    paths: torch.Tensor | None = None,
    path_scores: torch.Tensor | None = None,
    min_score: float = 0.0,
) -> DraftTree:
    """The N nodes most likely to survive, scored by a gated linear recurrence, in one launch.

    A child v, at depth d, of a node with token u has the score score(parent) · q(v | path)::

        w = table_in[u]
        a, b = sigmoid(gate[d] + mix @ w).chunk(2)
        s = a * s_parent + b * w                                    # zero above the root
        z = keys[d] + table_out[ids[d]] @ (depth_scale[d] * s) / τ  # τ = 0: no division
        tail = log(max(exp(logsumexp[d]) - exp(keys[d]).sum(), 0))
        slope, shift = calibration[d]
        q = exp(min(slope * (z - logaddexp(z.logsumexp(0), tail)) + shift, 0))

    Paths compete for the same nodes: node d of a path has the score min(path_scores[d], its
    parent's). A node reached in several ways is one node with the largest score. Kept are the N
    best by (score, then lower depth, lower token, parent's order), the root always, and in this
    order: the first n nodes are the tree of the n best, see `DraftTree.best`.

    Args:
        ids: int64 [B, H, C], distinct candidates of each head; those outside [0, V) are skipped.
        keys: float32 [B, H, C], their scores (logits / τ, noise included). A NaN key counts as
            -inf.
        logsumexp: float32 [B, H], of the scores of the whole vocabulary; -inf for no tail.
        gate: float32 [B, H, 2R].
        root: int64 [B], the last emitted token.
        table_in, table_out: [V, R] float32, bfloat16 or float16.
        mix: [2R, R], same dtype.
        depth_scale: float32 [H, R].
        num_nodes: N, 1 to 256.
        calibration: float32 [H, 2], slope and shift of each depth's log q; 1 and 0 if None.
        temperature: float32 [B], τ of the request; ones if None.
        paths: int64 [B, P, Q], drafted continuations of the root; one ends at the first token
            outside [0, V), or where its parent was not kept.
        path_scores: float32 [B, P, Q], absolute estimates of survival; needed with `paths`.
        min_score: nodes which score less than this times the sum of all better nodes' scores, the
            expected tokens without them, are dropped; one of score 0 always is.

        Limits: H <= 16, C <= 64, R <= 256, P <= 16, Q <= 64.

    Returns:
        A DraftTree of N slots; a NaN probability counts as 0.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, value or device.

    Source: gated linear recurrences (GLA, Yang et al. 2024, arXiv 2312.06635) over a draft tree;
    a = 0, b = 1 without the tail is the Markov head of DSpark (arXiv 2607.05147).
    """
    check = Check("glm_tree")
    check.tensor("ids", ids, "B H C", INT64)
    heads, candidates = ids.shape[1:]
    check.require(heads <= MAX_HEADS, "ids", f"have at most {MAX_HEADS} heads (H)", f"H={heads}")
    check.require(
        candidates <= MAX_CANDIDATES,
        "ids", f"have at most {MAX_CANDIDATES} candidates (C)", f"C={candidates}",
    )  # fmt: skip
    check.tensor("keys", keys, "B H C", FLOAT32)
    check.tensor("logsumexp", logsumexp, "B H", FLOAT32)
    check.tensor("root", root, "B", INT64)
    check.tensor("table_in", table_in, "V R")
    vocab, rank = table_in.shape
    check.require(vocab >= 1, "table_in", "have at least one row", list(table_in.shape))
    check.require(
        1 <= rank <= MAX_RANK, "table_in", f"have 1 to {MAX_RANK} columns (R)", f"R={rank}"
    )
    check.tensor("table_out", table_out, "V R")
    check.tensor("mix", mix, f"{2 * rank} R")
    check.same_dtype("table_in", table_in.dtype, table_out=table_out, mix=mix)
    check.tensor("gate", gate, f"B H {2 * rank}", FLOAT32)
    check.tensor("depth_scale", depth_scale, "H R", FLOAT32)
    check.integer("num_nodes", num_nodes, 1, MAX_NODES)
    check.tensor("calibration", calibration, "H 2", FLOAT32, optional=True)
    if calibration is not None:
        check.values("calibration", calibration[:, 0], 1e-6)
    check.tensor("temperature", temperature, "B", FLOAT32, optional=True)
    check.values("temperature", temperature, 0)
    check.tensor("paths", paths, "B P Q", INT64, optional=True)
    if paths is not None:
        count, length = paths.shape[1:]
        check.require(
            count <= MAX_PATHS, "paths", f"be at most {MAX_PATHS} paths (P)", f"P={count}"
        )
        check.require(
            length <= MAX_PATH_LENGTH, "paths", f"have at most {MAX_PATH_LENGTH} tokens (Q)",
            f"Q={length}",
        )  # fmt: skip
    given = path_scores is not None
    check.require(
        given == (paths is not None), "path_scores", "be given if and only if paths is", given
    )
    check.tensor("path_scores", path_scores, "B P Q", FLOAT32, optional=True)
    check.number("min_score", min_score, 0)
    return DraftTree(
        *ops.glm_tree.default(
            ids, keys, logsumexp, gate, root, table_in, table_out, mix, depth_scale, calibration,
            temperature, paths, path_scores, num_nodes, min_score,
        )
    )  # fmt: skip
