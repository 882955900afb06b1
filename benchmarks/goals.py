"""Which goals the ops reach on a GPU, from the files of results: python -m benchmarks.goals"""

import argparse
import re
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from .bench_tree_attention import ONE_TOKEN
from .common import RESULTS, op_results


class Goal(NamedTuple):
    """A bound on one column of an op's rows whose shape matches: at most for times, else at least.

    over: the baselines that a ratio is over.
    """

    op: str
    shape: str
    column: str
    bound: float
    over: str = ""

    def readings(self, rows: list[dict]) -> list[tuple[str, str, float]]:
        """(shape, baseline, value) of the rows that the goal speaks of."""
        mine = [r for r in rows if r["op"] == self.op and re.search(self.shape, r["shape"])]
        ratio = self.column == "ratio"
        return [
            (r["shape"], r["implementation"] if ratio else "", r[self.column])
            for r in mine
            if (r["implementation"] == "ours") != ratio
            and re.search(self.over, r["implementation"])
        ]

    def met(self, value: float) -> bool:
        return value <= self.bound if self.column == "microseconds" else value >= self.bound


HEAD = r"^V (128256|151936) D 4096 M "
FEW, CACHE = r"(4|16|64)$", r"S 131072|B (8|32) N \d+ S 16384|B 32 N 64 S 2048"  # over 256 MB
GOALS = [
    Goal("linear_topk", HEAD + FEW, "bandwidth_share", 0.85),
    Goal("linear_topk", HEAD + FEW, "ratio", 1.3, "topk|compiled"),
    Goal("linear_topk", HEAD + r"(128|256)$", "ratio", 0.95, "topk|compiled"),
    Goal("linear_topk", HEAD + "1 noise k 1", "ratio", 1.35, "multinomial|compiled"),
    Goal("linear_topk", HEAD + "64 noise k 1", "ratio", 1.67, "multinomial|compiled"),
    Goal("tree_attention", CACHE, "bandwidth_share", 0.8),
    Goal("tree_attention", "", "ratio", 1 / 1.15, ONE_TOKEN),
    Goal("tree_attention", "", "ratio", 2.0, "mask|Flex"),
    Goal("draft_blocks", "D 4096", "bandwidth_share", 0.8),
    Goal("glm_tree", r"B \d+ H 5 C 32 R 64 N 64", "microseconds", 15.0),
    Goal("accept_tree", "^B 1 layers 32", "microseconds", 10.0),
    Goal("accept_tree", "^B 256 layers 32", "bandwidth_share", 0.8),
]


def table_of(rows: list[dict]) -> Table:
    """Every goal with its readings."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("op", "shape", "what", "goal", "measured", ""):
        table.add_column(column, no_wrap=True)
    for goal in GOALS:
        sign = "<=" if goal.column == "microseconds" else ">="
        bound = f"{sign} {goal.bound:.3g}"
        for shape, over, value in goal.readings(rows):
            what = f"over {over}" if over else goal.column
            verdict = "met" if goal.met(value) else "[red]NOT MET[/red]"
            table.add_row(goal.op, shape, what, bound, f"{value:.3g}", verdict)
        if not goal.readings(rows):
            table.add_row(goal.op, goal.shape, goal.column, bound, "", "not measured")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.goals", description=__doc__)
    parser.add_argument("--csv", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args()
    rows = op_results(options.csv, "cuda")
    console = Console(width=150)
    console.print(table_of(rows))
    console.print(f"on {rows[0]['device']}" if rows else "no results of a GPU here")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
