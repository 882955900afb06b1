"""Counter-based noise: the same bits for the same (seed, position, token) on every backend.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), key = the 64-bit
seed, counter = (token // 4, position low, position high, stream), word token % 4 of the result.
"""

import torch

STREAM_DRAW, STREAM_ACCEPT, STREAM_RESIDUAL = 0, 1, 2
MASK32 = 0xFFFFFFFF
LARGEST_BELOW_ONE = 1.0 - 2.0**-24


def per_row(rows: int, *options: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Options [B] of the draw as [rows]: an entry serves rows / B rows in succession."""
    return [
        None if t is None else t.repeat_interleave(rows // max(1, len(t)), dim=0) for t in options
    ]


def _multiply(a: int, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a·b for 32-bit words held in int64."""
    low = a * (b & 0xFFFF)  # < 2^48
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(counter: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Philox4x32-10 on 32-bit words: counter int64 [..., 4], key [..., 2] -> int64 [..., 4]."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), -1)


def uniform(
    seed: torch.Tensor, position: torch.Tensor, ids: torch.Tensor, stream: int = STREAM_DRAW
) -> torch.Tensor:
    """Uniform numbers inside (0, 1): seed, position int64 [M], token ids int64 [K] or [M, K]
    -> [M, K].

    u = x·2^-32 + 2^-33 in float32, at most 1 - 2^-24; exactly these bits on every backend.
    """
    if ids.dim() == 1:  # four tokens may share a block
        blocks, inverse = torch.unique(ids // 4, return_inverse=True)
    else:
        blocks, inverse = ids // 4, torch.arange(ids.shape[1], device=ids.device)
    rows = (len(seed), blocks.shape[-1])
    counter = torch.stack(
        (
            blocks.expand(rows),
            (position & MASK32)[:, None].expand(rows),
            ((position >> 32) & MASK32)[:, None].expand(rows),
            torch.full(rows, stream, dtype=torch.int64, device=ids.device),
        ),
        -1,
    )
    key = torch.stack((seed & MASK32, (seed >> 32) & MASK32), -1)[:, None]
    place = (inverse * 4 + ids % 4).expand(len(seed), -1)
    words = philox4x32(counter, key).flatten(1).gather(1, place)
    return (words.float() * 2.0**-32 + 2.0**-33).clamp(max=LARGEST_BELOW_ONE)


def gumbel(
    seed: torch.Tensor, position: torch.Tensor, ids: torch.Tensor, stream: int = STREAM_DRAW
) -> torch.Tensor:
    """Standard Gumbel noise -log(-log(1 - u)) [M, K], of what `uniform` takes.

    1 - u rather than u: the draws that win an argmax then come from small u, which float32 resolves
    to 2^-33, and not from u near 1, which it resolves to 2^-24.
    """
    return -torch.log(-torch.log1p(-uniform(seed, position, ids, stream)))
