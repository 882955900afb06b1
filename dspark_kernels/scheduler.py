"""How many tree nodes the target verifies: the number with the most expected tokens per second.

The scores of a tree are estimates of survival, so the best n of them sum to the tokens which a step
with n nodes is expected to yield; the root's score of 1 stands for the bonus token. A batch shares
its nodes: the best of all requests together. Every emitted token is the target's own draw, so any
choice is lossless.
"""

from collections.abc import Sequence

import numpy as np

from .cost import CostTable
from .packing import Budget, lag_weight

SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # nodes of one request
LEAST_DRAFT = 16  # nodes that are always scored
FIRST_TOTAL = 64  # nodes of a batch at most, before any score is known
TOTALS = (*SIZES, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)  # of a batch
MEMORY, TEXT_MEMORY = 0.998, 0.99  # of the correction: what a step of one request leaves of it
TRUST, TEXT_TRUST = 20.0, 10.0  # accepted nodes which outweigh the scores, and earlier texts
USUAL_MEMORY, MARGIN = 0.9, 1.1  # of the trees' expected tokens; rate over the usual size's
GAIN_MEMORY, LEAST_GAIN = 0.9, 0.15  # of drafting over plain decoding, in plain steps
LONGEST_PAUSE, PAUSE_GROWTH = 48, 3  # plain steps between two drafts
CONTEXT_STEP = 64  # tokens of context within which a step's cost is taken as one
COST_MEMORY, COST_TRUST = 0.95, 10.0  # of late steps' seconds; first steps the table counts for
COST_SPREAD = 1.5  # a step's seconds are that many times what is expected of them at most


class Scheduler:
    """Chooses among `sizes`, 1 being the first, given what they cost; one alone needs no costs.

    The size is the one which late trees promised most of per second; another one only where this
    step's tree promises a tenth more with it. (The best size of each tree alone is worse: it takes
    more nodes where tokens are easy, which a later step would have taken for less.)

    Nodes are grouped by rank: a group lies between two sizes. Scores of a group are corrected by
    the ratio of accepted to predicted nodes among those of the group that were verified lately, in
    this text and, as long as it is short, in those before. Where drafts have not been worth their
    time it decodes plainly, and drafts again ever less often to see whether that has changed.

    Costs are corrected too, by what late steps took: a machine that others share is not as fast as
    when its table was measured, and not by one factor for all numbers of nodes.
    """

    def __init__(self, sizes: tuple[int, ...], costs: CostTable | None = None):
        self.sizes = sizes
        self.costs = costs
        self.budget = Budget(sizes[-1], sizes[-1])  # the last choice
        self._starts = np.array(sizes[:-1] or (1,))  # first rank of each group
        self._group = self._starts.searchsorted(np.arange(sizes[-1]), side="right") - 1  # by rank
        groups = len(self._starts)
        self._all = [[TRUST] * groups, [TRUST] * groups]  # predicted and accepted, by group
        self._usual: dict[int, np.ndarray] = {}  # tokens of late trees by total, by requests
        self._gain = np.zeros(2)  # sum, and its weight
        self._seconds: dict[tuple[int, int, int, bool], float] = {}
        self._pace = 1.0  # seconds of late steps over the table's
        # (nodes, drafted): sum of paces over it, weight
        self._paces: dict[tuple[int, bool], tuple[float, float]] = {}
        self.begin(1)

    @property
    def max_nodes(self) -> int:
        """The largest size: so many nodes are scored before the choice."""
        return self.sizes[-1]

    @property
    def draft_nodes(self) -> int:
        """The size which is enough to score before the choice, as far as the last one tells: on a
        CPU the rest would take its time in vain."""
        enough = min(max(LEAST_DRAFT, 2 * self.budget.num_nodes), self.max_nodes)
        return next(size for size in self.sizes if size >= enough)

    def begin(self, batch: int) -> None:
        """Other texts: what was peculiar to the last ones counts little from here on."""
        num_nodes = self.budget.num_nodes
        if len(self.sizes) > 1:  # a large batch starts small
            most = max(FIRST_TOTAL // batch, 1)
            num_nodes = max(size for size in self.sizes if size <= min(num_nodes, most))
        self.budget = Budget(num_nodes, batch * num_nodes)
        self._text = [[0.0] * len(self._starts) for _ in range(2)]
        self._correct()
        self._gain /= max(self._gain[1], 1.0)
        self._pause = self._rested = 0

    def drafts(self) -> bool:
        """Whether the next step is to draft; a pause ends with a draft, which shows if it pays."""
        if self._rested >= self._pause:
            self._rested = 0
            return self.max_nodes > 1
        self._rested += 1
        return False

    def choose(self, scores: np.ndarray, remaining: np.ndarray, context: float) -> Budget:
        """The budget for trees of these scores, float32 [B, up to max_nodes], best first.

        remaining: [B], tokens which each request may still emit, 0 for a finished one.
        context: mean length of the requests in tokens.
        """
        batch, running = len(scores), remaining > 0
        if len(self.sizes) == 1:
            self.budget = Budget(self.max_nodes, batch * self.max_nodes)
            return self.budget
        ranked = self._whole(scores[running])
        count = len(ranked)
        if count == 1:
            totals, tokens = self.sizes, self._alone(ranked[0])
        else:
            totals = [count, *(n for n in TOTALS if count < n < ranked.size), ranked.size]
            tokens, order = self._shared(ranked, remaining[running], totals)
        seconds = [self.step_seconds(batch, number, context, True) for number in totals[1:]]
        seconds = np.array([self.step_seconds(batch, batch, context, False), *seconds])  # all roots
        usual = self._usual.get(count, tokens)
        usual = self._usual[count] = usual + (1 - USUAL_MEMORY) * (tokens - usual)
        rates = tokens / seconds
        best, now = int((usual / seconds).argmax()), int(rates.argmax())
        if rates[now] > MARGIN * rates[best]:
            best = now
        self.budget = Budget(1, batch)
        if best:
            most = totals[best]
            if count > 1:
                most = np.bincount(order[:most] // self.max_nodes).max()
            num_nodes = next(size for size in self.sizes if size >= most)
            self.budget = Budget(num_nodes, totals[best])

        spent = seconds[best] + (0 if best else self._pace * self.costs.draft(batch))
        gain = tokens[best] / tokens[0] - spent / seconds[0]
        self._gain = GAIN_MEMORY * self._gain + (gain, 1.0)
        pays = self._gain[0] > LEAST_GAIN * self._gain[1]
        self._pause = 0 if pays else min(max(1, PAUSE_GROWTH * self._pause), LONGEST_PAUSE)
        return self.budget

    def observe(
        self, nodes: np.ndarray, scores: np.ndarray, path_scores: Sequence[Sequence[float]]
    ) -> float:
        """Learn from a step that drafted; returns how many nodes it was expected to accept.

        nodes: int [B], verified of each request that goes on; scores: as in `choose`;
        path_scores: of each such request, the scores of the nodes it accepted behind the root.
        """
        ranks = range(len(self._starts))
        scores = self._whole(scores)
        verified = np.where(np.arange(self.max_nodes) < nodes[:, None], scores, 0.0)
        predicted = np.add.reduceat(verified.sum(axis=0, dtype=np.float64), self._starts).tolist()
        expected = sum(p * c for p, c in zip(predicted, self.correction.tolist(), strict=True))
        accepted = [0] * len(ranks)
        last = verified[:, self._starts[1:] - 1].tolist()  # score of the last node before a group
        for bounds, path in zip(last, path_scores, strict=True):
            for score in path:
                accepted[sum(score < bound for bound in bounds)] += 1
        counts = nodes.tolist()
        learned = [sum(count > start for count in counts) for start in self._starts.tolist()]
        for long, text, new in zip(self._all, self._text, (predicted, accepted), strict=True):
            for group in ranks:
                long[group] = TRUST + MEMORY ** learned[group] * (long[group] - TRUST) + new[group]
                text[group] = TEXT_MEMORY ** learned[group] * text[group] + new[group]
        self._correct()
        return expected

    def _whole(self, scores: np.ndarray) -> np.ndarray:
        """Zeros for the ranks which were not drafted."""
        if scores.shape[1] == self.max_nodes:
            return scores
        whole = np.zeros((len(scores), self.max_nodes), dtype=np.float32)
        whole[:, : scores.shape[1]] = scores
        return whole

    def _correct(self) -> None:
        """Accepted over predicted nodes, by group: float64 [groups]."""
        known = zip(*self._all, *self._text, strict=True)
        self.correction = np.array(
            [(ta + TEXT_TRUST * a / p) / (tp + TEXT_TRUST) for p, a, tp, ta in known]
        )

    def _alone(self, ranked: np.ndarray) -> np.ndarray:
        """The tokens expected of one request for each size: `_shared`, in a few numbers.

        ranked: float32 [max_nodes].
        """
        gains = np.add.reduceat(ranked, self._starts) * self.correction
        return np.array([1.0, *gains]).cumsum()

    def _shared(self, ranked, remaining, totals) -> tuple[np.ndarray, np.ndarray]:
        """The tokens expected of several requests for each total, and the order of their nodes.

        ranked: float32 [K, max_nodes]; remaining: [K]. Every request's root is verified.
        """
        count = len(ranked)
        weight = lag_weight(remaining.astype(np.float32))[:, None]
        priority = ranked * weight
        priority[:, 0] = np.inf
        order = np.argsort(-priority, axis=None, kind="stable")
        gains = ranked * self.correction[self._group] * (weight / weight.mean())
        gains = gains.ravel()[order[count:]].cumsum(dtype=np.float64)
        tokens = count + np.array([0.0, *gains[np.array(totals[1:], dtype=int) - count - 1]])
        return tokens, order

    def step_seconds(self, batch: int, nodes: int, context: float, drafted: bool) -> float:
        """Seconds which a step over so many nodes of all requests is expected to take."""
        paces, weight = self._paces.get((nodes, drafted), (1.0, 1.0))
        return self._pace * paces / weight * self._table_seconds(batch, nodes, context, drafted)

    def observe_seconds(
        self, batch: int, nodes: int, context: float, seconds: float, drafted: bool
    ) -> None:
        """Learn from what a step over so many nodes took, its draft included if it had one."""
        if self.costs is None:
            return
        pace = seconds / self._table_seconds(batch, nodes, context, drafted) / self._pace
        pace = min(max(pace, 1 / COST_SPREAD), COST_SPREAD)
        self._pace *= 1 + (1 - COST_MEMORY) * (pace - 1)
        paces, weight = self._paces.get((nodes, drafted), (COST_TRUST, COST_TRUST))
        self._paces[nodes, drafted] = COST_MEMORY * paces + pace, COST_MEMORY * weight + 1

    def _table_seconds(self, batch: int, nodes: int, context: float, drafted: bool) -> float:
        key = batch, nodes, int(context) // CONTEXT_STEP, drafted
        if key not in self._seconds:
            middle = (key[2] + 0.5) * CONTEXT_STEP
            self._seconds[key] = self.costs.step(batch, nodes, middle, drafted)
        return self._seconds[key]
