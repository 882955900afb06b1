"""How an op is measured: in turn with its baseline, on buffers no cache holds, against rooflines.

A module `bench_<op>` has `cases(device, dtype)`, which yields `Case`s. No figure is reported of a
case whose output disagrees with the reference.
"""

import csv
import ctypes
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch

import dspark_kernels

CACHE_BYTES = 128 * 2**20  # more than the last cache holds
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass
class Case:
    """One shape of an op."""

    shape: str
    make: Callable[[int], tuple]  # the arguments of a call, from a seed
    ours: Callable  # these take the arguments
    baseline: Callable
    baseline_name: str
    expected: Callable  # the float32 reference
    bytes: int  # that must be read
    flops: int
    runs: int = 25
    compared: Callable = lambda output: output[0] if isinstance(output, tuple) else output


@dataclass
class Result:
    """What one case measured: microseconds, shares of the measured peaks, and where."""

    op: str
    shape: str
    dtype: str
    microseconds: float
    quantile_20: float
    quantile_80: float
    baseline: str
    baseline_microseconds: float
    baseline_20: float
    baseline_80: float
    speedup: float
    gigabytes_per_second: float
    bandwidth_share: float
    gigaflops: float
    compute_share: float
    extra_bytes: int
    read_gigabytes_per_second: float
    peak_gigaflops: float
    device: str
    threads: int
    torch: str
    version: str
    commit: str
    date: str


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable, arguments: tuple, device: str) -> float:
    """The time of one call."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function(*arguments)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def interleaved(functions: list[Callable], buffers: list[tuple], runs: int, device: str):
    """`runs` times of every function, taking turns on rotating buffers, after a warm-up."""
    times = [[] for _ in functions]
    for run in range(-2, runs):
        for function, record in zip(functions, times, strict=True):
            taken = seconds(function, buffers[run % len(buffers)], device)
            if run >= 0:
                record.append(taken)
    return times


def quantiles(times: list[float]) -> tuple[float, float, float]:
    """Median, 20 % and 80 % quantile, in microseconds."""
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return statistics.median(times) * 1e6, fifths[0] * 1e6, fifths[3] * 1e6


def read_bandwidth(device: str) -> float:
    """Bytes per second of the best of several sums over memory that no cache holds."""
    data = torch.ones(2**26, device=device)
    for _ in range(3):
        data.sum()
    synchronize(device)
    return data.nbytes / min(seconds(torch.sum, (data,), device) for _ in range(10))


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """Operations per second of the best of several matrix products."""
    size = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronize(device)
    return 2 * size**3 / min(seconds(torch.matmul, (a, b), device) for _ in range(10))


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


def agrees(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether ids are equal, or the largest error of values is within the dtype's rounding."""
    if not actual.is_floating_point():
        return torch.equal(actual, expected)
    actual, expected = actual.float(), expected.float()
    return bool((actual - expected).abs().max() <= TOLERANCE[dtype] * (1 + expected.abs().max()))


def buffers_of(case: Case) -> list[tuple]:
    """Enough argument sets to exceed the cache."""
    first = case.make(0)
    nbytes = sum(x.nbytes for x in first if isinstance(x, torch.Tensor))
    return [first, *(case.make(i) for i in range(1, min(32, math.ceil(CACHE_BYTES / nbytes))))]


def measure(op: str, case: Case, device: str, dtype: torch.dtype, peaks) -> Result | None:
    """Measure one case, or None if its output is wrong."""
    buffers = buffers_of(case)
    output, expected = (case.compared(f(*buffers[0])) for f in (case.ours, case.expected))
    if not agrees(output, expected, dtype):
        return None
    del output, expected
    extra = extra_memory(case.ours, buffers[0], device)
    ours, baseline = interleaved([case.ours, case.baseline], buffers, case.runs, device)
    median, low, high = quantiles(ours)
    base, base_low, base_high = quantiles(baseline)
    bandwidth, flops = peaks
    return Result(
        op=op, shape=case.shape, dtype=str(dtype).removeprefix("torch."),
        microseconds=median, quantile_20=low, quantile_80=high,
        baseline=case.baseline_name, baseline_microseconds=base,
        baseline_20=base_low, baseline_80=base_high, speedup=base / median,
        gigabytes_per_second=case.bytes / median / 1e3,
        bandwidth_share=case.bytes / median * 1e6 / bandwidth,
        gigaflops=case.flops / median / 1e3, compute_share=case.flops / median * 1e6 / flops,
        extra_bytes=extra, read_gigabytes_per_second=bandwidth / 1e9, peak_gigaflops=flops / 1e9,
        **environment(device),
    )  # fmt: skip


def environment(device: str) -> dict:
    """Where and on what a result was measured."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else platform.machine()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": dspark_kernels.__version__,
        "commit": commit.stdout.strip(),
        "date": date.today().isoformat(),
    }


def write_csv(path: Path, results: list[Result]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = [asdict(result) for result in results]
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
