"""Steps as CUDA graphs: captured once over fixed buffers, then replayed by a single launch."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ._library import SCHEMAS, backend_of
from .prefix import resume
from .sampling import DrawTensors
from .state import CAPACITY_UNIT, State, stop_places

# of all threads: to begin a capture waits for the whole GPU, which no other capture survives
_CAPTURE = threading.Lock()
HELD, HELD_BYTES = 4, 2 << 30  # states kept for later calls, and the bytes of their caches


def on_device(device: torch.device):
    """A block in which `device` is the current GPU, the one of new events and captures."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def wait(device: torch.device) -> None:
    """Wait for what the current stream of a GPU was given; to wait for the whole GPU would break
    the capture of another thread."""
    if device.type == "cuda":
        torch.cuda.current_stream().synchronize()


def captures_steps() -> bool:
    """Whether kernels serve all ops on a GPU. The references of some read values on the host."""
    return all(backend_of(op, "cuda")[0] in ("native", "triton") for op in SCHEMAS)


class Graphs:
    """Functions over fixed buffers, by key: called as they are on the CPU, replayed on a GPU if
    kernels serve all ops there.

    What a function reads and updates must be the same tensors at every call, and it must read no
    value on the host. What it returns is overwritten by the next call of any function here. On a
    GPU, calls belong into `on_device`.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self._replays = self.cuda and captures_steps()
        self._warm: dict[Hashable, int] = {}  # the thread that ran a key last
        self._captured: dict[Hashable, tuple[Any, Any]] = {}  # graph, outputs
        self._stream = torch.cuda.Stream(device) if self._replays else None  # of captures
        self._pool = None

    def settled(self, key: Hashable) -> bool:
        """Whether a call does no more than its work: it neither compiles nor captures."""
        return not self.cuda or key in (self._captured if self._replays else self._warm)

    def __call__(self, key: Hashable, function: Callable[[], Any]) -> Any:
        """What `function()` returns. On a GPU the first call of a key runs it as it is, which
        compiles and warms up what a capture must not see, such as the thread's handle of cuBLAS;
        the second one of the same thread captures it, and replays it like those after it."""
        if not self.cuda:
            return function()
        if key not in self._captured:
            thread = threading.get_ident()
            if not self._replays or self._warm.get(key) != thread:
                outputs = function()
                self._warm[key] = thread  # not before it came to its end
                return outputs
            self._captured[key] = self._capture(function)
        graph, outputs = self._captured[key]
        graph.replay()
        return outputs

    def _capture(self, function: Callable[[], Any]) -> tuple[Any, Any]:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        # what other threads do on the GPU meanwhile must not break the capture
        options = {"stream": self._stream, "capture_error_mode": "thread_local"}
        with _CAPTURE:
            try:
                with torch.cuda.graph(graph, pool=self._pool, **options):
                    outputs = function()
            finally:
                torch.cuda.set_stream(stream)  # which a capture that failed leaves
                # cuBLAS keeps its workspace by stream; this one is the graph's, and goes with it
                torch._C._cuda_clearCublasWorkspaces()
        self._pool = graph.pool()
        return graph, outputs


class Readback:
    """Results on their way to the host, which waits for them only when it looks."""

    def __init__(self, tensor: torch.Tensor):
        self._tensor = tensor.to("cpu", non_blocking=True)
        self._event = None
        self.arrived = time.perf_counter()  # on a GPU: when the host first saw them
        if tensor.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def get(self) -> torch.Tensor:
        """The tensor, on the CPU."""
        if self._event is not None:
            self._event.synchronize()
            self._event, self.arrived = None, time.perf_counter()
        return self._tensor


class Session:
    """What the calls for one target share, one at a time: buffers and the steps captured there.

    Buffers are kept by what calls differ in (requests, sampling options), so that calls of a few
    kinds in turn do not capture anew each time. With them are the texts whose keys and values the
    rows of their cache hold; none while a call is under way.
    """

    def __init__(self):
        # latest last
        self._held: OrderedDict[Hashable, tuple[State, Graphs, list[list[int]]]] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A block that no other call may be in meanwhile: RuntimeError if one is."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "generate: this decoder is at work already, in another thread or around this call; "
                "make one decoder for each"
            )
        try:
            yield
        finally:
            self._lock.release()

    @property
    def graphs(self) -> Graphs:
        """The graphs over the buffers that were taken last."""
        return next(reversed(self._held.values()))[1]

    def keep(self, texts: list[list[int]]) -> None:
        """Say what the rows of the cache that was taken last hold."""
        key, (state, graphs, _) = next(reversed(self._held.items()))
        self._held[key] = state, graphs, texts

    def take(
        self, target, capacity: int, sampling: DrawTensors, stops: int, prompts: list[list[int]],
        prefix_caching: bool = False,
    ) -> tuple[State, list[int]]:  # fmt: skip
        """Buffers for such requests, see `State.empty`: those of an earlier call if they fit.

        And from where on each prompt is to be run: with prefix_caching, behind what the cache still
        holds of it, in the row of its request by then. New buffers exist beside the old ones until
        that was copied.
        """
        batch = len(prompts)
        options = *(part is None for part in sampling), stop_places(stops)
        key = target.device, target.dtype, batch, *options
        state, graphs, texts = self._held.pop(key, (None, None, None))
        rows, starts = list(range(batch)), [0] * batch
        if prefix_caching and texts is not None:
            rows, starts = resume(prompts, texts)
        cache = state.cache if any(starts) else None
        if state is None or state.capacity < capacity:
            if state is not None:  # for requests that grow call by call
                most = target.max_length + CAPACITY_UNIT
                capacity = max(capacity, min(state.capacity * 3 // 2, most))
            state = graphs = None  # before there are others
            self._make_room()
            state = State.empty(target, batch, capacity, sampling, stops)
            graphs = Graphs(target.device)
        if cache is not None:
            state.cache.hold(cache, rows, max(starts))
        self._held[key] = state, graphs, [[]] * batch
        return state, starts

    def _make_room(self) -> None:
        """Forget what was not used for longest, until the rest is few and small."""

        def size():
            return sum(state.cache.storage.nbytes for state, *_ in self._held.values())

        while len(self._held) >= HELD or size() > HELD_BYTES:
            self._held.popitem(last=False)
