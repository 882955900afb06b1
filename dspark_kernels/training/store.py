"""Continuations on disk: tokens in JSON, the target's states in memory-mapped files beside them.

A shard is `<name>.json`, a list of {id, topic, category, temperature, prompt, tokens}, and
`<name>.bin`, bfloat16 [rows, 1 + len(feature_layers), D]: for every token of every continuation, in
order, the last hidden state which drew it, and the feature layers' states at that position.
"""

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .objective import Batch

FIELDS = ("id", "topic", "category", "temperature", "prompt", "tokens")


@dataclass
class Continuation:
    """A prompt, the target's continuation, and where its states are."""

    id: str
    topic: str
    category: str
    temperature: float
    prompt: list[int]
    tokens: list[int]
    states: torch.Tensor  # bfloat16 [len(tokens), 1 + len(feature_layers), D]


def write_shard(path: Path, records: list[dict], states: list[torch.Tensor]) -> None:
    """Write one shard; its JSON appears last, so that an interrupted shard does not exist."""
    torch.cat(states).bfloat16().contiguous().view(torch.int16).numpy().tofile(
        path.with_suffix(".bin")
    )
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(records))
    os.replace(unfinished, path.with_suffix(".json"))


def read_shards(folder: Path, hidden_size: int, layers: int) -> list[Continuation]:
    """All finished continuations of a folder; their states stay on disk until they are used."""
    continuations = []
    for path in sorted(Path(folder).glob("*.json")):
        records = json.loads(path.read_text())
        rows = sum(len(record["tokens"]) for record in records)
        shape = (rows, 1 + layers, hidden_size)
        mapped = np.memmap(path.with_suffix(".bin"), dtype=np.int16, mode="c", shape=shape)
        states = torch.from_numpy(mapped).view(torch.bfloat16)
        start = 0
        for record in records:
            end = start + len(record["tokens"])
            fields = [record[name] for name in FIELDS]
            continuations.append(Continuation(*fields, states[start:end]))
            start = end
    return continuations


def split_by_topic(continuations, held_out: float = 0.03):
    """(training, held out): whole topics are held out, chosen by a hash of their names."""

    def is_held_out(item):
        return zlib.crc32(item.topic.encode()) % 1000 < held_out * 1000

    train = [item for item in continuations if not is_held_out(item)]
    return train, [item for item in continuations if is_held_out(item)]


def choose(continuations: list[Continuation], held_out: float):
    """(training, calibration, whether the latter is held out), of what has a token to predict.

    Calibration and evaluation take the greedy continuations of the held-out topics; of all topics
    where those have none. Raises ValueError if there is nothing to train or to calibrate on.
    """
    items = [item for item in continuations if len(item.tokens) > 1]
    train, kept = split_by_topic(items, held_out)
    if not train:
        train, kept = items, []
    greedy = [item for item in kept if not item.temperature]
    calibration = greedy or [item for item in items if not item.temperature]
    if not calibration:
        raise ValueError(
            "prompts: one must be continued greedily by at least two tokens; of the "
            f"{len(continuations)} continuations {len(items)} are that long, and none is greedy"
        )
    return train, calibration, bool(greedy)


class Segments:
    """Random segments of continuations as training batches."""

    def __init__(self, continuations: list[Continuation], length: int, depths: int):
        """length: positions trained on per segment; depths: tokens after them, the targets."""
        self.items = continuations
        self.length, self.depths = length, depths
        sizes = torch.tensor([-(-len(item.tokens) // length) for item in self.items])
        self.ends = sizes.cumsum(0)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """`count` segments, every part of every continuation being equally likely."""
        total = self.length + self.depths
        dim = self.items[0].states.shape[1:]
        states = torch.zeros(count, total, *dim, dtype=torch.bfloat16)
        tokens = torch.full((count, total), -1)
        places = torch.randint(int(self.ends[-1]), (count,), generator=generator)
        shifts = torch.randint(self.length, (count,), generator=generator).tolist()
        chosen = torch.searchsorted(self.ends, places, right=True).tolist()
        for row, (index, place) in enumerate(zip(chosen, places.tolist(), strict=True)):
            item = self.items[index]
            before = int(self.ends[index - 1]) if index else 0
            start = max(0, (place - before) * self.length - shifts[row])
            part = item.tokens[start : start + total]
            tokens[row, : len(part)] = torch.tensor(part)
            states[row, : len(part)] = item.states[start : start + total]
        layers = states[:, :, 1:].flatten(2) if dim[0] > 1 else None
        return Batch(states[:, :, 0], layers, tokens)
