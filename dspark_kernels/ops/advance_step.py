"""The end of a step: what it emitted becomes the state that the next one starts from."""

from collections.abc import Sequence

import torch

from .._library import ops
from ._check import INT32, INT64, Check

MAX_KEPT = 4


def advance_step(
    tokens: torch.Tensor,
    num_tokens: torch.Tensor,
    node: torch.Tensor,
    hidden: Sequence[torch.Tensor],
    *,
    stop: torch.Tensor,
    limit: torch.Tensor,
    history: torch.Tensor,
    lengths: torch.Tensor,
    cache_seqlens: torch.Tensor,
    root: torch.Tensor,
    done: torch.Tensor,
    kept: Sequence[torch.Tensor],
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Append the emitted tokens to each request that is not done, in one launch::

        n = min(num_tokens, S - lengths)
        history[lengths : lengths + n] = tokens[:n]
        lengths, cache_seqlens, root = lengths + n, cache_seqlens + n, tokens[n - 1]
        done = any(tokens[:n] in stop) or lengths >= limit
        kept[i] = hidden[i][node]                             # of the request's own rows

    A request which is done stays as it is. Modified in place are history, lengths, cache_seqlens,
    root, done and kept, so that a captured step goes on over the same memory. tokens, stop, limit,
    rows and hidden must not share memory with any of these.

    Args:
        tokens: int64 [B, P], what each request emitted; see `accept_tree`.
        num_tokens: int32 [B], how many of them; beyond 0 to P it counts as the next number inside.
        node: int32 [B], 0 to N - 1, the node whose states the next step drafts from.
        hidden: up to 4 tensors [B·N, D], or with `rows` [T, D]; D and dtype may differ.
        stop: int64 [K], tokens which end a request.
        limit: int32 [B], the length at which a request ends.
        history: int64 [B, S], with adjacent columns.
        lengths: int32 [B], used part of history, 0 to S.
        cache_seqlens: int32 [B], tokens in the K/V cache.
        root: int64 [B], the last emitted token.
        done: bool [B].
        kept: as many tensors as `hidden`, [B, D] each of the same dtype, with adjacent columns.
        rows: int64 [B, N], the row of `hidden` that holds a node, as in `tree_attention`.

    Returns:
        int32 [B], n; 0 for a request which was done.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, value or device.
    """
    check = Check("advance_step")
    check.tensor("tokens", tokens, "B P", INT64)
    check.tensor("num_tokens", num_tokens, "B", INT32)
    check.tensor("node", node, "B", INT32)
    check.tensor("rows", rows, "B N", INT64, optional=True)
    for name, tensors in (("hidden", hidden), ("kept", kept)):
        if not isinstance(tensors, list | tuple):
            check.fail(name, "be a list of tensors", type(tensors).__name__, TypeError)
    pairs = f"be at most {MAX_KEPT} tensors, as many as kept"
    same = len(hidden) == len(kept) <= MAX_KEPT
    check.require(same, "hidden", pairs, f"{len(hidden)} and {len(kept)}")
    for i, (source, target) in enumerate(zip(hidden, kept, strict=True)):
        check.tensor(f"hidden[{i}]", source, f"T D{i}")
        check.tensor(f"kept[{i}]", target, f"B D{i}")
        check.same_dtype(f"hidden[{i}]", source.dtype, **{f"kept[{i}]": target})
    batch = check.sizes["B"]
    if rows is None and hidden:
        total = check.sizes["T"]
        divides = batch > 0 and total % batch == 0
        check.require(divides or not total, "hidden", f"have N rows for each of {batch}", total)
        nodes = total // max(batch, 1)
    else:
        nodes = 0 if rows is None else check.sizes["N"]
    if hidden:
        check.values("node", node, 0, nodes - 1)
    check.tensor("stop", stop, "K", INT64)
    check.tensor("history", history, "B S", INT64)
    for name, tensor in (("limit", limit), ("lengths", lengths), ("cache_seqlens", cache_seqlens)):
        check.tensor(name, tensor, "B", INT32)
    check.values("lengths", lengths, 0, history.shape[1])
    check.tensor("root", root, "B", INT64)
    check.tensor("done", done, "B", (torch.bool,))
    return ops.advance_step.default(
        tokens, num_tokens, node, rows, list(hidden), stop, limit, history, lengths, cache_seqlens,
        root, done, list(kept),
    )  # fmt: skip
