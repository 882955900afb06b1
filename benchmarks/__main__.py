"""python -m benchmarks [op ...] [--device cpu|cuda] [--dtype bfloat16] [--threads N] [--csv DIR]"""

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dspark_kernels.results import write_csv

from . import common, timing

STEMS = (path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
FIRST = ("linear_topk", "tree_attention", "draft_blocks", "glm_tree", "accept_tree")  # have goals
OPS = [*FIRST, *sorted(set(STEMS) - {"step", *FIRST})]


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


class GPULost(Exception):
    """Nothing runs on the GPU any more in this process, after the case that the message names."""


def usable(device: str) -> bool:
    """Whether calls can still be made: after a stray access a process has lost its GPU."""
    try:
        timing.synchronize(device)
    except RuntimeError:
        return False
    return True


def measure_op(op: str, options: argparse.Namespace, console: Console) -> list[str]:
    """Measure and show an op; which cases and baselines were left out, and why.

    Its CSV holds what was measured until the end, or until the GPU was lost.
    """
    device, dtype = options.device, getattr(torch, options.dtype)
    peaks = timing.read_bandwidth(device), timing.peak_flops(device, dtype)
    rows, left_out = [], []
    for case in importlib.import_module(f".bench_{op}", __package__).cases(device, dtype):
        name = f"{op} {case.shape}"
        try:
            with console.status(name):
                measured, missing = common.measure(op, case, device, dtype, peaks)
        except Exception as error:  # of one case: the others are worth measuring
            console.print_exception(max_frames=4)
            if not usable(device):
                raise GPULost(name) from error
            measured, missing = [], {"ours": type(error).__name__}
        rows += measured
        left_out += [f"{name}, {what}: {why}" for what, why in missing.items()]
        if rows and options.csv:  # at once: a run cut short keeps what it measured
            write_csv(options.csv / f"{op}_{device}.csv", rows)
    if rows:
        console.print(table_of(op, rows))
        console.print(
            f"{rows[0]['device']}, {rows[0]['threads']} threads, torch {rows[0]['torch']}; "
            f"reads {peaks[0] / 1e9:.1f} GB/s, multiplies {peaks[1] / 1e9:.0f} GFLOP/s\n"
        )
    return left_out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("op", nargs="*", metavar="op", help=f"of {', '.join(OPS)}; all by default")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--csv", type=Path, metavar="DIR", help="write <DIR>/<op>_<device>.csv too")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if unknown := set(options.op) - set(OPS):
        parser.error(f"no benchmark of {', '.join(sorted(unknown))}; there are {', '.join(OPS)}")
    console, left_out = Console(width=170), []
    ops = options.op or OPS
    for index, op in enumerate(ops):
        try:
            left_out += measure_op(op, options, console)
        except GPULost as lost:
            left_out.append(f"{lost} and the other cases of the op: the GPU was lost")
            if rest := ops[index + 1 :]:  # in a process of their own
                given = ("device", "dtype", "threads", *(["csv"] if options.csv else []))
                values = (f"--{name}={getattr(options, name)}" for name in given)
                subprocess.run([sys.executable, "-m", "benchmarks", *rest, *values], check=False)
            break
    for case in left_out:
        console.print(f"[red]not measured: {escape(case)}[/red]")
    return 1 if left_out else 0


if __name__ == "__main__":
    raise SystemExit(main())
