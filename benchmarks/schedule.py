"""The scheduler beside every fixed number of nodes: python -m benchmarks.schedule [--csv DIR]

Each group of prompts is decoded greedily with every setting in turn, in a shuffled order, so that
a change of the machine's speed falls on all of them; several rounds, since a category of a batch
is a single group. Decoding time only, prefill excluded.
"""

import argparse
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dspark_kernels.bench import DEFAULT_PROMPTS, read_prompts
from dspark_kernels.integrations.decoder import SpeculativeDecoder
from dspark_kernels.prompts import encode
from dspark_kernels.results import origin, write_csv

matplotlib.use("Agg")
from matplotlib import pyplot

SIZES = (1, 2, 4, 8, 16, 32, 64)
MOST_TOKENS = 256  # of a pass: larger fixed sizes are hopeless on a batch and would take minutes


@dataclass
class Tally:
    """Sums over the prompts of a category, or all."""

    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    nodes: int = 0
    predicted: float = 0.0
    observed: float = 0.0

    def add(self, statistics) -> None:
        self.tokens += statistics.tokens
        self.seconds += statistics.decode_seconds
        self.steps += statistics.steps
        self.nodes += statistics.nodes
        self.predicted += statistics.predicted_tokens_per_step * statistics.steps
        self.observed += statistics.observed_tokens_per_step * statistics.steps

    def row(self) -> dict:
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "tokens_per_step": self.tokens / self.steps,
            "nodes_per_step": self.nodes / self.steps,
            "predicted_tokens_per_step": self.predicted / self.steps,
            "observed_tokens_per_step": self.observed / self.steps,
        }


def measure(decoder, prompts, batch_size: int, max_new_tokens: int, rounds: int) -> dict:
    """{category or "total": {setting: Tally}}; a setting is a number of nodes or "auto"."""
    settings = [*(size for size in SIZES if size * batch_size <= MOST_TOKENS), "auto"]
    by_category = defaultdict(list)
    for record in prompts:
        by_category[record["category"]].append(encode(record, decoder.tokenizer))
    groups = [
        (category, ids[first : first + batch_size])
        for category, ids in by_category.items()
        for first in range(0, len(ids), batch_size)
    ]
    for setting in settings:
        decoder.generate(groups[0][1], num_nodes=setting, max_new_tokens=8)
    tallies: dict = {name: defaultdict(Tally) for name in (*by_category, "total")}
    shuffle = random.Random(0)
    for category, ids in tqdm(groups * rounds, "decoding"):
        for setting in shuffle.sample(settings, len(settings)):
            out = decoder.generate(ids, num_nodes=setting, max_new_tokens=max_new_tokens)
            for name in (category, "total"):
                tallies[name][setting].add(out.statistics)
    return {
        name: {setting: by_setting[setting] for setting in settings}
        for name, by_setting in tallies.items()
    }


def compare(tallies: dict) -> Table:
    """Tokens/s of every setting by category, and of the scheduler over plain and the best fixed."""
    settings = list(tallies["total"])
    table = Table("tokens/s", *map(str, settings), "/ plain", "/ best fixed", "predicted, observed")
    for name, by_setting in tallies.items():
        speed = {setting: tally.row()["tokens_per_second"] for setting, tally in by_setting.items()}
        auto, best = speed["auto"], max(speed[setting] for setting in settings[:-1])
        row = by_setting["auto"].row()
        promise = f"{row['predicted_tokens_per_step']:.2f}, {row['observed_tokens_per_step']:.2f}"
        ratios = f"{auto / speed[1]:.2f}", f"{auto / best:.3f}"
        table.add_row(name, *(f"{speed[s]:.1f}" for s in settings), *ratios, promise)
    return table


def plot(tallies: dict, path: Path, title: str) -> None:
    """Tokens/s over nodes per step, by category: lines of fixed sizes, stars of the scheduler."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, by_setting in tallies.items():
        fixed = [size for size in by_setting if size != "auto"]
        rows = {setting: tally.row() for setting, tally in by_setting.items()}
        bold = {"linewidth": 2.5, "color": "black"} if name == "total" else {"linewidth": 1}
        speed = [rows[size]["tokens_per_second"] for size in fixed]
        (line,) = axes.plot(fixed, speed, label=name, **bold)
        auto = rows["auto"]
        axes.plot(
            auto["nodes_per_step"], auto["tokens_per_second"], "*", markersize=11,
            color=line.get_color(),
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(fixed, [str(size) for size in fixed])
    axes.set_xlabel("tree nodes per step (stars: chosen by the scheduler, mean)")
    axes.set_ylabel("tokens per second")
    axes.set_title(title)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def rows_of(tallies: dict, batch_size: int) -> list[dict]:
    """One row per category and setting."""
    place = {"dtype": "bfloat16", **origin("cpu")}
    return [
        {"category": name, "batch_size": batch_size, "num_nodes": setting, **tally.row(), **place}
        for name, by_setting in tallies.items()
        for setting, tally in by_setting.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--prompts", default=DEFAULT_PROMPTS, help="JSON lines with prompt and category"
    )
    parser.add_argument("--limit", type=int, default=12, help="prompts per category at most")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1, help="over all prompts")
    parser.add_argument("--csv", type=Path, help="folder for the rows and the plot")
    options = parser.parse_args()
    prompts = read_prompts(options.prompts, options.limit)
    decoder = SpeculativeDecoder.from_pretrained(dtype=torch.bfloat16)
    tallies = measure(decoder, prompts, options.batch_size, options.max_new_tokens, options.rounds)
    Console(width=150).print(compare(tallies))
    if options.csv:
        stem = options.csv / f"schedule_batch{options.batch_size}_cpu"
        write_csv(stem.with_suffix(".csv"), rows_of(tallies, options.batch_size))
        plot(tallies, stem.with_suffix(".png"), f"SmolLM2-135M, batch {options.batch_size}")


if __name__ == "__main__":
    main()
