"""Pictures of the results: python -m benchmarks.plot [--csv DIR]; writes <DIR>/<picture>.png"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from dspark_kernels.results import read_csv

from .common import RESULTS, op_results

PICTURES: dict[str, Callable] = {}
SIZE = (8, 4.2)  # inches


def picture(draw: Callable) -> Callable:
    """Register a function (folder, device) -> figure, or None where its CSV is not there."""
    PICTURES[draw.__name__] = draw
    return draw


def new_figure(title: str, row: dict, size=SIZE):
    """Figure and axes under a title that says where the numbers come from."""
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    where = f"{row['device']}, {row['threads']:.0f} threads, {row['dtype']}"
    axes.set_title(f"{title}\n{where}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


@picture
def roofline(folder: Path, device: str):
    """Every op's shapes as shares of the measured bandwidth or arithmetic, whichever is larger."""
    rows = [row for row in op_results(folder, device) if row["implementation"] == "ours"]
    if not rows:
        return None
    size = (8, 1.2 + 0.22 * len(rows))
    figure, axes = new_figure("Share of what this machine can do", rows[0], size)
    labels = [f"{row['op']}  {row['shape']}" for row in rows]
    for field, colour, offset in (
        ("bandwidth_share", "tab:blue", -0.2),
        ("compute_share", "tab:orange", 0.2),
    ):
        shares = [100 * row[field] for row in rows]
        places = [place + offset for place in range(len(rows))]
        axes.barh(places, shares, 0.38, color=colour, label=field.split("_")[0])
    axes.set_yticks(range(len(rows)), labels, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("percent of the peak measured in the same run")
    axes.legend(["memory bandwidth", "arithmetic"], fontsize=8, loc="lower right")
    return figure


@picture
def speedup_by_category(folder: Path, device: str):
    """Tokens per second over transformers' generate, per category and method, batch 1."""
    rows = [row for row in read_csv(folder / f"decode_{device}.csv") if row["batch_size"] == 1]
    rows = [row for row in rows if row["method"] != "generate"]
    if not rows:
        return None
    figure, axes = new_figure("Tokens per second over transformers' generate", rows[0], (10, 4.5))
    categories = list(dict.fromkeys(row["category"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    width = 0.85 / len(methods)
    for number, method in enumerate(methods):
        found = {row["category"]: row["speedup"] for row in rows if row["method"] == method}
        places = [place + (number - (len(methods) - 1) / 2) * width for place in range(len(found))]
        axes.bar(places, [found[category] for category in categories], width, label=method)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(categories)), categories)
    axes.set_ylabel("speed-up")
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    return figure


def _sweep(folder: Path, device: str) -> list[dict]:
    """Rows of fixed numbers of nodes over all categories, batch 1, of `benchmarks.schedule`."""
    return [
        row | {"step_milliseconds": 1e3 * row["tokens_per_step"] / row["tokens_per_second"]}
        for row in read_csv(folder / f"schedule_batch1_{device}.csv")
        if row["category"] == "total" and row["num_nodes"] != "auto"
    ]


def _over_nodes(folder, device, title, field, label, colour):
    rows = _sweep(folder, device)
    if not rows:
        return None
    figure, axes = new_figure(title, rows[0])
    nodes = [int(row["num_nodes"]) for row in rows]
    axes.plot(nodes, [row[field] for row in rows], "o-", color=colour)
    axes.set_xscale("log", base=2)
    axes.set_xticks(nodes, [str(count) for count in nodes])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("nodes verified per step, the root included")
    axes.set_ylabel(label)
    return figure


@picture
def tokens_per_step_over_nodes(folder: Path, device: str):
    """Tokens per step over the node budget."""
    title = "Tokens per step over the node budget"
    return _over_nodes(folder, device, title, "tokens_per_step", "tokens per step", "tab:blue")


@picture
def step_time_over_nodes(folder: Path, device: str):
    """Time of a step over the node budget."""
    title = "Time of a step over the node budget"
    label = "milliseconds per step"
    return _over_nodes(folder, device, title, "step_milliseconds", label, "tab:orange")


@picture
def time_per_step(folder: Path, device: str):
    """Where the time of a step goes, by method."""
    rows = read_csv(folder / f"decode_{device}_phases.csv")
    rows = [row for row in rows if row["batch_size"] == 1]
    if not rows:
        return None
    figure, axes = new_figure("Where the time of a step goes", rows[0])
    methods = list(dict.fromkeys(row["method"] for row in rows))
    left = dict.fromkeys(methods, 0.0)
    for phase in dict.fromkeys(row["phase"] for row in rows):
        spent = {row["method"]: row["milliseconds"] for row in rows if row["phase"] == phase}
        widths = [spent.get(method, 0.0) for method in methods]
        axes.barh(methods, widths, 0.6, left=[left[method] for method in methods], label=phase)
        left = {method: left[method] + spent.get(method, 0.0) for method in methods}
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per step")
    axes.legend(fontsize=8, ncols=7, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("--csv", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    for name, draw in PICTURES.items():
        figure = draw(options.csv, options.device)
        if figure is None:
            print(f"{name}: no results to draw")
            continue
        path = options.csv / f"{name}_{options.device}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
