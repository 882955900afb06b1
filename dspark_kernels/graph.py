"""Steps as CUDA graphs: captured once over fixed buffers, then replayed by a single launch."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from .state import State


class Graphs:
    """Functions over fixed buffers, by key: called as they are on the CPU, replayed on a GPU.

    What a function reads and updates must be the same tensors at every call, and it must read no
    value on the host. What it returns is overwritten by the next call of any function here.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self._known: dict[Hashable, Any] = {}  # None, or (graph, outputs)
        self._pool = None

    def __call__(self, key: Hashable, function: Callable[[], Any]) -> Any:
        """What `function()` returns. On a GPU the first call of a key runs it as it is, which
        compiles and warms up what a capture must not see; the second captures and replays it."""
        if not self.cuda:
            return function()
        if key not in self._known:
            self._known[key] = None
            return function()
        if self._known[key] is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                outputs = function()
            self._pool = graph.pool()
            self._known[key] = graph, outputs
        graph, outputs = self._known[key]
        graph.replay()
        return outputs


class Readback:
    """Results on their way to the host, which waits for them only when it looks."""

    def __init__(self, *tensors: torch.Tensor | None):
        self._tensors = [t if t is None else t.to("cpu", non_blocking=True) for t in tensors]
        self._event = None
        if tensors[0].is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def get(self) -> list[torch.Tensor | None]:
        """The tensors, on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensors


@dataclass
class Session:
    """What the calls for one target share, one at a time: buffers and the steps captured there."""

    state: State | None = None
    graphs: Graphs | None = None

    def take(self, state: State) -> Graphs:
        """Hold `state` for the next call; the graphs over it, new ones if it is another."""
        if self.graphs is None or state is not self.state:
            self.state, self.graphs = state, Graphs(state.history.device)
        return self.graphs
