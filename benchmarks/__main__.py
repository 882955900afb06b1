"""python -m benchmarks [op ...] [--device cpu|cuda] [--dtype bfloat16] [--threads N] [--csv DIR]"""

import argparse
import importlib
import os
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from dspark_kernels.results import write_csv

from . import common, timing

STEMS = (path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
OPS = sorted(set(STEMS) - {"step"})


def table_of(op: str, rows: list[dict]) -> Table:
    title = f"{op}, {rows[0]['dtype']}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = ("µs (20-80 %)", "launch µs", "over ours", "GB/s", "GFLOP/s", "extra MB")
    for name in ("shape", "", *columns):
        justify = "right" if name in columns else "left"
        table.add_column(name, justify=justify, no_wrap=True)
    for r in rows:
        launch, ours = r["launch_microseconds"], r["implementation"] == "ours"
        table.add_row(
            r["shape"] if ours else "",
            r["implementation"],
            f"{r['microseconds']:.0f} ({r['quantile_20']:.0f}-{r['quantile_80']:.0f})",
            "" if launch is None else f"{launch:.0f}",
            "" if ours else f"{r['ratio']:.2f}x",
            f"{r['gigabytes_per_second']:.1f} ({r['bandwidth_share']:.0%})",
            f"{r['gigaflops']:.0f} ({r['compute_share']:.0%})",
            f"{r['extra_bytes'] / 2**20:.2f}",
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
    console, dtype = Console(width=170), getattr(torch, arguments.dtype)
    device = arguments.device

    left_out = []  # what was not measured, and why
    for op in arguments.op or OPS:
        module = importlib.import_module(f".bench_{op}", __package__)
        peaks = timing.read_bandwidth(device), timing.peak_flops(device, dtype)
        rows = []
        for case in module.cases(device, dtype):
            name = f"{op} {case.shape}"
            try:
                with console.status(name):
                    measured = common.measure(op, case, device, dtype, peaks)
            except Exception as error:  # of one case or a baseline: the others are worth measuring
                console.print_exception(max_frames=4)
                left_out.append(f"{name}: {type(error).__name__}")
                continue
            rows += measured
            if not measured:
                left_out.append(f"{name}: the output disagrees with the reference")
        if rows:
            console.print(table_of(op, rows))
            console.print(
                f"{rows[0]['device']}, {rows[0]['threads']} threads, torch {rows[0]['torch']}; "
                f"reads {peaks[0] / 1e9:.1f} GB/s, multiplies {peaks[1] / 1e9:.0f} GFLOP/s\n"
            )
            if arguments.csv:
                write_csv(arguments.csv / f"{op}_{device}.csv", rows)
    for case in left_out:
        console.print(f"[red]not measured: {case}[/red]")
    return 1 if left_out else 0


if __name__ == "__main__":
    raise SystemExit(main())
