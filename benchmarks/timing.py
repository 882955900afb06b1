"""How long calls take: functions in turn on buffers no cache holds; on a GPU by graph replay."""

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import torch

CACHE_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}  # several times what the last cache holds
SETTLE = 15e-3  # seconds on a CPU, longer than idle threads of OpenMP wait in loops
BUSY_CYCLES = 400_000  # of a GPU: some 200 µs, longer than the host takes to launch anything


def synchronize(device: str) -> None:
    """Wait for the GPU, if it is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed_call(call: Callable, device: str, behind: bool = True) -> float:
    """Seconds of one call.

    behind: on a GPU, of the call's own work, queued behind other work; else what an idle GPU takes,
    the launches of the host included.
    """
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if behind:
            torch.cuda._sleep(BUSY_CYCLES)
        else:
            torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclass
class Calls:
    """A function on each of several argument sets.

    eager: plain calls; replayed: the same as CUDA graphs, None on a CPU or where a call stops the
    host, which no graph can hold.
    """

    eager: list[Callable]
    replayed: list[Callable] | None

    @classmethod
    def of(cls, function: Callable, buffers: list[tuple], device: str) -> "Calls":
        """The calls, warm: compiled, tuned and captured."""
        eager = [partial(function, *arguments) for arguments in buffers]
        for _ in range(2):
            eager[0]()
        return cls(eager, _captured(eager) if device == "cuda" else None)


def _stops_the_host(call: Callable) -> bool:
    """Whether a call waits for the GPU: a capture that fails for it leaves its process unusable."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return False


def _captured(calls: list[Callable]) -> list[Callable] | None:
    if _stops_the_host(calls[0]):
        return None
    pool, replays = torch.cuda.graph_pool_handle(), []
    torch.cuda.synchronize()
    for call in calls:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                call()
        except RuntimeError:
            torch.cuda.synchronize()
            return None
        replays.append(graph.replay)
    return replays


@dataclass
class Times:
    """Microseconds of a function: median and quantiles, and what launching adds (CUDA graphs)."""

    median: float
    low: float  # 20 %
    high: float  # 80 %
    launch: float | None  # of an eager call beyond the replay


def interleaved(
    functions: list[Callable], buffers, runs: int, device: str, cold: bool = False
) -> list[Times]:
    """Time `runs` calls of every function, taking turns, on rotating buffers.

    cold: empty the caches before each call.
    """
    prepared = [Calls.of(function, buffers, device) for function in functions]
    scratch = torch.zeros(CACHE_BYTES[device] if cold else 0, dtype=torch.int8, device=device)
    times = _in_turn([calls.replayed or calls.eager for calls in prepared], runs, device, scratch)
    eager = None
    if device == "cuda":
        eager = _in_turn([calls.eager for calls in prepared], runs, device, scratch, False)
    result = []
    for place, (calls, record) in enumerate(zip(prepared, times, strict=True)):
        fifths = statistics.quantiles(record, n=5, method="inclusive")
        median = statistics.median(record) * 1e6
        launch = None
        if calls.replayed is not None:
            launch = statistics.median(eager[place]) * 1e6 - median
        result.append(Times(median, fifths[0] * 1e6, fifths[3] * 1e6, launch))
    return result


def _in_turn(
    functions: list[list[Callable]], runs: int, device: str, scratch: torch.Tensor,
    behind: bool = True,
) -> list[list[float]]:  # fmt: skip
    times = [[] for _ in functions]
    turns = [cycle(calls) for calls in functions]
    for run in range(-2, runs):
        for calls, record in zip(turns, times, strict=True):
            scratch.add_(1)
            if device == "cpu":
                _settle(calls, cold=len(scratch) > 0)
            taken = timed_call(next(calls), device, behind)
            if run >= 0:
                record.append(taken)
    return times


def _settle(calls: Iterator[Callable], cold: bool) -> None:
    """Let what is timed next find its own threads at work, or with cold caches all asleep: the
    idle ones of what ran before, in another library's pool, take a core for milliseconds."""
    if cold:
        return time.sleep(SETTLE)
    end = time.perf_counter() + SETTLE
    while time.perf_counter() < end:
        next(calls)()


def read_bandwidth(device: str) -> float:
    """Bytes per second of the best of several sums over memory that no cache holds."""
    data = torch.ones(2**29 if device == "cuda" else 2**26, device=device)
    for _ in range(3):
        data.sum()
    synchronize(device)
    return data.nbytes / min(timed_call(data.sum, device) for _ in range(10))


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """Operations per second of the best of several matrix products."""
    size = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronize(device)
    return 2 * size**3 / min(timed_call(partial(torch.matmul, a, b), device) for _ in range(10))


def extra_memory(function: Callable, arguments: tuple, device: str) -> int:
    """Peak bytes taken beyond what was there before the call, its results included."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(*arguments)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    before = _resident("VmRSS")
    function(*arguments)
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field)
    )
    return int(line.split()[1]) * 1024
