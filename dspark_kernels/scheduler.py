"""How many tree nodes the target verifies: the number with the most expected tokens per second.

The scores of a tree are estimates of survival, so the best n of them sum to the tokens which a step
with n nodes is expected to yield; the root's score of 1 stands for the bonus token. Every emitted
token is the target's own draw, so any choice is lossless.
"""

import numpy as np

from .cost import CostTable

SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
MEMORY, TEXT_MEMORY = 0.998, 0.99  # of the correction: what a step of one request leaves of it
TRUST, TEXT_TRUST = 20.0, 10.0  # accepted nodes which outweigh the scores, and earlier texts
GAIN_MEMORY, LEAST_GAIN = 0.9, 0.15  # of drafting over plain decoding, in plain steps
LONGEST_PAUSE, PAUSE_GROWTH = 48, 3  # plain steps between two drafts
CONTEXT_STEP = 64  # tokens of context within which a step's cost is taken as one


class Scheduler:
    """Chooses among `sizes`, 1 being the first, given what they cost; one alone needs no costs.

    Nodes are grouped by rank: a group lies between two sizes. Scores of a group are corrected by
    the ratio of accepted to predicted nodes among those of the group that were verified lately, in
    this text and, as long as it is short, in those before. Where drafts have not been worth their
    time it decodes plainly, and drafts again ever less often to see whether that has changed.
    """

    def __init__(self, sizes: tuple[int, ...], costs: CostTable | None = None):
        self.sizes = sizes
        self.costs = costs
        self.num_nodes = sizes[-1]  # the last choice
        self._starts = np.array(sizes[:-1] or (1,))  # first rank of each group
        self._all = np.full((2, len(self._starts)), TRUST)  # predicted and accepted, by group
        self._text = np.zeros_like(self._all)
        self._gain = np.zeros(2)  # sum, and its weight
        self._seconds: dict[tuple[int, int], np.ndarray] = {}
        self.begin()

    @property
    def max_nodes(self) -> int:
        """The largest size: so many nodes are scored before the choice."""
        return self.sizes[-1]

    @property
    def correction(self) -> np.ndarray:
        """Accepted over predicted nodes, by group."""
        predicted, accepted = self._text
        return (accepted + TEXT_TRUST * self._all[1] / self._all[0]) / (predicted + TEXT_TRUST)

    def begin(self) -> None:
        """Another text: what was peculiar to the last one counts little from here on."""
        self._text[:] = 0
        self._gain /= max(self._gain[1], 1.0)
        self._pause = self._rested = 0

    def drafts(self) -> bool:
        """Whether the next step is to draft; a pause ends with a draft, which shows if it pays."""
        if self._rested >= self._pause:
            self._rested = 0
            return self.max_nodes > 1
        self._rested += 1
        return False

    def choose(self, scores: np.ndarray, remaining: np.ndarray, context: float) -> int:
        """The size for trees of these scores, float32 [B, max_nodes].

        remaining: [B], tokens which each request may still emit, 0 for a finished one; the batch
        lasts as long as its last request, so tokens of those that lag behind count for more.
        context: mean length of the requests in tokens.
        """
        if len(self.sizes) == 1:
            return self.num_nodes
        running = remaining > 0
        weights = remaining[running] ** 2.0
        weights *= len(weights) / weights.sum()
        ranked = _ranked(scores[running]) * weights[:, None]
        accepted = np.cumsum(self._by_group(ranked) * self.correction)
        tokens = len(ranked) + np.concatenate(([0.0], accepted))
        seconds = self._step_seconds(len(scores), context)
        best = int((tokens / seconds).argmax())
        self.num_nodes = self.sizes[best]
        spent = seconds[best] + (self.costs.draft(len(scores)) if self.num_nodes == 1 else 0)
        gain = tokens[best] / tokens[0] - spent / seconds[0]
        self._gain = GAIN_MEMORY * self._gain + (gain, 1.0)
        pays = self._gain[0] > LEAST_GAIN * self._gain[1]
        self._pause = 0 if pays else min(max(1, PAUSE_GROWTH * self._pause), LONGEST_PAUSE)
        return self.num_nodes

    def observe(self, num_nodes: int, scores, path_scores, running) -> float:
        """Learn from a step that drafted; returns the tokens which it was expected to yield.

        num_nodes: its size; scores: float32 [B, max_nodes]; path_scores: float32 [B, P], scores of
        the accepted nodes and -1; running: bool [B].
        """
        ranked, path = _ranked(scores[running]), path_scores[running]
        groups = self.sizes.index(num_nodes) if len(self.sizes) > 1 else 1
        if not groups or not len(ranked):
            return float(len(ranked))
        predicted = self._by_group(ranked)[:groups]
        expected = float((predicted * self.correction[:groups]).sum())
        bounds = ranked[:, self._starts[1:groups] - 1]  # score of the last node before a group
        behind = (path[:, :, None] > 0) & (path[:, :, None] < bounds[:, None])
        accepted = -np.diff(behind.sum(axis=(0, 1)), prepend=(path > 0).sum(), append=0)
        new = np.stack((predicted, accepted))
        part, text = self._all[:, :groups], self._text[:, :groups]
        part[:] = TRUST + MEMORY ** len(ranked) * (part - TRUST) + new
        text[:] = TEXT_MEMORY ** len(ranked) * text + new
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
