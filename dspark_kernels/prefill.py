"""From prompts to the state of the first step: the pass over the prompts, and the first draw."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from .graph import Session
from .ops._check import MAX_NODES
from .sampling import Sampling, draw, text_before
from .state import State
from .tree import chain

WORTH = 0.75  # share of the longest prompt up to which running the rest alone is faster


def prefill(
    target, prompts, sampling: Sampling, stop, max_new_tokens: int, room: int,
    session: Session | None = None, prefix_caching: bool = False,
) -> State:  # fmt: skip
    """Run the prompts through the target and draw each request's first token.

    room: cache slots and history entries kept free behind the last token, for the tree of a step.
    prefix_caching: whether to leave out what the session's cache holds already.
    """
    batch, longest = len(prompts), max(map(len, prompts))
    options = sampling.tensors(batch, target.device, target.logit_scale)
    capacity = longest + max_new_tokens + room
    session = session or Session()
    state = session.take(target, batch, capacity, options, len(stop), grow=prefix_caching)
    starts = _resume(state, prompts) if prefix_caching else [0] * batch
    state.held = [[]] * batch  # until the call has come to its end
    state.cached_tokens = sum(starts)
    state.load(prompts, options, stop, max_new_tokens)
    count = longest - max(starts)  # the longest prompt starts last
    hidden, features = _run(target, state, starts, count)
    last = state.lengths - 1
    node = last - torch.tensor(starts, dtype=torch.int32).to(last.device)
    state.cache.seqlens.copy_(last)
    drawing = hidden[torch.arange(batch, device=target.device) * count + node]
    before = partial(text_before, state.history, state.lengths)
    tokens = draw(target, drawing, last[:, None].long(), state.sampling, before)
    state.advance(tokens[:, None], torch.ones_like(last), node, hidden, features)
    return state


def _resume(state: State, prompts) -> list[int]:
    """From where on to run each prompt, all of them equally many tokens; the state's cache then
    holds what comes before."""
    texts = [np.array(text) for text in state.held]
    shared = np.array([[_shared(np.array(prompt), text) for text in texts] for prompt in prompts])
    rows = [  # which holds the most of a prompt, and its own of several
        max(range(len(prompts)), key=lambda row: (of[row], row == own))
        for own, of in enumerate(shared)
    ]
    lengths = [len(prompt) for prompt in prompts]
    count = max(length - of[row] for length, of, row in zip(lengths, shared, rows, strict=True))
    if count > WORTH * max(lengths):
        return [0] * len(prompts)
    if rows != list(range(len(rows))):
        state.cache.storage.copy_(state.cache.storage[:, :, rows])
    return [max(0, length - int(count)) for length in lengths]


def _shared(prompt: np.ndarray, text: np.ndarray) -> int:
    """With how many tokens of the text a prompt begins; its last one draws, and has to be run."""
    most = min(len(prompt) - 1, len(text))
    other = np.flatnonzero(prompt[:most] != text[:most])
    return int(other[0]) if len(other) else most


def _run(target, state: State, starts: Sequence[int], count: int):
    """States [B·count, D] and features of `count` tokens of each request from `starts` on."""
    batch, device = len(starts), target.device
    offset = torch.arange(count, device=device)
    if not any(starts):
        positions = offset.expand(batch, -1)
        return target.forward(state.history[:, :count], positions, state.cache)
    first = torch.tensor(starts, dtype=torch.int32).to(device)
    positions = first[:, None] + offset
    parts = []
    for some in positions.split(MAX_NODES, dim=1):  # chains: trees behind what the cache holds
        tree = chain(state.history.gather(1, some))
        state.cache.seqlens.copy_(some[:, 0])
        hidden, features = target.forward(tree.tokens, some, state.cache, tree.ancestors)
        parts.append((hidden, features))
    return [_side_by_side(part, batch) for part in zip(*parts, strict=True)]


def _side_by_side(parts, batch: int) -> torch.Tensor | None:
    """[B·N, ...] of several N -> those of all of them."""
    if parts[0] is None:
        return None
    return torch.cat([part.unflatten(0, (batch, -1)) for part in parts], dim=1).flatten(0, 1)
