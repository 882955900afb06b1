"""python -m benchmarks [op ...] [--device cpu|cuda] [--dtype bfloat16] [--threads N] [--csv DIR]"""

import argparse
import importlib
import os
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from . import common

OPS = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def table_of(op: str, results: list[common.Result]) -> Table:
    title = f"{op}, {results[0].dtype}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("shape", "µs (20-80 %)", "baseline µs", "speed-up", "GB/s", "GFLOP/s", "extra MB"):
        justify = "left" if name == "shape" else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    for r in results:
        table.add_row(
            r.shape,
            f"{r.microseconds:.0f} ({r.quantile_20:.0f}-{r.quantile_80:.0f})",
            f"{r.baseline_microseconds:.0f} ({r.baseline_20:.0f}-{r.baseline_80:.0f})",
            f"{r.speedup:.2f}x",
            f"{r.gigabytes_per_second:.1f} ({r.bandwidth_share:.0%})",
            f"{r.gigaflops:.0f} ({r.compute_share:.0%})",
            f"{r.extra_bytes / 2**20:.2f}",
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("op", nargs="*", metavar="op", help=f"of {', '.join(OPS)}; all by default")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--csv", type=Path, metavar="DIR", help="write <DIR>/<op>_<device>.csv too")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if unknown := set(arguments.op) - set(OPS):
        parser.error(f"no benchmark of {', '.join(sorted(unknown))}; there are {', '.join(OPS)}")
    console, dtype = Console(width=120), getattr(torch, arguments.dtype)
    device = arguments.device

    wrong = []
    for op in arguments.op or OPS:
        module = importlib.import_module(f".bench_{op}", __package__)
        peaks = common.read_bandwidth(device), common.peak_flops(device, dtype)
        results = []
        for case in module.cases(device, dtype):
            with console.status(f"{op} {case.shape}"):
                result = common.measure(op, case, device, dtype, peaks)
            if result is None:
                wrong.append(f"{op} {case.shape}")
            else:
                results.append(result)
        if results:
            console.print(table_of(op, results))
            console.print(
                f"{results[0].device}, {results[0].threads} threads, torch {results[0].torch}; "
                f"reads {peaks[0] / 1e9:.1f} GB/s, multiplies {peaks[1] / 1e9:.0f} GFLOP/s; "
                f"baseline: {results[0].baseline}\n"
            )
            if arguments.csv:
                common.write_csv(arguments.csv / f"{op}_{device}.csv", results)
    for case in wrong:
        console.print(f"[red]{case}: the output disagrees with the reference, not measured[/red]")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
