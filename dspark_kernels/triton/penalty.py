"""The repetition penalty, of a tile of logits or of a matrix of them."""

import triton
import triton.language as tl

from .config import EXACT, ceil_div
from .logits_topk import rows_per_entry
from .topk import token_ids

BLOCK_V = 1024  # columns of a program


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


@triton.jit(do_not_specialize=["rows_per_entry", "rows_per_seen", "words", "V", "first"])
def _penalize_kernel(
    logits_ptr, id_map_ptr, seen_ptr, penalty_ptr, rows_per_seen, words, out_ptr, rows_per_entry, V,
    logits_stride, out_stride, first, vocab_offset, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """A row's part program_id(1)."""
    row = tl.program_id(0).to(tl.int64) + tl.zeros((1,), tl.int64)
    column = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    valid = column < V
    tokens = token_ids(column.to(tl.int64) + first, valid, id_map_ptr, vocab_offset)
    logits_ptrs = logits_ptr + row[None, :] * logits_stride + column[:, None]
    logits = tl.load(logits_ptrs, valid[:, None], other=0.0).to(tl.float32)
    entries = row // rows_per_entry
    logits = penalized(logits, tokens, row, entries, seen_ptr, penalty_ptr, rows_per_seen, words)
    tl.store(out_ptr + row[None, :] * out_stride + column[:, None], logits, valid[:, None])


def penalize(logits, penalty, out, id_map=None, vocab_offset=0, first=0):
    """Write logits [rows, V] under a penalty to `out`, float32, which may be the same tensor.

    penalty: `seen_arguments`; the columns count up from column `first` of the vocabulary.
    """
    rows, columns = logits.shape
    _penalize_kernel[rows, ceil_div(columns, BLOCK_V)](
        logits, id_map, *penalty, out, rows_per_entry(rows, penalty[1]), columns, logits.stride(0),
        out.stride(0), first, vocab_offset, BLOCK_V=BLOCK_V, **EXACT,
    )  # fmt: skip
    return out
