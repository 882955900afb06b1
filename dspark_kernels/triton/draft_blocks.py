"""`draft_blocks`: all heads in one launch, as one product with the H·D rows of their weights."""

import torch
import triton
import triton.language as tl

from .config import ceil_div, device_of, tile
from .matmul import balanced_tiles, weight_times_rows


@triton.jit(do_not_specialize=["B", "tile_rows"])
def _draft_blocks_kernel(
    hidden_ptr, features_ptr, weight_ptr, bias_ptr, residual_scale_ptr, out_ptr,
    B, R, tile_rows, hidden_stride, features_stride, weight_stride,
    D: tl.constexpr, F: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[b, r] = residual_scale[r]·hidden[b, r % D] + SiLU(weight[r]·features[b] + bias[r])."""
    request = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    known = tl.minimum(request, B - 1).to(tl.int64)
    offset = tl.arange(0, BLOCK_V)
    row = tl.program_id(1).to(tl.int64) * tile_rows + offset
    valid = (offset < tile_rows) & (row < R)
    update = weight_times_rows(
        weight_ptr, None, weight_stride, row, valid, features_ptr, features_stride, known,
        request < B, 0, F, F, BLOCK_D,
    )  # fmt: skip
    update += tl.load(bias_ptr + row, valid, other=0.0).to(tl.float32)[:, None]
    inside = valid[:, None] & (request < B)[None, :]
    residual = tl.load(
        hidden_ptr + known[None, :] * hidden_stride + (row % D)[:, None], inside, other=0.0
    ).to(tl.float32)
    if residual_scale_ptr is not None:
        residual *= tl.load(residual_scale_ptr + row, valid, other=0.0).to(tl.float32)[:, None]
    out = residual + update / (1.0 + tl.exp(-update))
    tl.store(out_ptr + known[None, :] * R + row[:, None], out.to(out_ptr.dtype.element_ty), inside)


def draft_blocks(hidden, weight, bias, features, residual_scale):
    """Hidden states of all draft heads, see `ops.draft_blocks`."""
    batch, (heads, width, _) = hidden.shape[0], weight.shape
    features = hidden if features is None else features
    hidden, features = (t if t.stride(-1) == 1 else t.contiguous() for t in (hidden, features))
    weight = weight.flatten(0, 1)  # a view unless the heads are strided apart
    weight = weight if weight.stride(-1) == 1 else weight.contiguous()
    bias = bias.contiguous()
    residual_scale = None if residual_scale is None else residual_scale.contiguous()
    out = hidden.new_empty(batch, heads, width)
    rows = heads * width
    device = device_of(hidden)
    chosen = tile("draft_blocks", device, hidden.dtype, batch)
    grid_rows = ceil_div(batch, chosen.blocks["BLOCK_M"])
    _, tile_rows = balanced_tiles(rows, chosen.blocks["BLOCK_V"], device.sms * chosen.per_sm)
    with torch.cuda.device_of(hidden):
        _draft_blocks_kernel[grid_rows, ceil_div(rows, tile_rows)](
            hidden, features, weight, bias, residual_scale, out, batch, rows, tile_rows,
            hidden.stride(0), features.stride(0), weight.stride(0),
            D=width, F=features.shape[1], **chosen.options(),
        )  # fmt: skip
    return out
