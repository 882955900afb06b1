"""Timing and reporting shared by the benchmarks.

Variants of one shape run in turn, so that drifts of the machine meet all of them alike, and are
compared by their medians. Run on an otherwise idle machine, after the tests are green.
"""

import argparse
import csv
import platform
import statistics
import time
from pathlib import Path

import torch

from dspark_kernels._library import backend_of

RESULTS = Path(__file__).parent / "results"


def arguments(description):
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--runs", type=int, default=30, help="interleaved runs of each variant")
    parser.add_argument(
        "--csv", action="store_true", help="write benchmarks/results/<op>_<device>.csv"
    )
    return parser.parse_args()


def device_name(device):
    """What the numbers were measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def microseconds(call, device):
    """The time of one call."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e3


def interleave(variants, runs, device="cpu"):
    """{name: function} -> {name: (20 % quantile, median, 80 % quantile) in µs}, run in turn."""
    for call in variants.values():
        for _ in range(3):
            call()
    times = {name: [] for name in variants}
    for _ in range(runs):
        for name, call in variants.items():
            times[name].append(microseconds(call, device))
    return {name: quantiles(values) for name, values in times.items()}


def quantiles(values):
    """The 20 % quantile, the median and the 80 % quantile."""
    fifths = statistics.quantiles(values, n=5)
    return fifths[0], statistics.median(values), fifths[3]


def bandwidth(device="cpu", megabytes=256):
    """Bytes per second that this device reads, measured."""
    data = torch.ones(megabytes << 18, device=device)
    fastest = min(microseconds(data.sum, device) for _ in range(10))
    return data.nbytes / fastest * 1e6


class Report:
    """Prints a row per variant, and writes them all as CSV."""

    def __init__(self, op, options):
        self.op, self.options, self.rows = op, options, []
        self.device = device_name(options.device)
        self.bandwidth = bandwidth(options.device)
        served = backend_of(op, options.device)[0]
        print(f"{op} ({served}) on {self.device}, torch {torch.__version__}, {options.runs} runs")
        print(f"read bandwidth {self.bandwidth / 1e9:.0f} GB/s; speed-up over the last variant")

    def add(self, shape, dtype, variants, moved_bytes):
        """Time {name: function}, the baseline last; moved_bytes is what any of them must move."""
        timed = interleave(variants, self.options.runs, self.options.device)
        baseline = list(timed.values())[-1][1]
        dtype = str(dtype).removeprefix("torch.")
        for name, (low, median, high) in timed.items():
            share = moved_bytes / self.bandwidth * 1e6 / median
            print(
                f"{shape:32} {dtype:9} {name:24} {median:10.1f} µs ({low:.1f} .. {high:.1f})"
                f" {baseline / median:7.1f}x {share:7.1%} of the roofline"
            )
            self.rows.append(
                dict(op=self.op, shape=shape, dtype=dtype, variant=name, p20_us=round(low, 2),
                     median_us=round(median, 2), p80_us=round(high, 2),
                     speedup=round(baseline / median, 2), roofline=round(share, 4),
                     device=self.device, torch=torch.__version__)
            )  # fmt: skip

    def save(self):
        """Write the CSV if it was asked for."""
        if self.options.csv:
            RESULTS.mkdir(exist_ok=True)
            with open(RESULTS / f"{self.op}_{self.options.device}.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, self.rows[0].keys())
                writer.writeheader()
                writer.writerows(self.rows)
