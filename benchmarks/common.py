"""What is measured of an op: a shape, ours and its baselines, and the bytes and flops it takes.

A module `bench_<op>` has `cases(device, dtype)`, which yields `Case`s. No figure is reported of a
case whose output disagrees with the reference.
"""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dspark_kernels.heads import BoundDraft, DraftModel
from dspark_kernels.results import origin, read_csv
from dspark_kernels.training.config import TrainConfig, draft_config

from .timing import CACHE_BYTES, extra_memory, interleaved, synchronize

RESULTS = Path(__file__).parent / "results"
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass
class Case:
    """One shape of an op."""

    shape: str
    make: Callable[[int], tuple]  # the arguments of a call, from a seed
    ours: Callable  # these take the arguments
    baselines: dict[str, Callable]  # by what they are
    expected: Callable  # the float32 reference
    bytes: int  # that must be read
    flops: int
    runs: int = 25
    cold: bool = False  # empty the caches before each call: it reads little of its arguments
    compared: Callable = lambda output: output[0] if isinstance(output, tuple) else output


def op_results(folder: Path, device: str) -> list[dict]:
    """The rows of all ops, their shares of one machine's limits: the best that any op's run saw.

    A machine shared with others gives half of them for half a minute at times.
    """
    found = [row for path in sorted(folder.glob(f"*_{device}.csv")) for row in read_csv(path)]
    rows = [row for row in found if row.get("implementation")]
    for share, reached, limit in (
        ("bandwidth_share", "gigabytes_per_second", "read_gigabytes_per_second"),
        ("compute_share", "gigaflops", "peak_gigaflops"),
    ):
        best = max((row[limit] for row in rows), default=math.nan)
        for row in rows:
            row[share] = row[reached] / best
    return rows


def untrained_draft(target) -> BoundDraft:
    """A draft of random weights, of the shapes that `dspark train` gives one for this target."""
    shapes = draft_config(TrainConfig(model="", prompts="", out=""), target)
    with target.device:
        draft = DraftModel(shapes).bind(target.embedding, target.lm_head)
    target.feature_layers = draft.feature_layers
    return draft


def compiled(function: Callable) -> Callable:
    """`function` under torch.compile, for one shape."""
    return torch.compile(function, dynamic=False)


def installed(package: str, device: str) -> bool:
    """Whether a package whose kernels need a GPU can be measured here."""
    return device == "cuda" and importlib.util.find_spec(package) is not None


def agrees(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether ids are equal, or the largest error of values is within the dtype's rounding."""
    if not actual.is_floating_point():
        return torch.equal(actual, expected)
    actual, expected = actual.float(), expected.float()
    return bool((actual - expected).abs().max() <= TOLERANCE[dtype] * (1 + expected.abs().max()))


def buffers_of(case: Case, device: str) -> list[tuple]:
    """Enough argument sets to exceed the cache."""
    first = case.make(0)
    nbytes = sum(x.nbytes for x in first if isinstance(x, torch.Tensor))
    count = min(32, math.ceil(CACHE_BYTES[device] / nbytes))
    return [first, *(case.make(i) for i in range(1, count))]


def failing(baselines: dict[str, Callable], arguments: tuple, device: str) -> dict[str, str]:
    """Those baselines which cannot run here, such as for want of memory, and why."""
    errors = {}
    for name, baseline in baselines.items():
        try:
            baseline(*arguments)
            synchronize(device)
        except Exception as error:  # not kept: it holds on to tensors
            errors[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return errors


def measure(
    op: str, case: Case, device: str, dtype: torch.dtype, peaks
) -> tuple[list[dict], dict[str, str]]:
    """The rows of one case, ours first, then its baselines, and what was left out and why.

    There is no row of an output which disagrees with the reference. A row has microseconds with
    quantiles, launch_microseconds (see `timing.Times`), ratio (times of ours), shares of the
    measured `peaks` (bytes and operations per second), the peak of extra memory, and where it was
    measured.
    """
    buffers = buffers_of(case, device)
    output, expected = (case.compared(f(*buffers[0])) for f in (case.ours, case.expected))
    if not agrees(output, expected, dtype):
        return [], {"ours": "the output disagrees with the reference"}
    del output, expected
    torch.compiler.reset()
    left_out = failing(case.baselines, buffers[0], device)
    implementations = {
        "ours": case.ours,
        **{name: call for name, call in case.baselines.items() if name not in left_out},
    }
    functions = list(implementations.values())
    measured = interleaved(functions, buffers, case.runs, device, case.cold)
    bandwidth, flops = peaks
    rows = [
        {
            "op": op, "shape": case.shape, "dtype": str(dtype).removeprefix("torch."),
            "implementation": name,
            "microseconds": times.median, "quantile_20": times.low, "quantile_80": times.high,
            "launch_microseconds": times.launch, "ratio": times.median / measured[0].median,
            "gigabytes_per_second": case.bytes / times.median / 1e3,
            "bandwidth_share": case.bytes / times.median * 1e6 / bandwidth,
            "gigaflops": case.flops / times.median / 1e3,
            "compute_share": case.flops / times.median * 1e6 / flops,
            "extra_bytes": extra_memory(implementations[name], buffers[0], device),
            "read_gigabytes_per_second": bandwidth / 1e9, "peak_gigaflops": flops / 1e9,
            **origin(device),
        }
        for name, times in zip(implementations, measured, strict=True)
    ]  # fmt: skip
    return rows, left_out
