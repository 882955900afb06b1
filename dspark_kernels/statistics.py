"""What a decoding run measured: tokens per step, acceptance, nodes verified, time per phase."""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch

from .graph import wait

PHASES = ("prefill", "draft", "gate", "verify", "draw", "accept", "host")


class Clock:
    """Time per phase without stopping the host: CUDA events on a GPU, else a monotonic clock.

    The phases of a captured step cannot be told apart: they are the phase "graph".
    """

    def __init__(self, device: torch.device):
        self.device, self.cuda = device, device.type == "cuda"
        self.spans: dict[str, list] = {phase: [] for phase in PHASES}

    def _mark(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def __call__(self, phase: str):
        start = self._mark()
        yield
        self.spans.setdefault(phase, []).append((start, self._mark()))

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each phase so far."""
        if self.cuda:
            wait(self.device)
            return {
                phase: sum(start.elapsed_time(end) for start, end in spans) / 1e3
                for phase, spans in self.spans.items()
            }
        return {phase: sum(end - start for start, end in s) for phase, s in self.spans.items()}


def no_clock(phase: str):
    """A clock that measures nothing."""
    return nullcontext()


@dataclass
class Choice:
    """The steps that verified one number of nodes, those of all requests together."""

    steps: int = 0
    predicted: float = 0.0  # tokens expected from the corrected scores
    observed: float = 0.0  # tokens accepted, the bonus included
    seconds: float = 0.0

    def as_dict(self) -> dict:
        """Means over these steps, for JSON: the predicted tokens per second are the reason."""
        return {
            "steps": self.steps,
            "predicted_tokens": self.predicted / self.steps,
            "observed_tokens": self.observed / self.steps,
            "seconds": self.seconds / self.steps,
            "predicted_tokens_per_second": self.predicted / self.seconds,
        }


@dataclass
class Statistics:
    """Counts over the steps of one `generate` call, all requests together.

    `accepted` counts steps by the number of draft tokens they accepted, those behind a stop token
    or the limit included; a step yields one token more. Steps of a finished request are not
    counted, nor are `tokens` behind its end.
    """

    steps: int = 0  # of all requests: two requests in one batch count two
    steps_of_batch: int = 0  # target passes, whatever the batch
    tokens: int = 0  # emitted by steps; the first token of a request comes from its prefill
    nodes: int = 0  # verified by the target, roots included
    cached_tokens: int = 0  # of the prompts, which an earlier call had run
    accepted: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # by phase, see PHASES
    decode_seconds: float = 0.0  # wall time of all steps
    choices: dict[int, Choice] = field(default_factory=dict)  # by nodes of all requests together

    def record(self, emitted: int, accepted: int, nodes: int) -> None:
        """Count one step of one request."""
        self.steps += 1
        self.tokens += emitted
        self.nodes += nodes
        self.accepted += [0] * (accepted + 1 - len(self.accepted))
        self.accepted[accepted] += 1

    def record_choice(self, nodes: int, predicted: float, observed: float, seconds: float):
        """Count one step of the batch under the number of nodes that was chosen for it."""
        choice = self.choices.setdefault(nodes, Choice())
        choice.steps += 1
        choice.predicted += predicted
        choice.observed += observed
        choice.seconds += seconds

    @property
    def predicted_tokens_per_step(self) -> float:
        """What the scores promised, to be compared with `observed_tokens_per_step`."""
        return sum(choice.predicted for choice in self.choices.values()) / max(self.steps, 1)

    @property
    def observed_tokens_per_step(self) -> float:
        """Tokens per step of one request, those behind a stop token or the limit included."""
        return sum(choice.observed for choice in self.choices.values()) / max(self.steps, 1)

    @property
    def tokens_per_step(self) -> float:
        """Mean number of tokens that one step of one request yields."""
        return self.tokens / max(self.steps, 1)

    @property
    def nodes_per_step(self) -> float:
        """Mean number of tree nodes that the target verified per step of one request."""
        return self.nodes / max(self.steps, 1)

    @property
    def tokens_per_second(self) -> float:
        """Tokens emitted by steps per second of decoding, prefill excluded."""
        return self.tokens / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def acceptance_by_depth(self) -> list[float]:
        """Share of steps whose accepted path reaches depth 1, 2, ..."""
        reached, shares = 0, []
        for count in reversed(self.accepted[1:]):
            reached += count
            shares.append(reached / max(self.steps, 1))
        return shares[::-1]

    def as_dict(self) -> dict:
        """Everything above as plain numbers, for JSON."""
        return {
            "steps": self.steps,
            "steps_of_batch": self.steps_of_batch,
            "tokens": self.tokens,
            "cached_tokens": self.cached_tokens,
            "tokens_per_step": self.tokens_per_step,
            "nodes_per_step": self.nodes_per_step,
            "tokens_per_second": self.tokens_per_second,
            "accepted_histogram": self.accepted,
            "acceptance_by_depth": self.acceptance_by_depth,
            "seconds": self.seconds,
            "decode_seconds": self.decode_seconds,
            "predicted_tokens_per_step": self.predicted_tokens_per_step,
            "observed_tokens_per_step": self.observed_tokens_per_step,
            "choices": {nodes: self.choices[nodes].as_dict() for nodes in sorted(self.choices)},
        }


def until_stop(tokens: Sequence[int], stop: Collection[int]) -> list[int]:
    """The tokens up to the first stop token, which is the last one kept."""
    end = next((place for place, token in enumerate(tokens) if token in stop), len(tokens))
    return list(tokens[: end + 1])


class Results:
    """The host's view of a run: cuts each request at its stop token or limit, counts its steps."""

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        max_new_tokens: int,
        stop: Sequence[int],
        on_tokens: Callable[[int, list[int]], None] | None,
        stop_when: Callable[[int, list[int]], bool] | None = None,
    ):
        batch = len(prompt_lengths)
        self.tokens: list[list[int]] = [[] for _ in range(batch)]
        self.lengths = np.array(prompt_lengths)  # of prompts and what followed, int64 [B]
        self.statistics = Statistics()
        self._limit = max_new_tokens
        self._ends = self.lengths + max_new_tokens
        self._stop = frozenset(stop)
        self._on_tokens = on_tokens
        self._stop_when = stop_when
        self.stopped: list[int] = []  # requests that `stop_when` ended, which steps know nothing of
        self.running = np.ones(batch, dtype=bool)  # requests that have not met their end

    @property
    def finished(self) -> bool:
        """Whether every request has met its end."""
        return not np.count_nonzero(self.running)

    @property
    def remaining(self) -> np.ndarray:
        """Tokens which each request may still emit, 0 for a finished one: int64 [B]."""
        return self.running * (self._ends - self.lengths)

    @property
    def context(self) -> float:
        """Mean length of the requests that go on, their prompts included."""
        return float(self.lengths @ self.running) / np.count_nonzero(self.running)

    def add_first(self, tokens: Sequence[int]) -> None:
        """Take the token that each request's prefill yielded."""
        for request, token in enumerate(tokens):
            self._extend(request, [token])

    def add_step(
        self,
        requests: Sequence[int],
        tokens: Sequence[Sequence[int]],
        counts: Sequence[int],
        nodes: Sequence[int],
    ) -> None:
        """Take what a step of `requests` yielded, by request: tokens, how many count, and nodes."""
        self.statistics.steps_of_batch += 1
        for request, new, count, verified in zip(requests, tokens, counts, nodes, strict=True):
            if self.running[request]:
                emitted = self._extend(request, new[:count])
                self.statistics.record(emitted, count - 1, verified)

    def _extend(self, request: int, new: Sequence[int]) -> int:
        """Append up to the request's end; returns how many tokens were taken."""
        have = self.tokens[request]
        new = self._until_told(request, until_stop(new[: self._limit - len(have)], self._stop))
        have += new
        self.lengths[request] += len(new)
        if len(have) >= self._limit or (new and new[-1] in self._stop):
            self.running[request] = False
        if self._on_tokens is not None and new:
            self._on_tokens(request, new)
        return len(new)

    def _until_told(self, request: int, new: list[int]) -> list[int]:
        """The tokens up to the one with which `stop_when` ends the request."""
        if self._stop_when is None:
            return new
        for count in range(1, len(new) + 1):
            if self._stop_when(request, self.tokens[request] + new[:count]):
                self.running[request] = False
                self.stopped.append(request)
                return new[:count]
        return new
