"""From prompts to the state of the first step: the pass over the prompts, and the first draw."""

import torch

from .graph import Session
from .ops._check import MAX_NODES
from .sampling import Sampling, draw
from .state import State
from .tree import chain


def prefill(
    target, prompts, sampling: Sampling, stop, max_new_tokens: int, room: int,
    session: Session | None = None, prefix_caching: bool = False,
) -> tuple[State, int]:  # fmt: skip
    """Run the prompts through the target and draw each request's first token.

    room: cache slots and history entries kept free behind the last token, for the tree of a step.
    prefix_caching: whether to leave out what the session's cache still holds of the prompts.
    Returns the state, and how many tokens were left out.
    """
    batch, longest = len(prompts), max(map(len, prompts))
    options = sampling.tensors(batch, target.device, target.logit_scale)
    capacity = longest + max_new_tokens + room
    state, starts = (session or Session()).take(
        target, capacity, options, len(stop), prompts, prefix_caching
    )
    state.load(prompts, options, stop, max_new_tokens)
    last = state.lengths - 1
    hidden, features = _run(target, state, starts, longest - max(starts), last)
    state.cache.seqlens.copy_(last)
    tokens = draw(target, hidden, last[:, None].long(), state.sampling, state.seen())
    state.advance(tokens[:, None], torch.ones_like(last), torch.zeros_like(last), hidden, features)
    return state, sum(starts)


def _run(target, state: State, starts: list[int], count: int, last: torch.Tensor):
    """Run `count` tokens of each request from `starts` on; states [B, D] and features [B, F] of
    those at the places `last`."""
    first = torch.tensor(starts, dtype=torch.int32).to(last.device)
    positions = first[:, None] + torch.arange(count, device=last.device)
    # as one prompt; or as chains, which are trees behind what the cache holds
    behind, found = any(starts), None
    for some in positions.split(MAX_NODES if behind else count, dim=1):
        width = some.shape[1]
        state.cache.seqlens.copy_(some[:, 0])
        tokens = state.history.gather(1, some)
        ancestors = chain(tokens).ancestors if behind else None
        states = target.forward(tokens, some, state.cache, ancestors)
        place = last - some[:, 0]
        rows = torch.arange(len(last), device=last.device) * width + place.clamp(0, width - 1)
        here = [None if part is None else part[rows] for part in states]
        if found is not None:  # a short prompt may have ended earlier
            here = [
                old if old is None else torch.where((place >= 0)[:, None], new, old)
                for new, old in zip(here, found, strict=True)
            ]
        found = here
    return found
