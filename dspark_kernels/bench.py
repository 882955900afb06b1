"""`dspark bench decode`: the loop against transformers' generate, prompt by prompt, interleaved."""

import time
from collections import defaultdict

import torch
from rich import box
from rich.console import Group
from rich.table import Column, Table
from tqdm import tqdm

from .integrations.decoder import SpeculativeDecoder
from .prompts import encode, read_records
from .statistics import Statistics, until_stop


def read_prompts(path: str, limit: int | None = None) -> list[dict]:
    """The records of a prompt file, at most `limit` of each `category` ("all" if absent)."""
    chosen, counts = [], defaultdict(int)
    for record in read_records(path):
        record.setdefault("category", "all")
        counts[record["category"]] += 1
        if limit is None or counts[record["category"]] <= limit:
            chosen.append(record)
    return chosen


def plain(decoder: SpeculativeDecoder, ids: list[list[int]], options: dict):
    """Decode without speculation: (name of the way, tokens per request, seconds).

    Greedy decoding is transformers' generate; sampling is our loop with one node per step, since
    generate draws from another random stream.
    """
    start = time.perf_counter()
    if options.get("temperature", 0) == 0:
        tokens = _transformers_generate(decoder, ids, options["max_new_tokens"])
        return "transformers generate", tokens, time.perf_counter() - start
    out = decoder.generate(ids, speculative=False, **options)
    return "plain sampling", out.tokens, time.perf_counter() - start


@torch.inference_mode()
def _transformers_generate(decoder, ids, max_new_tokens):
    longest, stop = max(map(len, ids)), decoder.stop_tokens
    pad = stop[0] if stop else 0
    batch = torch.tensor([[pad] * (longest - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    device = decoder.target.device
    out = decoder.model.generate(
        batch.to(device), attention_mask=mask.to(device), max_new_tokens=max_new_tokens,
        do_sample=False, pad_token_id=pad,
    )  # fmt: skip
    return [until_stop(row, stop) for row in out[:, longest:].tolist()]


def decode(
    decoder: SpeculativeDecoder,
    prompts: list[dict],
    *,
    batch_size: int = 1,
    max_new_tokens: int = 128,
    num_nodes: int = 16,
    min_score: float = 0.0,
) -> dict:
    """Decode every prompt both ways, in turn.

    Returns {"total": row, "categories": {name: row}, "milliseconds_per_step": {phase: number}}.

    A row holds prompts, tokens_per_step, tokens_per_second, baseline_tokens_per_second, speedup and
    identical (the number of prompts whose tokens equal the baseline's). Times are of whole calls,
    prefill included.
    """
    options = {
        "max_new_tokens": max_new_tokens, "num_nodes": num_nodes, "min_score": min_score,
    }  # fmt: skip
    by_category = defaultdict(list)
    for entry in prompts:
        by_category[entry["category"]].append(encode(entry, decoder.tokenizer))
    warm_up = [next(iter(by_category.values()))[0]]
    decoder.generate(warm_up, **(options | {"max_new_tokens": 8}))
    plain(decoder, warm_up, options | {"max_new_tokens": 8})

    tallies = {category: _Tally() for category in by_category}
    phases, steps = defaultdict(float), 0
    batches = [
        (category, ids[first : first + batch_size])
        for category, ids in by_category.items()
        for first in range(0, len(ids), batch_size)
    ]
    for category, ids in tqdm(batches, "decoding", leave=False):
        start = time.perf_counter()
        out = decoder.generate(ids, **options)
        seconds = time.perf_counter() - start
        _, baseline, baseline_seconds = plain(decoder, ids, options)
        tallies[category].add(out, seconds, baseline, baseline_seconds)
        steps += max(out.statistics.steps_of_batch, 1)
        for phase, spent in out.statistics.seconds.items():
            phases[phase] += spent
    return {
        "total": sum(tallies.values(), _Tally()).row(),
        "categories": {category: tally.row() for category, tally in tallies.items()},
        "milliseconds_per_step": {
            phase: 1e3 * spent / steps for phase, spent in phases.items() if phase != "prefill"
        },
    }


class _Tally:
    """Sums over the prompts of a category."""

    FIELDS = ("prompts", "steps", "step_tokens", "tokens", "seconds", "identical")
    BASELINE = ("baseline_tokens", "baseline_seconds")

    def __init__(self):
        self.sums = dict.fromkeys(self.FIELDS + self.BASELINE, 0)

    def add(self, out, seconds, baseline, baseline_seconds):
        statistics: Statistics = out.statistics
        values = (
            len(out.tokens), statistics.steps, statistics.tokens,
            sum(map(len, out.tokens)), seconds,
            sum(ours == theirs for ours, theirs in zip(out.tokens, baseline, strict=True)),
            sum(map(len, baseline)), baseline_seconds,
        )  # fmt: skip
        for name, value in zip(self.sums, values, strict=True):
            self.sums[name] += value

    def __add__(self, other):
        total = _Tally()
        total.sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        return total

    def row(self) -> dict:
        sums = self.sums
        ours = sums["tokens"] / sums["seconds"]
        baseline = sums["baseline_tokens"] / sums["baseline_seconds"]
        return {
            "prompts": sums["prompts"],
            "tokens_per_step": sums["step_tokens"] / max(sums["steps"], 1),
            "tokens_per_second": ours,
            "baseline_tokens_per_second": baseline,
            "speedup": ours / baseline,
            "identical": sums["identical"],
        }


def tables(result: dict) -> Group:
    """The result for people: rows per category, and where the time of a step goes."""
    columns = ("prompts", "tokens/step", "tokens/s", "generate", "speed-up", "identical")
    headers = (Column(name, justify="right", no_wrap=True) for name in columns)
    first = Column("category", no_wrap=True)
    view = Table(first, *headers, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, row in (*result["categories"].items(), ("total", result["total"])):
        view.add_row(
            name,
            str(row["prompts"]),
            f"{row['tokens_per_step']:.2f}",
            f"{row['tokens_per_second']:.1f}",
            f"{row['baseline_tokens_per_second']:.1f}",
            f"{row['speedup']:.2f}x",
            f"{row['identical']}/{row['prompts']}",
        )
    spent = result["milliseconds_per_step"]
    step = Table("phase", Column("ms per step", justify="right"), box=box.SIMPLE_HEAD)
    for phase, milliseconds in (*spent.items(), ("total", sum(spent.values()))):
        step.add_row(phase, f"{milliseconds:.2f}")
    return Group(view, step)
