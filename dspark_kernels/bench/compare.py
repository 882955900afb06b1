"""The same prompts by several methods in turn, and the sums which the tables show."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from ..results import write_csv
from .methods import Decoded

REFERENCE = "generate"  # speed-ups and equal outputs are over this method
PLAIN = "plain"  # what the prediction from step times starts from


@dataclass
class Comparison:
    """What a run measured, as rows for tables and CSV.

    rows: one per category (and "total") and method. phases: milliseconds per step of the methods on
    our loop, one row per method and phase. notes: what each method is, or why it was left out.
    """

    rows: list[dict] = field(default_factory=list)
    phases: list[dict] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def __add__(self, other: "Comparison") -> "Comparison":
        notes = self.notes | other.notes
        return Comparison(self.rows + other.rows, self.phases + other.phases, notes)

    def write(self, folder: Path, name: str, setting: dict) -> None:
        """Write <name>.csv and <name>_phases.csv, each row with the columns of `setting`."""
        write_csv(folder / f"{name}.csv", [row | setting for row in self.rows])
        if self.phases:
            write_csv(folder / f"{name}_phases.csv", [row | setting for row in self.phases])


def compare(
    methods: dict[str, Callable],
    prompts: dict[str, Sequence[Sequence[int]]],
    *,
    batch_size: int = 1,
    max_new_tokens: int = 128,
) -> Comparison:
    """Decode every batch of prompts with every method in turn, starting with another one each time.

    methods: by name; `generate` must be among them. prompts: token ids by category. Times are those
    of whole calls, the pass over the prompt included. The last batch of a category is filled up
    with its first prompts. Methods that cannot decode `batch_size` requests at once are left out.

    A row has: prompts, tokens, seconds, tokens_per_second, tokens_per_step (see `Decoded`), speedup
    (tokens per second over those of `generate`), identical (prompts whose tokens are those of
    `generate`); on our loop step_milliseconds too, and with `plain` among the methods
    predicted_over_plain (tokens per step times the ratio of step times) and measured_over_plain.
    """
    able = {
        name: method
        for name, method in methods.items()
        if method.max_batch is None or batch_size <= method.max_batch
    }
    everyone = [ids for group in prompts.values() for ids in group]
    warm_up, length, times = everyone[:1], 8, 1
    if torch.cuda.is_available():  # all kernels are to be compiled, and all captures made
        longest = sorted(everyone, key=len)[-batch_size:]
        warm_up, length, times = (longest * batch_size)[:batch_size], max_new_tokens, 3
    for method in able.values():  # so that none pays for being the first
        for _ in range(times):
            method(warm_up, length)
    sums = {(category, name): Counter() for category in prompts for name in able}
    batches = [
        (category, [group[(first + i) % len(group)] for i in range(batch_size)])
        for category, group in prompts.items()
        for first in range(0, len(group), batch_size)
    ]
    for turn, (category, ids) in enumerate(tqdm(batches, f"batch {batch_size}", leave=False)):
        outputs = {}
        names = list(able)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            outputs[name] = _timed(able[name], ids, max_new_tokens)
        for name, (decoded, seconds) in outputs.items():
            reference = outputs[REFERENCE][0].tokens
            sums[category, name].update(_counts(decoded, seconds, reference))
    for name in able:
        total = sums["total", name] = Counter()
        for category in prompts:
            total.update(sums[category, name])
    notes = {name: method.note for name, method in able.items()} | {
        name: f"left out: it decodes {method.max_batch} request at a time"
        for name, method in methods.items()
        if name not in able
    }
    return Comparison(
        rows=[
            {"batch_size": batch_size, "category": category, "method": name}
            | _row(sums[category, name], sums[category, REFERENCE], sums.get((category, PLAIN)))
            for category in (*prompts, "total")
            for name in able
        ],
        phases=[
            {"batch_size": batch_size, "method": name, "phase": phase} | {"milliseconds": spent}
            for name in able
            for phase, spent in _phases(sums["total", name]).items()
        ],
        notes=notes,
    )


def _timed(method, ids, max_new_tokens) -> tuple[Decoded, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    decoded = method(ids, max_new_tokens)  # ends with tokens on the host
    return decoded, time.perf_counter() - start


def _counts(decoded: Decoded, seconds: float, reference: list[list[int]]) -> dict:
    counts = {
        "prompts": len(decoded.tokens),
        "tokens": sum(map(len, decoded.tokens)),
        "seconds": seconds,
        "steps": decoded.steps,
        "step_tokens": decoded.step_tokens,
        "identical": sum(a == b for a, b in zip(decoded.tokens, reference, strict=True)),
    }
    if decoded.statistics is not None:
        measured = decoded.statistics
        counts["passes"] = measured.steps_of_batch
        counts["decode_seconds"] = measured.decode_seconds
        for phase, spent in measured.seconds.items():
            if phase != "prefill":
                counts["phase", phase] = spent
    return counts


def _row(sums: Counter, reference: Counter, plain: Counter | None) -> dict:
    speed = sums["tokens"] / sums["seconds"]
    row = {
        "prompts": sums["prompts"],
        "tokens": sums["tokens"],
        "seconds": sums["seconds"],
        "tokens_per_second": speed,
        "tokens_per_step": sums["step_tokens"] / max(sums["steps"], 1),
        "speedup": speed * reference["seconds"] / reference["tokens"],
        "identical": sums["identical"],
        "step_milliseconds": None,
        "predicted_over_plain": None,
        "measured_over_plain": None,
    }
    if sums["passes"]:
        row["step_milliseconds"] = 1e3 * sums["decode_seconds"] / sums["passes"]
    if plain:
        row["measured_over_plain"] = speed * plain["seconds"] / plain["tokens"]
    if plain and plain["passes"] and sums["passes"]:
        plain_step = 1e3 * plain["decode_seconds"] / plain["passes"]
        row["predicted_over_plain"] = row["tokens_per_step"] * plain_step / row["step_milliseconds"]
    return row


def _phases(sums: Counter) -> dict[str, float]:
    """Milliseconds per step by phase; what no phase covers is the host's."""
    if not sums["passes"]:
        return {}
    spent = {key[1]: seconds for key, seconds in sums.items() if isinstance(key, tuple)}
    spent["host"] += sums["decode_seconds"] - sum(spent.values())
    return {phase: 1e3 * seconds / sums["passes"] for phase, seconds in spent.items()}
