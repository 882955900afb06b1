"""Counter-based noise on the device: the bits of `reference.noise`, for tiles of token ids."""

import triton
import triton.language as tl

STREAM_DRAW = tl.constexpr(0)
MULTIPLIER_0, MULTIPLIER_1 = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
WEYL_0, WEYL_1 = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)
LARGEST_BELOW_ONE = tl.constexpr(1.0 - 2.0**-24)


@triton.jit
def _word(x, shift: tl.constexpr):
    """Bits shift .. shift + 31 of an int64."""
    return ((x >> shift) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def philox(seed, position, block, stream: tl.constexpr):
    """Philox4x32-10 of int64 tensors that broadcast together: its four uint32 words."""
    c0, c1, c2, c3 = _word(block, 0), _word(position, 0), _word(position, 32), stream
    k0, k1 = _word(seed, 0), _word(seed, 32)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, MULTIPLIER_0), c0 * MULTIPLIER_0
        high1, low1 = tl.umulhi(c2, MULTIPLIER_1), c2 * MULTIPLIER_1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + WEYL_0, k1 + WEYL_1
    return c0, c1, c2, c3


@triton.jit
def _uniform(words):
    """u in (0, 1), float32, of uint32 words.

    x·2^-32 is exact, so contracting the two operations into an fma gives the same bits.
    """
    return tl.minimum(words.to(tl.float32) * 2.0**-32 + 2.0**-33, LARGEST_BELOW_ONE)


@triton.jit
def _gumbel(u):
    """Standard Gumbel noise -log(-log1p(-u)); log1p(-u) = log(w)·u / (1 - w), w = fl(1 - u)."""
    w = 1.0 - u
    exponential = tl.where(w == 1.0, u, tl.log(w) * (u / (w - 1.0)))
    return -tl.log(exponential)


@triton.jit
def gumbel(
    seed, position, ids, first, CONSECUTIVE: tl.constexpr, stream: tl.constexpr = STREAM_DRAW
):  # fmt: skip
    """Gumbel noise [BLOCK_V, BLOCK_M] of int64 seed and position [BLOCK_M] and token ids [BLOCK_V].

    CONSECUTIVE: ids count up from `first`, a multiple of 4, so that one Philox serves four of them.
    """
    if CONSECUTIVE:
        BLOCKS: tl.constexpr = ids.shape[0] // 4
        block = (first >> 2) + tl.arange(0, BLOCKS)
        c0, c1, c2, c3 = philox(seed[None, :], position[None, :], block[:, None], stream)
        words = tl.join(tl.join(c0, c2), tl.join(c1, c3))  # [BLOCKS, BLOCK_M, lane // 2, lane % 2]
        words = tl.reshape(tl.permute(words, (0, 2, 3, 1)), (ids.shape[0], seed.shape[0]))
    else:
        c0, c1, c2, c3 = philox(seed[None, :], position[None, :], (ids >> 2)[:, None], stream)
        lane = (ids & 3)[:, None]
        words = tl.where(lane < 2, tl.where(lane == 0, c0, c1), tl.where(lane == 2, c2, c3))
    return _gumbel(_uniform(words))
