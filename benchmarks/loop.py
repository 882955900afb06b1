"""Greedy decoding with a drafter of another kind: our target pass, acceptance and bookkeeping.

What `dspark_kernels.decode` does with heads and gate, for methods that draft in their own way, so
that a comparison with them compares the drafts.
"""

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from dspark_kernels import DraftTree
from dspark_kernels.decode import Generation, verify
from dspark_kernels.ops import values_on_trust
from dspark_kernels.packing import survivors
from dspark_kernels.prefill import prefill
from dspark_kernels.sampling import Sampling
from dspark_kernels.state import State
from dspark_kernels.statistics import Clock, Results


class Drafter(Protocol):
    """What proposes the trees of a batch of requests."""

    def propose(self, state: State) -> DraftTree:
        """A tree for every request; nodes from `num_nodes` on are run but never accepted."""

    def observe(self, emitted: list[list[int]], drawn: torch.Tensor) -> None:
        """Take the tokens that each request got, and the target's draws at all nodes [B, N]."""

    def select(self, requests: list[int]) -> None:
        """Go on with these of several requests; the others have met their end."""


class Drafting(Protocol):
    """A way to draft."""

    max_nodes: int  # of a tree, those included that are not up for acceptance
    max_depth: int  # of an accepted path

    def start(self, texts: list[list[int]]) -> Drafter:
        """The drafter for these requests: tokens of each prompt and the one drawn with it."""


@torch.inference_mode()
@values_on_trust()
def generate(
    decoder, drafting: Drafting, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> Generation:
    """Continue every prompt greedily; the tokens do not depend on the drafting."""
    target, stop = decoder.target, decoder.stop_tokens
    clock = Clock(target.device)
    with clock("prefill"):
        room = drafting.max_nodes + drafting.max_depth + 1
        state, _ = prefill(target, prompts, Sampling(), stop, max_new_tokens, room)
        first = state.root.tolist()
        results = Results([len(prompt) for prompt in prompts], max_new_tokens, stop, None)
        results.add_first(first)
    started = time.perf_counter()
    with clock("draft"):
        texts = [[*prompt, token] for prompt, token in zip(prompts, first, strict=True)]
        drafter = drafting.start(texts)
    requests = np.arange(len(prompts))
    while not results.finished:
        with clock("draft"):
            tree = drafter.propose(state)
        outcome, drawn = verify(target, state, tree, drafting.max_depth, clock)
        with clock("host"):
            tokens, counts = outcome.tokens.tolist(), outcome.counts.tolist()
            results.add_step(requests, tokens, counts, outcome.nodes.tolist())
        with clock("draft"):
            emitted = [row[:count] for row, count in zip(tokens, counts, strict=True)]
            drafter.observe(emitted, drawn)
        with clock("host"):
            kept = survivors(results.running[requests])
            if kept is not None and target.device.type == "cpu":  # as `decode.generate` does
                state, requests = state.select(torch.from_numpy(kept)), requests[kept]
                drafter.select(kept.tolist())
    results.statistics.decode_seconds = time.perf_counter() - started
    results.statistics.seconds = clock.seconds()
    return Generation(results.tokens, results.statistics)
