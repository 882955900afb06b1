"""The decoding loop: prefill, step and generate, composed of the ops over static buffers.

A step drafts a tree, runs the target once over its nodes, draws the target's own token at each
node and keeps the path on which tree and draws agree. Nothing in it stops the host.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .ops import accept_tree, context_lookup, glm_tree, linear_topk
from .sampling import Sampling, draw
from .state import State, check_arguments
from .statistics import Clock, Results, Statistics
from .tree import DraftTree, chain


@dataclass
class Generation:
    """The emitted tokens of each request, the stop token included, and what the run measured."""

    tokens: list[list[int]]
    statistics: Statistics


def propose(draft, state: State, num_nodes: int, min_score: float) -> DraftTree:
    """The tree of this step: the root alone without a draft."""
    root, seqlens, sampling = state.root, state.cache.seqlens, state.sampling
    if draft is None:
        return chain(root[:, None])
    states = draft.head_states(state.hidden, state.features, root)  # [B, H, D]
    batch, heads, _ = states.shape
    noise = {}
    if sampling.temperature is not None:
        depth = torch.arange(1, heads + 1, device=root.device)
        noise = {
            "temperature": sampling.temperature.repeat_interleave(heads),
            "seed": sampling.seed.repeat_interleave(heads),
            "position": (seqlens[:, None] + depth).reshape(-1),
        }
    keys, ids, logsumexp = linear_topk(
        states.flatten(0, 1), draft.vocab_weight, draft.num_candidates, id_map=draft.id_map, **noise
    )
    paths, path_scores = None, None
    if draft.lookup is not None:
        paths, match_length = context_lookup(state.history, state.lengths, **draft.lookup.window)
        path_scores = draft.lookup.scores(match_length)
    return glm_tree(
        ids.view(batch, heads, -1), keys.view(batch, heads, -1), logsumexp.view(batch, heads),
        draft.gates(states), root, draft.table_in, draft.table_out, draft.mix, draft.depth_scale,
        calibration=draft.calibration, temperature=sampling.temperature, paths=paths,
        path_scores=path_scores, num_nodes=num_nodes, min_score=min_score,
    )  # fmt: skip


def step(target, draft, state: State, num_nodes: int, min_score: float, clock: Clock):
    """One step of all requests; returns (tokens [B, P+1], counts [B], tree), on the device."""
    cache = state.cache
    with clock("draft"):
        tree = propose(draft, state, num_nodes, min_score)
    with clock("verify"):
        positions = cache.seqlens[:, None].long() + tree.depths
        hidden, features = target.forward(tree.tokens, positions, cache, tree.ancestors)
    with clock("draw"):
        drawn = draw(target, hidden, positions + 1, state.sampling)
    with clock("accept"):
        _, tokens, counts, last = accept_tree(
            tree, drawn, cache.tensors, cache.seqlens, block_table=cache.block_table,
            max_depth=max_depth(draft),
        )  # fmt: skip
        counts = counts.masked_fill(state.done, 0)
        request = torch.arange(len(last), device=last.device)
        state.hidden = hidden[request, last.long()]
        state.features = None if features is None else features[request, last.long()]
        cache.seqlens += counts
        state.append(tokens, counts)
    return tokens, counts, tree


def max_depth(draft) -> int:
    """The depth of the deepest tree that `draft` can propose."""
    return 0 if draft is None else draft.max_depth


def prefill(target, prompts, sampling: Sampling, stop, max_new_tokens: int, room: int) -> State:
    """Run the prompts through the target and draw each request's first token.

    `room`: cache slots and history entries kept free behind the last token, for the tree of a step.
    """
    batch, device = len(prompts), target.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int32, device=device)
    longest = max(len(prompt) for prompt in prompts)
    capacity = longest + max_new_tokens + room
    history = torch.zeros(batch, capacity, dtype=torch.int64, device=device)
    for row, prompt in zip(history, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt, device=device)
    cache = target.new_cache(batch, capacity)
    positions = torch.arange(longest, device=device).expand(batch, -1)
    hidden, features = target.forward(history[:, :longest], positions, cache)
    request, last = torch.arange(batch, device=device), lengths.long() - 1
    cache.seqlens.copy_(lengths)
    state = State(
        cache=cache,
        history=history,
        lengths=lengths.clone(),
        hidden=hidden[request, last],
        features=None if features is None else features[request, last],
        sampling=sampling.tensors(batch, device),
        stop=torch.tensor(sorted(stop), dtype=torch.int64, device=device),
        limit=lengths + max_new_tokens,
        done=torch.zeros(batch, dtype=torch.bool, device=device),
    )
    first = draw(target, state.hidden[:, None], lengths.long()[:, None], state.sampling)
    state.append(first, torch.ones_like(lengths))
    return state


@torch.inference_mode()
def generate(
    target,
    draft,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    stop: Sequence[int] = (),
    num_nodes: int = 16,
    min_score: float = 0.0,
    on_tokens: Callable[[int, list[int]], None] | None = None,
    sync_every: int = 1,
) -> Generation:
    """Continue every prompt with the target's own draws, several per step.

    Args:
        target: the model, see `integrations.transformers.TransformersTarget`.
        draft: a bound draft (`DraftModel.bind`), or None for plain decoding.
        prompts: token ids of each request; lengths may differ.
        max_new_tokens: tokens per request at most.
        sampling: options of the draw; greedy if None.
        stop: tokens that end a request; the stop token itself is the last one emitted.
        num_nodes: tree nodes which the target verifies per step and request, root included.
        min_score: nodes less likely than this to survive are not verified.
        on_tokens: called with (request, its new tokens) after each step that yielded some.
        sync_every: steps between two looks of the host at the results.

    Returns:
        The new tokens of each request, and statistics. With the same seed, the tokens are the same
        for every draft, `num_nodes` and batch, as far as the target's arithmetic is.

    Raises:
        ValueError: a prompt is empty, too long, or holds a token outside the vocabulary; or an
            option is out of range.
    """
    check_arguments(target, prompts, max_new_tokens, num_nodes, sync_every)
    clock = Clock(target.device)
    room = num_nodes + max_depth(draft) + 1
    with clock("prefill"):
        state = prefill(target, prompts, sampling or Sampling(), stop, max_new_tokens, room)
        results = Results(len(prompts), max_new_tokens, stop, on_tokens)
        results.add_first(state.root.tolist())
    started = time.perf_counter()
    while not results.finished:
        steps = [step(target, draft, state, num_nodes, min_score, clock) for _ in range(sync_every)]
        with clock("host"):
            for tokens, counts, tree in steps:
                results.add_step(tokens.tolist(), counts.tolist(), tree.num_nodes.tolist())
    results.statistics.decode_seconds = time.perf_counter() - started
    results.statistics.seconds = clock.seconds()
    return Generation(results.tokens, results.statistics)
