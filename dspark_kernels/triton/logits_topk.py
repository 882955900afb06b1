"""Perturbed top-k and logsumexp of logits that exist: for `linear_topk` and `sample_logits`."""

import torch
import triton
import triton.language as tl

from .config import ceil_div, device_of, next_power_of_2, tile
from .topk import add_tile, empty_results, store_part


@triton.jit(do_not_specialize=["M", "rows_per_entry", "first", "part"])
def _logits_topk_kernel(
    logits_ptr, temperature_ptr, seed_ptr, position_ptr, id_map_ptr, floor_ptr,
    packed_ptr, lse_ptr, M, rows_per_entry, V, logits_stride, first, part, vocab_offset,
    K: tl.constexpr, BLOCK_K: tl.constexpr, CONSECUTIVE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    known = tl.minimum(rows, M - 1)
    entries, known = known // rows_per_entry, known.to(tl.int64)
    program, programs = tl.program_id(1), tl.num_programs(1)
    top, bar, maximum, total = empty_results(K, BLOCK_K, BLOCK_M)
    for start in range(program * BLOCK_V, V, programs * BLOCK_V):
        column = start + tl.arange(0, BLOCK_V)
        valid = column < V
        logits = tl.load(
            logits_ptr + known[None, :] * logits_stride + column[:, None], valid[:, None], other=0.0
        )
        top, bar, maximum, total = add_tile(
            top, bar, maximum, total, logits.to(tl.float32), tl.cast(first + start, tl.int64),
            valid, known, entries, temperature_ptr, seed_ptr, position_ptr, id_map_ptr,
            vocab_offset, floor_ptr, K, CONSECUTIVE,
        )  # fmt: skip
    store_part(packed_ptr, lse_ptr, part + program, rows, M, top, maximum, total, K, BLOCK_K)


def rows_per_entry(rows, *options):
    """How many rows each entry of the options [B] or None serves."""
    given = [option for option in options if option is not None]
    return rows // max(1, len(given[0])) if given else 1


class LogitsRanking:
    """Partial results of logits [M, columns], or of chunks of them, for `merge_partials`."""

    def __init__(self, like, rows, columns, k, chunks=1):
        device = device_of(like)
        self.tile = tile("logits_topk", device, torch.float32, k)
        self.grid_rows = ceil_div(rows, self.tile.blocks["BLOCK_M"])
        programs = max(1, device.sms * self.tile.per_sm // max(1, self.grid_rows))
        self.parts = min(programs, ceil_div(columns, self.tile.blocks["BLOCK_V"]))
        self.packed = like.new_empty(chunks * self.parts, rows, k, dtype=torch.int64)
        self.logsumexp = like.new_empty(chunks * self.parts, rows, dtype=torch.float32)

    def add(self, logits, noise, id_map=None, vocab_offset=0, floor=None, first=0, chunk=0):
        """Rank chunk number `chunk` of the columns, whose first is column `first`."""
        rows, columns = logits.shape
        k = self.packed.shape[2]
        _logits_topk_kernel[self.grid_rows, self.parts](
            logits, *noise, id_map, floor, self.packed, self.logsumexp, rows,
            rows_per_entry(rows, noise[0]), columns, logits.stride(0), first, chunk * self.parts,
            vocab_offset,
            K=k, BLOCK_K=next_power_of_2(k),
            CONSECUTIVE=id_map is None and vocab_offset % 4 == 0, **self.tile.options(),
        )  # fmt: skip
