"""Which prompts a benchmark decodes."""

from collections import defaultdict
from pathlib import Path

from ..prompts import read_records

DEFAULT_PROMPTS = Path(__file__).with_name("prompts.jsonl")


def read_prompts(path: str | Path, limit: int | None = None) -> list[dict]:
    """The records of a prompt file, at most `limit` of each `category` ("all" if absent)."""
    chosen, counts = [], defaultdict(int)
    for record in read_records(path):
        record.setdefault("category", "all")
        counts[record["category"]] += 1
        if limit is None or counts[record["category"]] <= limit:
            chosen.append(record)
    return chosen
