"""Repetition penalties for the tests of the ops that take one."""

import torch


def penalty(rows, vocab, seed=0, device="cpu", entries=None):
    """`seen` of half of the tokens for each row (or entry), and penalties of both kinds or none."""
    g = torch.Generator().manual_seed(seed)
    words = (vocab + 63) // 64
    seen = torch.randint(-(2**63), 2**63 - 1, (entries or rows, words), generator=g)
    penalties = torch.tensor([1.3, 0.6, 1.0, 25.0, 1.1]).repeat(rows)[:rows]
    return {"seen": seen.to(device), "repetition_penalty": penalties.to(device)}


WRONG = [  # arguments for 4 rows, the error, and its message
    ({"seen": None}, ValueError, "seen must be given together with repetition_penalty, got None"),
    ({"repetition_penalty": None}, ValueError, "repetition_penalty must be given together with"),
    ({"seen": torch.zeros(3, 1).long()}, ValueError, r"seen must .* words\] with R dividing M="),
    ({"seen": torch.zeros(0, 1).long()}, ValueError, r"seen must have shape \[R, words\] with R"),
    ({"seen": torch.zeros(4).long()}, ValueError, r"seen must have shape \[R, words\], got \[4\]"),
    ({"seen": torch.zeros(1, 0).long()}, ValueError, "seen must have at least one column"),
    ({"seen": torch.zeros(1, 1).int()}, TypeError, "seen must have dtype int64, got int32"),
    ({"repetition_penalty": torch.zeros(1)}, ValueError, "repetition_penalty must h"),
    ({"repetition_penalty": torch.ones(3)}, ValueError, "repetition_penalty must have shape"),
]
