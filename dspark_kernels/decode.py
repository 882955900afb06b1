"""The decoding loop: step and generate, composed of the ops over static buffers.

A step drafts a tree, runs the target once over its nodes, draws the target's own token at each
node and keeps the path on which tree and draws agree. Nothing in it stops the host.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .checks import function, integer, nodes, prompts_of, share, token_ids
from .graph import Graphs, Readback, Session, on_device
from .ops import accept_tree, best_slots, context_lookup, glm_tree, linear_topk, values_on_trust
from .packing import Budget, Packing, survivors, unpack
from .prefill import prefill
from .sampling import Sampling, draw
from .scheduler import Scheduler
from .state import State
from .statistics import Clock, Results, Statistics, no_clock
from .tree import DraftTree

CAPTURED = 8, 32  # nodes of a tree, at most, where trees share a number; or all
Choice = Callable[[torch.Tensor], Budget]  # from scores, float32 [B, M]


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
    path: torch.Tensor  # int32 [B, P + 1], the nodes accepted, -1 padded
    scores: torch.Tensor | None = None  # float32 [B, M], of all nodes drafted; None without a draft

    def joined(self) -> torch.Tensor:
        """All in one tensor, int32 [B, 3 P + 5 + M], which one copy brings to the host."""
        parts = [self.tokens.view(torch.int32), self.counts[:, None], self.nodes[:, None]]
        scores = [] if self.scores is None else [self.scores.view(torch.int32)]
        return torch.cat([*parts, self.path, *scores], dim=1)

    @classmethod
    def parted(cls, joined: torch.Tensor, scored: int) -> "Outcome":
        """What was joined, on the CPU; scored: M, 0 without a draft."""
        length = (joined.shape[1] - 2 - scored) // 3
        sizes = [2 * length, 1, 1, length, scored]
        tokens, counts, nodes, path, scores = joined.split(sizes, dim=1)
        tokens = tokens.clone(memory_format=torch.contiguous_format)
        return cls(
            tokens.view(torch.int64), counts[:, 0], nodes[:, 0], path,
            scores.view(torch.float32) if scored else None,
        )  # fmt: skip


def candidates(draft, state: State) -> dict:
    """What `glm_tree` reads in this step, whatever the number of nodes."""
    root, seqlens, sampling = state.root, state.cache.seqlens, state.sampling
    paths, path_scores = None, None
    if draft.lookup is not None:
        with state.side():  # one block per request, which leaves a GPU to the heads
            paths, match_length = context_lookup(
                state.history, state.lengths, **draft.lookup.window
            )
            path_scores = draft.lookup.scores(match_length)
    states = draft.head_states(state.hidden, state.features, root)  # [B, H, D]
    batch, heads, _ = states.shape
    noise = {}
    if sampling.temperature is not None:
        noise = {
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            "position": (seqlens[:, None] + draft.depths).flatten(),
        }
    keys, ids, logsumexp = linear_topk(
        states.flatten(0, 1), draft.vocab_weight, draft.num_candidates, id_map=draft.id_map,
        seen=state.seen(), repetition_penalty=sampling.repetition_penalty, **noise,
    )  # fmt: skip
    state.side.join()
    return {
        "ids": ids.view(batch, heads, -1), "keys": keys.view(batch, heads, -1),
        "logsumexp": logsumexp.view(batch, heads), "gate": draft.gates(states), "root": root,
        "table_in": draft.table_in, "table_out": draft.table_out, "mix": draft.mix,
        "depth_scale": draft.depth_scale, "calibration": draft.calibration,
        "temperature": sampling.temperature, "paths": paths, "path_scores": path_scores,
    }  # fmt: skip


def propose(
    draft, state: State, max_nodes: int, min_score: float, choose: Choice | None = None,
    clock=no_clock,
) -> tuple[DraftTree, torch.Tensor, Packing | None]:  # fmt: skip
    """The trees of this step, the scores [B, max_nodes] which `choose` cut them by, and which of
    their slots the target is to verify: None for all."""
    with clock("draft"):
        found = candidates(draft, state)
    with clock("gate"):
        tree = glm_tree(**found, num_nodes=max_nodes, min_score=min_score)
        scores = tree.scores
        num_nodes, total = (max_nodes, scores.numel()) if choose is None else choose(scores)
        if num_nodes < max_nodes:
            tree = tree.best(num_nodes)
        packing = None
        if total < tree.scores.numel():
            packing = best_slots(
                scores, tree.num_nodes, state.lengths, state.limit, state.done,
                nodes=tree.scores.shape[1], total=total,
            )  # fmt: skip
    return tree, scores, packing


def verify(
    target, state: State, tree: DraftTree, max_depth: int, clock: Clock,
    packing: Packing | None = None,
) -> tuple[Outcome, torch.Tensor]:  # fmt: skip
    """Run the target over the trees, draw at their nodes, and move on to the end of the path.

    packing: the slots to run over, None for all; of trees whose scores never rise from one node to
    the next, as those of `glm_tree`, so that it keeps the first nodes of each. Returns the outcome,
    and the target's draws at all nodes, int64 [B, N], without a meaning at those left out.
    """
    cache, tokens = state.cache, tree.tokens
    with clock("verify"):
        positions = torch.empty_like(tokens)  # int64, in one launch
        torch.add(cache.seqlens[:, None], tree.depths, out=positions)
        hidden, features = target.forward(tokens, positions, cache, tree.ancestors, packing)
    with clock("draw"):
        seen = state.seen(tree, packing)
        drawn = draw(target, hidden, positions, state.sampling, seen, packing)
        drawn = unpack(drawn, packing, *tokens.shape)
        if packing is not None:  # the walk never meets a node that is left out
            tree = tree._replace(num_nodes=packing.counts)
    with clock("accept"):
        path, emitted, counts, last = accept_tree(
            tree, drawn, cache.tensors, cache.seqlens,
            block_table=cache.block_table, max_depth=max_depth,
        )  # fmt: skip
        rows = None if packing is None else packing.rows
        counts = state.advance(emitted, counts, last, hidden, features, rows)
    return Outcome(emitted, counts, tree.num_nodes, path), drawn


def step(
    target, draft, state: State, num_nodes: int, min_score: float, clock: Clock,
    choose: Choice | None = None,
) -> Outcome:  # fmt: skip
    """One step of all requests: one token each without a draft, else up to `num_nodes` nodes.

    choose: is given the scores of these nodes, and says how many of the best to verify: of one
    request at most, and of all together.
    """
    if draft is None:
        return verify(target, state, state.roots, 0, clock)[0]
    tree, scores, packing = propose(draft, state, num_nodes, min_score, choose, clock)
    outcome, _drawn = verify(target, state, tree, max_depth(draft), clock, packing)
    return outcome._replace(scores=scores)


def max_depth(draft) -> int:
    """The depth of the deepest tree that `draft` can propose."""
    return 0 if draft is None else draft.max_depth


def generate(
    target,
    draft,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    stop: Sequence[int] = (),
    num_nodes: int | Scheduler | Callable[[], Scheduler] = 16,
    min_score: float = 0.0,
    on_tokens: Callable[[int, list[int]], None] | None = None,
    stop_when: Callable[[int, list[int]], bool] | None = None,
    sync_every: int = 1,
    session: Session | None = None,
    prefix_caching: bool = False,
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
            scheduler, which chooses them before each step, or a function that makes one.
        min_score: nodes which would add less than this share to the expected tokens of a step are
            not verified.
        on_tokens: called with (request, its new tokens) after each step that yielded some.
        stop_when: called with (request, all its new tokens so far) for each new token; where it
            returns True, that token is the request's last one.
        sync_every: steps between two looks of the host at the results. On a GPU it looks one step
            behind, and the scheduler knows no more than it.
        session: buffers, and on a GPU captured steps, which calls for this target and draft share.
        prefix_caching: whether to leave out, of prompts that begin like texts of the session's last
            call of so many prompts, continuations included, what the cache still holds. Each prompt
            runs as many tokens as the one which goes on from the least, and all do if that is most
            of the longest. Weights and adapters must be the same as then. Options of the draw that
            are off in one of the calls and on in the other, top-k on two sides of 64, or many stop
            tokens, make them of different caches. In bfloat16 the tokens left out may have been
            rounded differently.

    Returns:
        The new tokens of each request, and statistics. With the same seed, the tokens are the same
        for every draft, `num_nodes` and batch, as far as the target's arithmetic is.

    Raises:
        TypeError, ValueError: a prompt is empty, too long, or holds a token outside the vocabulary;
            an option is out of range; or the model is not what it was, see `check_unchanged`.
        RuntimeError: another call uses the session.
    """
    max_new_tokens = integer("max_new_tokens", max_new_tokens, 1)
    sync_every = integer("sync_every", sync_every, 1)
    min_score = share("min_score", min_score)
    prompts = prompts_of(target, prompts, max_new_tokens)
    stop = sorted(set(token_ids("stop", stop, 2**63)))
    on_tokens, stop_when = function("on_tokens", on_tokens), function("stop_when", stop_when)
    sampling = sampling or Sampling()
    sampling.tensors(len(prompts), torch.device("cpu"))
    if not (isinstance(num_nodes, Scheduler) or callable(num_nodes)):
        num_nodes = Scheduler((nodes("num_nodes", num_nodes),))
    target.check_unchanged()
    session = session or Session()
    on_tokens, stop_when = _outside(on_tokens, target.device), _outside(stop_when, target.device)
    with session.alone(), on_device(target.device), _plain_arithmetic(target.device):
        scheduler = num_nodes if isinstance(num_nodes, Scheduler) else num_nodes()
        scheduler.begin(len(prompts))
        lengths = [len(prompt) for prompt in prompts]
        results = Results(lengths, max_new_tokens, stop, on_tokens, stop_when)
        clock = Clock(target.device)
        with clock("prefill"):
            room = scheduler.max_nodes + max_depth(draft) + 1
            state, results.statistics.cached_tokens = prefill(
                target, prompts, sampling, stop, max_new_tokens, room, session, prefix_caching
            )
            results.add_first(state.root.tolist())
        graphs = session.graphs
        loop = _Loop(target, draft, state, scheduler, min_score, graphs, results, clock)
        loop.run(sync_every)
        session.keep([prompts[i] + results.tokens[i][:count] for i, count in loop.held])
        results.statistics.seconds = clock.seconds()
        return Generation(results.tokens, results.statistics)


@contextmanager
def _plain_arithmetic(device: torch.device):
    """No gradients, no autocast, and values on trust."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), values_on_trust():
        yield


def _outside(given, device: torch.device):
    """A user's function, called as if `generate` were not around it; made outside of it."""
    if given is None:
        return None
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    autocast = {
        "enabled": torch.is_autocast_enabled(device.type),
        "dtype": torch.get_autocast_dtype(device.type),
    }

    def call(request: int, tokens: list[int]):
        with (
            torch.inference_mode(inference), torch.set_grad_enabled(gradients),
            torch.autocast(device.type, **autocast), values_on_trust(False),
        ):  # fmt: skip
            return given(request, tokens)

    return call


class _Launched(NamedTuple):
    requests: np.ndarray
    budget: Budget
    scored: int  # nodes per request, 0 without a draft
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

    def __post_init__(self):
        self.requests = np.arange(len(self.results.tokens))  # which the rows of `state` are
        self.held = [(0, 0)] * len(self.requests)  # by rows of the cache, see `note_held`
        self.arrived = time.perf_counter()  # results of the last step, or the start
        self.disturbed = False  # whether a step of late compiled or captured

    def run(self, sync_every: int) -> None:
        """Step until every request has met its end."""
        results, behind = self.results, 1 if self.graphs.cuda else 0
        launched: deque[_Launched] = deque()
        started = time.perf_counter()
        self.end_stopped()
        while not results.finished:
            for _ in range(min(sync_every, int(results.remaining.max()))):  # a token each at least
                launched.append(self.launch())
            with self.clock("host"):
                while len(launched) > behind:
                    self.look(launched.popleft())
                self.disturbed = False
                if not self.graphs.cuda:
                    self.drop_finished()
        self.note_held()
        results.statistics.decode_seconds = time.perf_counter() - started

    @property
    def budget(self) -> Budget:
        """The scheduler's; on a GPU with few sizes of trees which share a number of nodes, since
        each is a capture."""
        num_nodes, total = budget = self.scheduler.budget
        if not self.graphs.cuda or total == num_nodes * len(self.requests):
            return budget
        most = self.scheduler.max_nodes
        return Budget(
            next(size for size in (*CAPTURED, most) if size >= min(num_nodes, most)), total
        )

    def launch(self) -> _Launched:
        """Start a step with as many nodes as the scheduler says; on a GPU nothing waits for it."""
        scheduler, cuda = self.scheduler, self.graphs.cuda
        draft = self.draft if self.draft is not None and scheduler.drafts() else None
        clock = no_clock if cuda else self.clock
        num_nodes = scheduler.max_nodes if cuda else scheduler.draft_nodes

        def run():
            outcome = step(
                self.target, draft, self.state, num_nodes, self.min_score, clock, self._choose
            )
            return outcome.joined()

        plain = Budget(1, len(self.requests))
        key = draft is None, plain if draft is None else self.budget, num_nodes, self.min_score
        self.disturbed |= not self.graphs.settled(key)
        with self.clock("graph") if cuda else nullcontext():
            outcome = self.graphs(key, run)
        budget = plain if draft is None else self.budget
        scored = 0 if draft is None else num_nodes
        return _Launched(self.requests, budget, scored, Readback(outcome))

    def _choose(self, scores: torch.Tensor) -> Budget:
        """On the CPU the scores of this tree decide; on a GPU those which were looked at last."""
        if self.graphs.cuda:
            return self.budget
        self._schedule(scores.numpy())
        budget, used = self.scheduler.budget, (scores.numpy() > 0).sum(axis=1)
        return Budget(min(budget.num_nodes, int(used.max())), min(budget.total, int(used.sum())))

    def _schedule(self, scores: np.ndarray) -> None:
        remaining = self.results.remaining[self.requests]
        self.scheduler.choose(scores, remaining, self.results.context)

    def look(self, launched: _Launched) -> None:
        """Take a step's results, and let the scheduler learn from them."""
        results, requests = self.results, launched.requests
        outcome = Outcome.parted(launched.outcome.get(), launched.scored)
        drafted = outcome.scores is not None
        seconds = launched.outcome.arrived - self.arrived
        self.arrived = launched.outcome.arrived
        running = results.running[requests]
        count = np.count_nonzero(running)
        if not count:
            return
        emitted = outcome.counts.numpy()[running]
        if not emitted.all():
            raise RuntimeError("generate: a step yielded no token of a request that goes on")
        predicted = float(count)
        if drafted:
            scores, nodes = outcome.scores.numpy(), outcome.nodes.numpy()
            paths = outcome.path[:, 1:].tolist()
            path_scores = [
                [float(row[node]) for node in path if node >= 0]
                for row, path, goes_on in zip(scores, paths, running, strict=True)
                if goes_on
            ]
            predicted += self.scheduler.observe(nodes[running], scores[running], path_scores)
            if self.graphs.cuda:
                self._schedule(scores)
        batch, total = len(requests), launched.budget.total
        if not self.disturbed:
            self.scheduler.observe_seconds(batch, total, results.context, seconds, drafted)
        counts = outcome.counts.tolist()
        results.add_step(requests, outcome.tokens.tolist(), counts, outcome.nodes.tolist())
        self.end_stopped()
        results.statistics.record_choice(total, predicted, float(emitted.sum()), seconds)

    def end_stopped(self) -> None:
        """Let the steps to come know which requests `stop_when` ended."""
        while self.results.stopped:
            row = self.requests.tolist().index(self.results.stopped.pop())
            self.state.done[row].fill_(True)  # an assignment would copy from the host

    def drop_finished(self) -> None:
        """Go on with the requests that have not met their end, if some have."""
        kept = survivors(self.results.running[self.requests])
        if kept is not None:
            self.note_held()
            self.state = self.state.select(torch.from_numpy(kept))
            self.requests = self.requests[kept]

    def note_held(self) -> None:
        """Note which request a row of the cache holds, and of how many new tokens: all but the
        last, of which there is nothing yet."""
        for row, request in enumerate(self.requests):
            self.held[row] = request, len(self.results.tokens[request]) - 1
