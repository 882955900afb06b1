"""The repetition penalty of a tile of logits."""

import triton
import triton.language as tl


def seen_arguments(rows, seen, repetition_penalty):
    """What kernels take of a penalty: the words of the tokens seen, penalties, for how many rows
    each entry of these words is, and how many they are."""
    if seen is None:
        return None, None, 1, 0
    per_entry = rows // max(1, len(seen))
    return seen.contiguous(), repetition_penalty.contiguous(), per_entry, seen.shape[1]


@triton.jit
def penalized(logits, tokens, rows, entries, seen_ptr, penalty_ptr, rows_per_seen, words):
    """Logits [BLOCK_V, BLOCK_M], less likely where a row has seen one of the int64 tokens.

    Rows are numbers int64 [BLOCK_M], and entries the places of their penalties.
    """
    word = tokens >> 6
    row_ptrs = seen_ptr + rows // rows_per_seen * words
    there = ((word >= 0) & (word < words))[:, None]
    seen = tl.load(row_ptrs[None, :] + word[:, None], there, other=0)
    penalty = tl.broadcast_to(tl.load(penalty_ptr + entries)[None, :], logits.shape)
    less = tl.where(logits > 0.0, tl.div_rn(logits, penalty), logits * penalty)
    return tl.where(((seen >> (tokens & 63)[:, None]) & 1) != 0, less, logits)
