"""Which tokens stand before a draw: what a repetition penalty looks at."""

import torch

from .._library import ops
from ._check import INT32, INT64, MAX_NODES, Check


def seen_tokens(
    history: torch.Tensor,
    lengths: torch.Tensor,
    vocab_size: int,
    *,
    tokens: torch.Tensor | None = None,
    ancestors: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
) -> torch.Tensor:
    """The set of tokens before each draw, one bit per token, in one launch.

    Bit t % 64 of word t // 64 is set iff token t is in history[b, :lengths[b]] or, with trees, on
    the path to the node at which is drawn, the node itself included. `linear_topk` and
    `sample_logits` take it as `seen`.

    Args:
        history: int64 [B, S]; tokens outside the vocabulary are left out.
        lengths: int32 [B], how many tokens of each row are valid, 0 to S.
        vocab_size: V, 1 to 2^31 - 1.
        tokens, ancestors: of a `DraftTree`, int64 [B, N] and [B, N, ceil(N / 64)]: a draw behind
            each node. None: one draw per request.
        slots: int64 [T], the draws wanted, request·N + node (see `best_slots`); None for all.

    Returns:
        int64 [T, ceil(V / 64)]; without slots T is B·N, or B.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, value or device.
    """
    check = Check("seen_tokens")
    check.tensor("history", history, "B S", INT64)
    check.tensor("lengths", lengths, "B", INT32)
    check.values("lengths", lengths, 0, history.shape[1])
    check.integer("vocab_size", vocab_size, 1, 2**31 - 1)
    check.tensor("tokens", tokens, "B N", INT64, optional=True)
    if tokens is not None:
        nodes = tokens.shape[1]
        check.require(1 <= nodes <= MAX_NODES, "tokens", f"have 1 to {MAX_NODES} columns", nodes)
        check.tensor("ancestors", ancestors, f"B N {(nodes + 63) // 64}", INT64)
    elif ancestors is not None:
        check.fail("tokens", "be given together with ancestors", None)
    check.tensor("slots", slots, "T", INT64, optional=True)
    check.values("slots", slots, 0, (lengths if tokens is None else tokens).numel() - 1)
    return ops.seen_tokens.default(history, lengths, vocab_size, tokens, ancestors, slots)
