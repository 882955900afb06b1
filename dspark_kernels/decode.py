"""The decoding loop: prefill, step and generate, composed of the ops over static buffers.

A step drafts a tree, runs the target once over its nodes, draws the target's own token at each
node and keeps the path on which tree and draws agree. Nothing in it stops the host.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .graph import Graphs, Readback, Session
from .ops import accept_tree, context_lookup, glm_tree, linear_topk
from .sampling import Sampling, draw
from .scheduler import Scheduler
from .state import State, check_arguments
from .statistics import Clock, Results, Statistics, no_clock
from .tree import DraftTree, chain

Choice = Callable[[torch.Tensor], int]  # scores float32 [B, M] -> number of nodes


@dataclass
class Generation:
    """The emitted tokens of each request, the stop token included, and what the run measured."""

    tokens: list[list[int]]
    statistics: Statistics


class Outcome(NamedTuple):
    """What a step yields, on the device; B requests, trees at most P deep, M nodes scored."""

    tokens: torch.Tensor  # int64 [B, P + 1], the emitted ones, -1 padded
    counts: torch.Tensor  # int32 [B], how many they are; 0 for a finished request
    nodes: torch.Tensor  # int32 [B], verified by the target, the root included
    path_scores: torch.Tensor  # float32 [B, P], of the accepted nodes, -1 padded
    scores: torch.Tensor | None = None  # float32 [B, M], of all nodes drafted; None without a draft


def candidates(draft, state: State) -> dict:
    """What `glm_tree` reads in this step, whatever the number of nodes."""
    root, seqlens, sampling = state.root, state.cache.seqlens, state.sampling
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
    return {
        "ids": ids.view(batch, heads, -1), "keys": keys.view(batch, heads, -1),
        "logsumexp": logsumexp.view(batch, heads), "gate": draft.gates(states), "root": root,
        "table_in": draft.table_in, "table_out": draft.table_out, "mix": draft.mix,
        "depth_scale": draft.depth_scale, "calibration": draft.calibration,
        "temperature": sampling.temperature, "paths": paths, "path_scores": path_scores,
    }  # fmt: skip


def propose(
    draft, state: State, max_nodes: int, min_score: float, choose: Choice | None = None
) -> tuple[DraftTree, torch.Tensor]:
    """The tree of this step, and the scores [B, max_nodes] which `choose` cut it by."""
    found = candidates(draft, state)
    tree = glm_tree(**found, num_nodes=max_nodes, min_score=min_score)
    scores = tree.scores
    num_nodes = max_nodes if choose is None else choose(scores)
    if num_nodes < max_nodes:  # the same best nodes, fewer of them
        tree = glm_tree(**found, num_nodes=num_nodes, min_score=min_score)
    return tree, scores


def verify(
    target, state: State, tree: DraftTree, max_depth: int, clock: Clock
) -> tuple[Outcome, torch.Tensor]:
    """Run the target over the tree, draw at its nodes, and move on to the end of the path.

    Returns the outcome, and the target's draws at all nodes, int64 [B, N].
    """
    cache = state.cache
    with clock("verify"):
        positions = cache.seqlens[:, None].long() + tree.depths
        hidden, features = target.forward(tree.tokens, positions, cache, tree.ancestors)
    with clock("draw"):
        drawn = draw(target, hidden, positions + 1, state.sampling)
    with clock("accept"):
        path, tokens, counts, last = accept_tree(
            tree, drawn, cache.tensors, cache.seqlens, block_table=cache.block_table,
            max_depth=max_depth,
        )  # fmt: skip
        accepted = path[:, 1:].long()
        path_scores = tree.scores.gather(1, accepted.clamp(min=0)).masked_fill(accepted < 0, -1.0)
        counts = counts.masked_fill(state.done, 0)
        state.keep(hidden, features, last)
        cache.seqlens += counts
        state.append(tokens, counts)
    return Outcome(tokens, counts, tree.num_nodes, path_scores), drawn


def step(
    target, draft, state: State, num_nodes: int, min_score: float, clock: Clock,
    choose: Choice | None = None,
) -> Outcome:  # fmt: skip
    """One step of all requests: one token each without a draft, else up to `num_nodes` nodes.

    choose: is given the scores of these nodes, and says how many of the best to verify.
    """
    if draft is None:
        return verify(target, state, chain(state.root[:, None]), 0, clock)[0]
    with clock("draft"):
        tree, scores = propose(draft, state, num_nodes, min_score, choose)
    outcome, _drawn = verify(target, state, tree, max_depth(draft), clock)
    return outcome._replace(scores=scores)


def max_depth(draft) -> int:
    """The depth of the deepest tree that `draft` can propose."""
    return 0 if draft is None else draft.max_depth


def prefill(
    target, prompts, sampling: Sampling, stop, max_new_tokens: int, room: int,
    reuse: State | None = None,
) -> State:  # fmt: skip
    """Run the prompts through the target and draw each request's first token.

    `room`: cache slots and history entries kept free behind the last token, for the tree of a step.
    `reuse`: a state of the same target; if it fits, it is loaded and returned.
    """
    batch, longest = len(prompts), max(len(prompt) for prompt in prompts)
    options = sampling.tensors(batch, target.device)
    shape = (batch, longest + max_new_tokens + room, options, len(stop))
    state = reuse if reuse and reuse.fits(*shape) else State.empty(target, *shape)
    state.load(prompts, options, stop, max_new_tokens)
    positions = torch.arange(longest, device=target.device).expand(batch, -1)
    hidden, features = target.forward(state.history[:, :longest], positions, state.cache)
    state.cache.seqlens.copy_(state.lengths)
    state.keep(hidden, features, state.lengths - 1)
    position = state.lengths.long()[:, None]
    state.append(
        draw(target, state.hidden[:, None], position, state.sampling),
        torch.ones_like(state.lengths),
    )
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
    num_nodes: int | Scheduler = 16,
    min_score: float = 0.0,
    on_tokens: Callable[[int, list[int]], None] | None = None,
    sync_every: int = 1,
    session: Session | None = None,
) -> Generation:
    """Continue every prompt with the target's own draws, several per step.

    Args:
        target: the model, see `integrations.transformers.TransformersTarget`.
        draft: a bound draft (`DraftModel.bind`), or None for plain decoding.
        prompts: token ids of each request; lengths may differ.
        max_new_tokens: tokens per request at most.
        sampling: options of the draw; greedy if None.
        stop: tokens that end a request; the stop token itself is the last one emitted.
        num_nodes: tree nodes which the target verifies per step and request, root included; or a
            scheduler, which chooses them before each step.
        min_score: nodes less likely than this to survive are not verified.
        on_tokens: called with (request, its new tokens) after each step that yielded some.
        sync_every: steps between two looks of the host at the results. On a GPU it looks one step
            behind, and the scheduler knows no more than it.
        session: buffers, and on a GPU captured steps, which calls for this target and draft share.

    Returns:
        The new tokens of each request, and statistics. With the same seed, the tokens are the same
        for every draft, `num_nodes` and batch, as far as the target's arithmetic is.

    Raises:
        ValueError: a prompt is empty, too long, or holds a token outside the vocabulary; or an
            option is out of range.
    """
    fixed = isinstance(num_nodes, int)
    check_arguments(
        target, prompts, max_new_tokens, num_nodes if fixed else num_nodes.max_nodes, sync_every
    )
    scheduler = Scheduler((num_nodes,)) if fixed else num_nodes
    scheduler.begin()
    session = session or Session()
    clock = Clock(target.device)
    room = scheduler.max_nodes + max_depth(draft) + 1
    with clock("prefill"):
        sampling = sampling or Sampling()
        state = prefill(target, prompts, sampling, stop, max_new_tokens, room, session.state)
        graphs = session.take(state)
        results = Results([len(p) for p in prompts], max_new_tokens, stop, on_tokens)
        results.add_first(state.root.tolist())
    loop = _Loop(target, draft, state, scheduler, min_score, graphs, results, clock)
    behind = 1 if graphs.cuda else 0
    launched: deque[_Launched] = deque()
    started = before = time.perf_counter()
    while not results.finished:
        launched.extend(loop.launch() for _ in range(sync_every))
        now = time.perf_counter()
        with clock("host"):
            while len(launched) > behind:
                loop.look(launched.popleft(), (now - before) / sync_every)
        before = time.perf_counter()
    results.statistics.decode_seconds = time.perf_counter() - started
    results.statistics.seconds = clock.seconds()
    return Generation(results.tokens, results.statistics)


class _Launched(NamedTuple):
    num_nodes: int
    drafted: bool
    outcome: Readback


@dataclass
class _Loop:
    """The host's side of the steps of one call."""

    target: Any
    draft: Any
    state: State
    scheduler: Scheduler
    min_score: float
    graphs: Graphs
    results: Results
    clock: Clock

    def launch(self) -> _Launched:
        """Start a step with as many nodes as the scheduler says; on a GPU nothing waits for it."""
        scheduler, cuda = self.scheduler, self.graphs.cuda
        draft = self.draft if self.draft is not None and scheduler.drafts() else None
        clock = no_clock if cuda else self.clock

        def run():
            return step(
                self.target, draft, self.state, scheduler.max_nodes, self.min_score, clock,
                self._choose,
            )  # fmt: skip

        num_nodes = 1 if draft is None else scheduler.num_nodes
        key = draft is None, num_nodes, scheduler.max_nodes, self.min_score
        with self.clock("graph") if cuda else nullcontext():
            outcome = self.graphs(key, run)
        num_nodes = 1 if draft is None else scheduler.num_nodes
        return _Launched(num_nodes, draft is not None, Readback(*outcome))

    def _choose(self, scores: torch.Tensor) -> int:
        """On the CPU the scores of this tree decide; on a GPU those which were looked at last."""
        if not self.graphs.cuda:
            self.scheduler.choose(scores.numpy(), self.results.remaining, self.results.context)
        return self.scheduler.num_nodes

    def look(self, launched: _Launched, seconds: float) -> None:
        """Take a step's results, and let the scheduler learn from them."""
        scheduler, results, num_nodes = self.scheduler, self.results, launched.num_nodes
        outcome = Outcome(*launched.outcome.get())
        running = results.running.copy()
        predicted = float(running.sum())
        if launched.drafted:
            scores = outcome.scores.numpy()
            predicted = scheduler.observe(num_nodes, scores, outcome.path_scores.numpy(), running)
            if self.graphs.cuda and running.any():
                scheduler.choose(scores, results.remaining, results.context)
        results.add_step(outcome.tokens.tolist(), outcome.counts.tolist(), outcome.nodes.tolist())
        observed = float(outcome.counts.numpy()[running].sum())
        results.statistics.record_choice(num_nodes, predicted, observed, seconds)
