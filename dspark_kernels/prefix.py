"""Which tokens of new prompts a KV cache still holds, from the texts of the call before."""

import numpy as np

WORTH = 0.75  # share of the longest prompt up to which running the rest alone is faster


def resume(prompts: list[list[int]], texts: list[list[int]]) -> tuple[list[int], list[int]]:
    """Which row of the cache holds most of each prompt, and from where on the prompts are run.

    texts: of as many rows. All prompts run equally many tokens, as many as the one of which the
    fewest are held; or all of theirs, from 0 on, if that is most of the longest.
    """
    lengths = [len(prompt) for prompt in prompts]
    arrays, held = ([np.array(ids) for ids in lists] for lists in (prompts, texts))
    shared = [[_shared(prompt, text) for text in held] for prompt in arrays]
    rows = [  # of several, its own
        max(range(len(texts)), key=lambda row: (of[row], row == own))
        for own, of in enumerate(shared)
    ]
    count = max(length - of[row] for length, of, row in zip(lengths, shared, rows, strict=True))
    if count > WORTH * max(lengths):
        count = max(lengths)
    return rows, [max(0, length - count) for length in lengths]


def _shared(prompt: np.ndarray, text: np.ndarray) -> int:
    """With how many tokens of the text a prompt begins; its last one draws, and has to be run."""
    most = min(len(prompt) - 1, len(text))
    other = np.flatnonzero(prompt[:most] != text[:most])
    return int(other[0]) if len(other) else most
