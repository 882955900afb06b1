"""The repetition penalty of a tile of logits."""

import torch
import triton
import triton.language as tl


def seen_arguments(rows, seen, repetition_penalty):
    """What kernels take of a penalty: bits of the tokens seen in words of 32, penalties, for how
    many rows each entry of these bits is, and of how many words."""
    if seen is None:
        return None, None, 1, 0
    words = seen.contiguous().view(torch.int32)
    return words, repetition_penalty.contiguous(), rows // max(1, len(words)), words.shape[1]


@triton.jit
def penalized(logits, tokens, rows, entries, seen_ptr, penalty_ptr, rows_per_seen, words):
    """Logits [BLOCK_V, BLOCK_M], less likely where a row has seen one of the int64 tokens.

    Rows are numbers int64 [BLOCK_M], and entries the places of their penalties.
    """
    word, bit = (tokens >> 5).to(tl.int32), (tokens & 31).to(tl.int32)
    row = (rows // rows_per_seen).to(tl.int32) * words
    there = (word < words)[:, None]
    bits = tl.load(seen_ptr + (row[None, :] + word[:, None]), there, other=0)
    penalty = tl.broadcast_to(tl.load(penalty_ptr + entries)[None, :], logits.shape)
    less = tl.where(logits > 0.0, tl.div_rn(logits, penalty), logits * penalty)
    return tl.where(((bits >> bit[:, None]) & 1) != 0, less, logits)
