"""Drafting by lookup: what followed earlier occurrences of the current suffix."""

import torch

from .._library import ops
from ._check import INT32, INT64, Check


def context_lookup(
    history: torch.Tensor,
    lengths: torch.Tensor,
    *,
    max_ngram: int = 3,
    min_ngram: int = 2,
    num_paths: int = 4,
    path_length: int = 10,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Continuations of earlier occurrences of the current suffix: a head without parameters.

    An occurrence of the suffix ends at e < length - 1; its match length is the number of tokens
    that history[:e + 1] and history[:length] have in common at their ends, at most max_ngram. Its
    continuation is history[e + 1 : length], cut at path_length or repeated up to it, as a text that
    goes round in circles would go on. Occurrences are taken by (match length, then e), largest
    first; one is dropped when its continuation equals that of an earlier pick, cut and before
    repetition, over the shorter of the two.

    Args:
        history: int64 [B, S], the tokens so far, the root last.
        lengths: int32 [B], how many tokens of each row are valid, 0 to S.
        max_ngram: longest match that counts, 1 to 16.
        min_ngram: shortest match taken, 1 to max_ngram.
        num_paths: P, 1 to 16.
        path_length: Q, 1 to 64.

    Returns:
        paths int64 [B, P, Q]; match_length int32 [B, P]. Where there are fewer than P occurrences,
        tokens of -1 and match lengths of 0.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, value or device.

    Source: prompt lookup decoding (Saxena 2023); several occurrences as in the n-gram pools of
    Lookahead decoding (Fu et al. 2024, arXiv 2402.02057).
    """
    check = Check("context_lookup")
    check.tensor("history", history, "B S", INT64)
    check.tensor("lengths", lengths, "B", INT32)
    check.values("lengths", lengths, 0, history.shape[1])
    check.integer("max_ngram", max_ngram, 1, 16)
    check.integer("min_ngram", min_ngram, 1, max_ngram)
    check.integer("num_paths", num_paths, 1, 16)
    check.integer("path_length", path_length, 1, 64)
    return ops.context_lookup.default(
        history, lengths, max_ngram, min_ngram, num_paths, path_length
    )
