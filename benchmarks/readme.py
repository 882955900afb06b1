"""Put the tables of results into the README: python -m benchmarks.readme [--csv DIR]

A table stands between `<!-- NAME -->` and `<!-- end of NAME -->`; without results it stays.
"""

import argparse
import re
from functools import partial
from pathlib import Path

from dspark_kernels.results import read_csv

from .bench_tree_attention import YARDSTICKS
from .common import RESULTS, op_results

README = Path(__file__).parents[1] / "README.md"


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def where(rows: list[dict]) -> str:
    """A sentence on where the rows were measured, by the first of them, and at which commits."""
    row, commits = rows[0], list(dict.fromkeys(row["commit"] for row in rows))
    return (
        f"{row['device']}, {row['threads']:.0f} threads, torch {row['torch']}, "
        f"transformers {row['transformers']}, {row['dtype']}, "
        f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}."
    )


def ops_table(folder: Path, device: str) -> str | None:
    """Every op and shape, beside its fastest baseline."""
    found = op_results(folder, device)
    found = [row for row in found if row["implementation"] not in YARDSTICKS]
    lines = []
    for ours in (row for row in found if row["implementation"] == "ours"):
        others = [
            row
            for row in found
            if (row["op"], row["shape"]) == (ours["op"], ours["shape"]) and row is not ours
        ]
        if not others:  # none could run
            continue
        best = min(others, key=lambda row: row["microseconds"])
        lines.append(
            [
                *(ours["op"], ours["shape"], f"{ours['microseconds']:.0f}"),
                *(best["implementation"], f"{best['microseconds']:.0f}", f"{best['ratio']:.1f}"),
                *(f"{ours[share]:.0%}" for share in ("bandwidth_share", "compute_share")),
                f"{ours['extra_bytes'] / 2**20:.2f}",
            ]
        )
    if not lines:
        return None
    columns = ["op", "shape", "µs", "fastest alternative", "µs", "ratio"]
    table = markdown([*columns, "bandwidth", "arithmetic", "extra MB"], lines)
    return f"{table}\n\n{where(found)}"


def steps_table(folder: Path) -> str | None:
    """A plain step and a step with trees on a GPU, each as one CUDA graph."""
    steps = read_csv(folder / "step_graph_cuda.csv")
    plain = {row["requests"]: row["graph_ms"] for row in steps if row["nodes"] == 1}
    other = read_csv(folder / "step_cuda.csv")
    found = [
        (row, row["requests"], plain[row["requests"]], row["graph_ms"])
        for row in steps
        if row["nodes"] > 1
    ]
    found += [(row, row["batch"], row["plain_graph_ms"], row["tree_graph_ms"]) for row in other]
    if not found:
        return None
    lines = [
        [
            *(row["config"], f"{row['context']:.0f}", f"{requests:.0f}", f"{row['nodes']:.0f}"),
            *(f"{one:.2f}", f"{tree:.2f}", f"{tree / one:.2f}"),
        ]
        for row, requests, one, tree in found
    ]
    columns = ["model", "context", "requests", "nodes each", "plain ms", "tree ms", "to break even"]
    return f"{markdown(columns, lines)}\n\n{where([row for row, *_ in found])}"


def decode_table(folder: Path, name: str) -> str | None:
    """Every method by number of requests at once, and its speed-up by category."""
    rows = read_csv(folder / f"{name}_cpu.csv")
    if not rows:
        return None
    categories = dict.fromkeys(row["category"] for row in rows if row["category"] != "total")
    lines = []
    for total in (row for row in rows if row["category"] == "total"):
        case = ("batch_size", "method")
        found = [row for row in rows if all(row[field] == total[field] for field in case)]
        by_category = {row["category"]: row["speedup"] for row in found}
        lines.append(
            [
                *(f"{total['batch_size']:.0f}", total["method"]),
                *(f"{total['tokens_per_second']:.1f}", f"{total['tokens_per_step']:.2f}"),
                f"**{total['speedup']:.2f}**",
                *(f"{by_category[category]:.2f}" for category in categories),
                f"{total['identical']:.0f}/{total['prompts']:.0f}",
            ]
        )
    columns = ["batch", "method", "tokens/s", "tokens/step", "speed-up", *categories, "identical"]
    return f"{markdown(columns, lines)}\n\n{where(rows)}"


def phases_table(folder: Path) -> str | None:
    """Milliseconds per step by phase, and the speed-up predicted from them."""
    rows = [row for row in read_csv(folder / "decode_cpu_phases.csv") if row["batch_size"] == 1]
    totals = [
        row
        for row in read_csv(folder / "decode_cpu.csv")
        if row["batch_size"] == 1 and row["category"] == "total" and row["step_milliseconds"] != ""
    ]
    if not rows:
        return None
    phases = dict.fromkeys(row["phase"] for row in rows)
    spent = {(row["method"], row["phase"]): f"{row['milliseconds']:.2f}" for row in rows}
    fields = (
        *("step_milliseconds", "tokens_per_step"),
        *("predicted_over_plain", "measured_over_plain"),
    )
    lines = [
        [
            row["method"],
            *(spent.get((row["method"], phase), "") for phase in phases),
            *(f"{row[field]:.2f}" if row[field] != "" else "" for field in fields),
        ]
        for row in totals
    ]
    return markdown(["method", *phases, "step", "tokens/step", "predicted", "measured"], lines)


TABLES = {
    "ops": partial(ops_table, device="cpu"),
    "gpu": partial(ops_table, device="cuda"),
    "h100": lambda folder: ops_table(folder / "h100", "cuda"),
    "steps": steps_table,
    "decode": partial(decode_table, name="decode"),
    "batches": partial(decode_table, name="decode_batches"),
    "phases": phases_table,
}


def fill(text: str, name: str, table: str) -> str:
    """`text` with the table between its marks; ValueError if they are not there."""
    pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README: must hold <!-- {name} --> and <!-- end of {name} -->")
    return pattern.sub(lambda mark: f"{mark[1]}{table}\n{mark[2]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--csv", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args()
    text = README.read_text()
    for name, make in TABLES.items():
        table = make(options.csv)
        if table is not None:
            text = fill(text, name, table)
    README.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
