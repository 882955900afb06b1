import math

import numpy as np
import pytest
import torch

import dspark_kernels
from dspark_kernels.reference.noise import gumbel, philox4x32, uniform


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's known-answer vectors for philox4x32, 10 rounds
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    counter, key, expected = (
        torch.tensor([int(word, 16) for word in text.split()]) for text in (counter, key, expected)
    )
    assert torch.equal(philox4x32(counter, key), expected)


def scalar_philox(counter, key):
    """Philox4x32-10 in Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k[0], q % 2**32, (p >> 32) ^ c[3] ^ k[1], p % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF]
POSITIONS = [0, 7, 2**31, 2**32 + 5, 2**62, 1]


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_uniform_is_the_documented_function_of_its_arguments(stream):
    ids = torch.tensor([0, 1, 2, 3, 4, 1023, 2**31 + 6])
    actual = uniform(torch.tensor(SEEDS), torch.tensor(POSITIONS), ids, stream)
    for row, (seed, position) in enumerate(zip(SEEDS, POSITIONS, strict=True)):
        for column, token in enumerate(ids.tolist()):
            low, high = position % 2**32, position >> 32
            key = (seed % 2**32, (seed >> 32) % 2**32)
            word = scalar_philox((token // 4, low, high, stream), key)[token % 4]
            u = np.float32(word) * np.float32(2.0**-32) + np.float32(2.0**-33)
            assert actual[row, column] == min(u, np.float32(1 - 2.0**-24))


def test_uniform_stays_inside_the_unit_interval():
    words = torch.tensor([0, 1, 2**24, 2**32 - 1], dtype=torch.float64).float()
    u = (words * 2.0**-32 + 2.0**-33).clamp(max=1 - 2.0**-24)
    assert (u > 0).all() and (u < 1).all()
    assert torch.isfinite(-torch.log(-torch.log1p(-u))).all()


def test_gumbel_moments_and_independence():
    seeds = torch.arange(64)
    noise = gumbel(seeds, torch.zeros(64, dtype=torch.int64), torch.arange(4096)).double()
    count = noise.numel()
    assert abs(noise.mean() - 0.5772156649) < 5 * math.pi / 6**0.5 / count**0.5
    assert abs(noise.var() - math.pi**2 / 6) < 0.03
    assert abs(((noise - noise.mean()) ** 3).mean() / noise.std() ** 3 - 1.1395) < 0.05
    shifted = gumbel(seeds, torch.ones(64, dtype=torch.int64), torch.arange(4096)).double()
    for other in (shifted, noise.roll(1, 0), noise.roll(1, 1)):  # position, seed, token
        correlation = torch.corrcoef(torch.stack((noise.flatten(), other.flatten())))[0, 1]
        assert abs(correlation) < 5 / count**0.5


@pytest.mark.backend
@pytest.mark.parametrize("offset", [0, 1, 4 * 10**9 + 3])
def test_a_backend_draws_the_same_noise(offset, device):
    # with logits of 0 the keys of linear_topk are the noise itself
    tokens, rows = 61, len(SEEDS)
    seeds, positions = torch.tensor(SEEDS, device=device), torch.tensor(POSITIONS, device=device)
    keys, ids, logsumexp = dspark_kernels.linear_topk(
        torch.zeros(rows, 16, device=device), torch.zeros(tokens, 16, device=device), tokens,
        temperature=torch.ones(rows, device=device), seed=seeds, position=positions,
        vocab_offset=offset,
    )  # fmt: skip
    expected = gumbel(seeds, positions, torch.arange(tokens, device=device) + offset)
    actual = torch.empty_like(expected).scatter_(1, ids - offset, keys)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logsumexp, expected.logsumexp(1), rtol=1e-6, atol=1e-6)
