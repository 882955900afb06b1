"""`fused_linear`: all weights in one launch, with bias, gate and residual in the epilogue.

A tile of rows of one weight, or of the same rows of both if gated, meets all rows of x. Where the
tiles are too few for the GPU, the sum over D is split, and `_finish_kernel` adds up the parts.
Above the crossover the products are plain ones, and only their ends are fused. The norm, of whole
rows, is a part of `_finish_kernel` where there is one, else a launch of its own.
"""

import torch
import triton
import triton.language as tl

from .config import EXACT, ceil_div, crossover, device_of, next_power_of_2, tile
from .matmul import balanced_tiles, plain_product, weight_times_rows
from .norm import Norm, normalized, rms_norm, row_options

MIN_COLUMNS = 512  # of D in a split
CHUNK_ROWS = 4096  # of x, whose float32 products exist at a time above the crossover


@triton.jit
def _finish(product, up, residual_ptr, out_ptr, place, mask):
    """Store product, or SiLU(product)·up, plus the residual, at offsets `place`; returns it."""
    if up is not None:
        product = product / (1.0 + tl.exp(-product)) * up
    if residual_ptr is not None:
        product += tl.load(residual_ptr + place, mask, other=0.0).to(tl.float32)
    product = product.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place, product, mask)
    return product


@triton.jit
def _next_weight(which, index, column, rows, next_rows, tile_rows):
    """Go on to the next weight where tile `index` lies behind the rows of this one."""
    tiles = tl.cdiv(rows, tile_rows)
    behind = index >= tiles
    return (
        which + behind.to(tl.int32),
        tl.where(behind, index - tiles, index),
        tl.where(behind, column + rows, column),
        tl.where(behind, next_rows, rows),
    )


@triton.jit
def _pick(which, first, second, third, fourth):
    """One of up to four pointers; those that are not there are None."""
    if second is not None:
        if which == 1:
            first = second
    if third is not None:
        if which == 2:
            first = third
    if fourth is not None:
        if which == 3:
            first = fourth
    return first


@triton.jit(do_not_specialize=["M", "width", "tile_rows", "rows_0", "rows_1", "rows_2", "rows_3"])
def _fused_linear_kernel(
    x_ptr, weight_0_ptr, weight_1_ptr, weight_2_ptr, weight_3_ptr,
    bias_0_ptr, bias_1_ptr, bias_2_ptr, bias_3_ptr, residual_ptr, out_ptr, parts_ptr,
    M, width, tile_rows, share, rows_0, rows_1, rows_2, rows_3, x_stride, weight_stride,
    D: tl.constexpr, GATED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Tile program_id(1) of the weights, columns [share·split, +share) of D, split program_id(2).

    Writes out [M, width], or with parts_ptr the float32 sums of the split to parts
    [splits, M, width], twice that width if gated.
    """
    which, index, column, rows = 0, tl.program_id(1), 0, rows_0
    weight_ptr, bias_ptr = weight_0_ptr, bias_0_ptr
    if not GATED:
        which, index, column, rows = _next_weight(which, index, column, rows, rows_1, tile_rows)
        which, index, column, rows = _next_weight(which, index, column, rows, rows_2, tile_rows)
        which, index, column, rows = _next_weight(which, index, column, rows, rows_3, tile_rows)
        weight_ptr = _pick(which, weight_0_ptr, weight_1_ptr, weight_2_ptr, weight_3_ptr)
        if bias_0_ptr is not None:
            bias_ptr = _pick(which, bias_0_ptr, bias_1_ptr, bias_2_ptr, bias_3_ptr)
    line = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    known = tl.minimum(line, M - 1).to(tl.int64)
    offset = tl.arange(0, BLOCK_V)
    row = index.to(tl.int64) * tile_rows + offset
    valid = (offset < tile_rows) & (row < rows)
    split = tl.program_id(2)
    first = split * share
    last = tl.minimum(first + share, D)
    if GATED:
        product, up = weight_times_rows(
            weight_ptr, weight_1_ptr, weight_stride, row, valid, x_ptr, x_stride, known, line < M,
            first, last, D, BLOCK_D,
        )  # fmt: skip
    else:
        product = weight_times_rows(
            weight_ptr, None, weight_stride, row, valid, x_ptr, x_stride, known, line < M, first,
            last, D, BLOCK_D,
        )  # fmt: skip
        up = None
    if bias_ptr is not None:
        once = valid & (split == 0)
        product += tl.load(bias_ptr + row, once, other=0.0).to(tl.float32)[:, None]
        if GATED:
            up += tl.load(bias_1_ptr + row, once, other=0.0).to(tl.float32)[:, None]
    inside = valid[:, None] & (line < M)[None, :]
    if parts_ptr is None:
        place = known[None, :] * width + (column + row)[:, None]
        _finish(product, up, residual_ptr, out_ptr, place, inside)
    else:
        place = split.to(tl.int64) * M + known
        if GATED:
            place = place[None, :] * (2 * width) + row[:, None]
            tl.store(parts_ptr + width + place, up, inside)
        else:
            place = place[None, :] * width + (column + row)[:, None]
        tl.store(parts_ptr + place, product, inside)


@triton.jit
def _finish_kernel(
    parts_ptr, up_parts_ptr, residual_ptr, out_ptr, norm_weight_ptr, eps, normed_ptr,
    columns, part_stride, row_stride, out_stride, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of splits, one block of one row: parts[split, row, column] -> out[row, column].

    With normed_ptr the block is the whole row, and its norm goes there.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    place = row * row_stride + column
    product = tl.load(parts_ptr + place, mask, other=0.0)
    up = None
    if up_parts_ptr is not None:
        up = tl.load(up_parts_ptr + place, mask, other=0.0)
    for split in tl.static_range(1, SPLITS):
        product += tl.load(parts_ptr + split * part_stride + place, mask, other=0.0)
        if up_parts_ptr is not None:
            up += tl.load(up_parts_ptr + split * part_stride + place, mask, other=0.0)
    place = row * out_stride + column
    out = _finish(product, up, residual_ptr, out_ptr, place, mask)
    if normed_ptr is not None:
        normed = normalized(out.to(tl.float32), norm_weight_ptr, column, mask, eps, columns)
        tl.store(normed_ptr + place, normed.to(normed_ptr.dtype.element_ty), mask)


def _finish_parts(parts, up_parts, residual, out, norm):
    """parts, up_parts [S, M, N] float32 -> out [M, N]; residual and norm.out have its strides."""
    splits, rows, columns = parts.shape
    block, options = 1024, EXACT
    if norm is not None:
        block, options = next_power_of_2(columns), row_options(columns)
    if parts.numel() > 0:
        _finish_kernel[rows, ceil_div(columns, block)](
            parts, up_parts, residual, out, *((None, 0.0, None) if norm is None else norm),
            columns, parts.stride(0), parts.stride(1), out.stride(0), SPLITS=splits, BLOCK=block,
            **options,
        )  # fmt: skip


def _fused(x, weights, biases, gated, residual, out, norm):
    """Few rows: one pass over the weights."""
    (rows, depth), width = x.shape, out.shape[1]
    device = device_of(x)
    chosen = tile("fused_linear", device, x.dtype, rows, ceil_div(width, device.sms))
    block_m, block_v, block_d = (chosen.blocks[f"BLOCK_{axis}"] for axis in "MVD")
    places = device.sms * chosen.per_sm
    _, tile_rows = balanced_tiles(width, block_v, places)
    tile_rows = max(tile_rows, min(block_m, block_v))  # no more of x than of the weight
    heights = [len(weight) for weight in weights[: 1 if gated else None]]
    tiles = sum(ceil_div(height, tile_rows) for height in heights)
    splits = max(1, min(places // tiles, depth // MIN_COLUMNS))
    share = ceil_div(ceil_div(depth, splits), block_d) * block_d
    splits = ceil_div(depth, share)
    parts = None
    if splits > 1:
        parts = x.new_empty(splits, rows, width * (1 + gated), dtype=torch.float32)
    absent = [None] * (4 - len(weights))
    _fused_linear_kernel[ceil_div(rows, block_m), tiles, splits](
        x, *weights, *absent, *(biases or [None] * len(weights)), *absent, residual, out, parts,
        rows, width, tile_rows, share, *heights, *[0] * (4 - len(heights)), x.stride(0),
        weights[0].stride(0), D=depth, GATED=gated, **chosen.options(),
    )  # fmt: skip
    if parts is not None:
        up_parts = parts[..., width:] if gated else None
        _finish_parts(parts[..., :width], up_parts, residual, out, norm)
    elif norm is not None:
        rms_norm(out, norm)


def _by_products(x, weights, biases, gated, residual, out, norm):
    """Many rows: plain products of some rows at a time."""
    whole_rows = len(weights) == 1 + gated  # of the output, in one product
    for first in range(0, len(x), CHUNK_ROWS):
        some = slice(first, first + CHUNK_ROWS)
        products = [plain_product(x[some], weight)[None] for weight in weights]
        for product, bias in zip(products, biases, strict=False):
            product += bias
        pairs = [products] if gated else [(product, None) for product in products]
        norm_of_some = None
        if norm is not None and whole_rows:
            norm_of_some = norm._replace(out=norm.out[some])
        column = 0
        for product, up in pairs:
            place = some, slice(column, column := column + product.shape[2])
            added = None if residual is None else residual[place]
            _finish_parts(product, up, added, out[place], norm_of_some)
    if norm is not None and not whole_rows:
        rms_norm(out, norm)


def fused_linear(x, weights, biases, gated, residual, norm_weight, eps):
    """Linear layers with gate, residual and the norm behind them, see `ops.fused_linear`."""
    x = x if x.stride(1) == 1 else x.contiguous()
    strides = {weight.stride() for weight in weights}
    if len(strides) > 1 or weights[0].stride(1) != 1:
        weights = [weight.contiguous() for weight in weights]
    biases = [bias.contiguous() for bias in biases]
    residual = None if residual is None else residual.contiguous()
    out = x.new_empty(len(x), sum(len(weight) for weight in weights[: 1 if gated else None]))
    outputs, norm = [out], None
    if norm_weight is not None:
        norm = Norm(norm_weight.contiguous(), eps, torch.empty_like(out))
        outputs.append(norm.out)
    if out.numel() == 0:
        return outputs
    which = "fused_linear" if len(weights) == 1 else "fused_linears"
    few = len(x) <= crossover(which, device_of(x), x.dtype)
    run = _fused if few else _by_products
    with torch.cuda.device_of(x):
        run(x, weights, biases, gated, residual, out, norm)
    return outputs
