"""How many tree nodes the target verifies: the number with the most expected tokens per second.

The scores of a tree are estimates of survival, so the best n of them sum to the tokens which a step
with n nodes is expected to yield; the root's score of 1 stands for the bonus token. Every emitted
token is the target's own draw, so any choice is lossless.
"""

import numpy as np

from .cost import CostTable

SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
MEMORY = 0.998  # share of the correction's weight which a step of one request leaves
PRIOR = 20.0  # accepted nodes' worth of trust in the scores
LONGEST_PAUSE = 32  # plain steps between two drafts
CONTEXT_STEP = 64  # tokens of context within which a step's cost is taken as one


class Scheduler:
    """Chooses among `sizes`, given what they cost; one size alone needs no costs.

    Nodes are grouped by rank: a group lies between two sizes. Scores of a group are corrected by
    the ratio of accepted to predicted nodes among those of the group that were verified lately.
    """

    def __init__(self, sizes: tuple[int, ...], costs: CostTable | None = None):
        self.sizes = sizes
        self.costs = costs
        self.num_nodes = sizes[-1]  # the last choice
        self._starts = np.array([1, *sizes[1 if sizes[0] == 1 else 0 : -1]])  # ranks, by group
        self._first = len(sizes) - len(self._starts)  # sizes below the first group: 1, or none
        self._predicted = np.full(len(self._starts), PRIOR)  # accepted nodes, by group
        self._accepted = np.full(len(self._starts), PRIOR)
        self._pause = self._rested = 0
        self._seconds: dict[tuple[int, int], np.ndarray] = {}

    @property
    def max_nodes(self) -> int:
        """The largest size: so many nodes are scored before the choice."""
        return self.sizes[-1]

    @property
    def correction(self) -> np.ndarray:
        """Accepted over predicted nodes, by group."""
        return self._accepted / self._predicted

    def drafts(self) -> bool:
        """Whether the next step is to draft; a pause ends with a draft, which shows if it pays."""
        if self._rested >= self._pause:
            self._rested = 0
            return self.max_nodes > 1
        self._rested += 1
        return False

    def choose(self, scores: np.ndarray, running: np.ndarray, context: float) -> int:
        """The size for trees of these scores, float32 [B, max_nodes].

        running: bool [B], requests whose tokens count; context: their mean length in tokens.
        """
        if len(self.sizes) == 1:
            return self.num_nodes
        ranked = _ranked(scores[running])
        accepted = np.cumsum(self._by_group(ranked) * self.correction)
        tokens = len(ranked) + np.concatenate(([0.0] * self._first, accepted))
        rates = tokens / self._step_seconds(len(scores), context)
        self.num_nodes = self.sizes[int(rates.argmax())]
        plain = self.num_nodes == 1
        self._pause = min(max(1, 2 * self._pause), LONGEST_PAUSE) if plain else 0
        return self.num_nodes

    def observe(self, num_nodes: int, scores, path_scores, running) -> float:
        """Learn from a step that drafted; returns the tokens which it was expected to yield.

        num_nodes: its size; scores: float32 [B, max_nodes]; path_scores: float32 [B, P], scores of
        the accepted nodes and -1; running: bool [B].
        """
        ranked, path = _ranked(scores[running]), path_scores[running]
        groups = self.sizes.index(num_nodes) + 1 - self._first
        if not groups or not len(ranked):
            return float(len(ranked))
        predicted = self._by_group(ranked)[:groups]
        expected = float((predicted * self.correction[:groups]).sum())
        behind = [  # accepted nodes at or behind the start of each group
            (path > 0).sum()
            if start == 1
            else ((path > 0) & (path < ranked[:, start - 1 : start])).sum()
            for start in self._starts[:groups]
        ]
        accepted = -np.diff(behind, append=0)
        decay = MEMORY ** len(ranked)
        for sums, new in ((self._predicted, predicted), (self._accepted, accepted)):
            sums[:groups] = PRIOR + decay * (sums[:groups] - PRIOR) + new
        return len(ranked) + expected

    def _by_group(self, ranked: np.ndarray) -> np.ndarray:
        """Sums of scores by group, all requests together: float64 [groups]."""
        return np.add.reduceat(ranked.sum(axis=0, dtype=np.float64), self._starts)

    def _step_seconds(self, batch: int, context: float) -> np.ndarray:
        """Seconds of a step, by size."""
        key = batch, int(context) // CONTEXT_STEP
        if key not in self._seconds:
            middle = (key[1] + 0.5) * CONTEXT_STEP
            self._seconds[key] = np.array([self.costs.step(batch, n, middle) for n in self.sizes])
        return self._seconds[key]


def _ranked(scores: np.ndarray) -> np.ndarray:
    """The scores of each request, best first."""
    return -np.sort(-scores, axis=1)
