"""Greedy decoding with a drafter of another kind: our target pass, acceptance and bookkeeping.

What `dspark_kernels.decode` does with heads and gate, for methods that draft in their own way, so
that a comparison with them compares the drafts.
"""

import time
from collections.abc import Sequence
from typing import Protocol

import torch

from dspark_kernels import DraftTree, accept_tree
from dspark_kernels.decode import Generation, prefill
from dspark_kernels.sampling import Sampling, draw
from dspark_kernels.state import State
from dspark_kernels.statistics import Clock, Results


class Drafter(Protocol):
    """What proposes the trees of a batch of requests."""

    def propose(self, state: State) -> DraftTree:
        """A tree for every request; nodes from `num_nodes` on are run but never accepted."""

    def observe(self, emitted: list[list[int]], drawn: torch.Tensor) -> None:
        """Take the tokens that each request got, and the target's draws at all nodes [B, N]."""


class Drafting(Protocol):
    """A way to draft."""

    max_nodes: int  # of a tree, those included that are not up for acceptance
    max_depth: int  # of an accepted path

    def start(self, texts: list[list[int]]) -> Drafter:
        """The drafter for these requests: tokens of each prompt and the one drawn with it."""


@torch.inference_mode()
def generate(
    decoder, drafting: Drafting, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> Generation:
    """Continue every prompt greedily; the tokens do not depend on the drafting."""
    target, stop = decoder.target, decoder.stop_tokens
    clock = Clock(target.device)
    with clock("prefill"):
        room = drafting.max_nodes + drafting.max_depth + 1
        state = prefill(target, prompts, Sampling(), stop, max_new_tokens, room)
        first = state.root.tolist()
        results = Results([len(prompt) for prompt in prompts], max_new_tokens, stop, None)
        results.add_first(first)
    started = time.perf_counter()
    with clock("draft"):
        texts = [[*prompt, token] for prompt, token in zip(prompts, first, strict=True)]
        drafter = drafting.start(texts)
    while not results.finished:
        emitted, drawn, nodes = step(target, drafter, drafting.max_depth, state, clock)
        with clock("host"):
            results.add_step(emitted, [len(tokens) for tokens in emitted], nodes)
        with clock("draft"):
            drafter.observe(emitted, drawn)
    results.statistics.decode_seconds = time.perf_counter() - started
    results.statistics.seconds = clock.seconds()
    return Generation(results.tokens, results.statistics)


def step(target, drafter: Drafter, max_depth: int, state: State, clock: Clock):
    """One step: (emitted tokens per request, draws [B, N], nodes up for acceptance)."""
    cache = state.cache
    with clock("draft"):
        tree = drafter.propose(state)
    with clock("verify"):
        positions = cache.seqlens[:, None].long() + tree.depths
        hidden, features = target.forward(tree.tokens, positions, cache, tree.ancestors)
    with clock("draw"):
        drawn = draw(target, hidden, positions + 1, state.sampling)
    with clock("accept"):
        _, tokens, counts, last = accept_tree(
            tree, drawn, cache.tensors, cache.seqlens, block_table=cache.block_table,
            max_depth=max_depth,
        )  # fmt: skip
        counts = counts.masked_fill(state.done, 0)
        state.keep(hidden, features, last)
        cache.seqlens += counts
        state.append(tokens, counts)
    with clock("host"):
        emitted = [row[:n] for row, n in zip(tokens.tolist(), counts.tolist(), strict=True)]
        return emitted, drawn, tree.num_nodes.tolist()
