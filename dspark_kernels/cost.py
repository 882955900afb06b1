"""What a step costs on this machine: measured once, kept in a file, interpolated.

Seconds of a target pass (with its draws and the walk) over tokens of one request, and of each
further request it runs over, at a few context lengths; and seconds of a draft by batch size.
"""

import hashlib
import json
import math
import os
import tempfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from . import __version__, _library
from .environment import device_name

VERSIONS = ("torch", "dspark_kernels")  # parts of a key that change at one place


@dataclass
class CostTable:
    """Seconds on one machine, for one target and draft; `key` says which."""

    key: dict[str, str]
    contexts: list[int]
    tokens: list[int]
    pass_seconds: list[list[float]]  # [contexts][tokens]
    batches: list[int]
    draft_seconds: list[float]  # [batches]
    request_seconds: list[float]  # [contexts], what each request beyond the first adds to a pass

    def step(self, batch: int, nodes: int, context: float, drafted: bool) -> float:
        """Seconds of a step over `nodes` of all requests, with or without a draft.

        Linear between the measured points, and beyond the last ones.
        """
        curves = [_line(nodes, self.tokens, row) for row in self.pass_seconds]
        seconds = _line(context, self.contexts, curves)
        seconds += (batch - 1) * _line(context, self.contexts, self.request_seconds)
        return seconds + (self.draft(batch) if drafted else 0.0)

    def draft(self, batch: int) -> float:
        """Seconds of a draft."""
        return _line(batch, self.batches, self.draft_seconds)

    def _check(self) -> None:
        """Raise a ValueError unless every place has its seconds."""
        if not isinstance(self.key, dict):
            raise ValueError(f"key must be an object, got {self.key}")
        for name, axis, rows in (
            ("pass_seconds", self.tokens, self.pass_seconds),
            ("draft_seconds", self.batches, [self.draft_seconds]),
            ("request_seconds", self.contexts, [self.request_seconds]),
            ("contexts", self.pass_seconds, [self.contexts]),
        ):
            for row in rows:
                if not 0 < len(row) == len(axis) or not all(0 <= x < math.inf for x in row):
                    raise ValueError(f"{name} must hold {len(axis)} numbers, got {row}")

    def save(self) -> Path:
        """Keep the table where `table_path` says; readers see the old one or the new one."""
        path = table_path(self.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(asdict(self), indent=1))
        os.replace(unfinished, path)
        return path

    @classmethod
    def load(cls, path: Path, key: dict[str, str]) -> "CostTable":
        """The table in a file; ValueError unless it was measured for `key`."""
        try:
            table = cls(**json.loads(path.read_text()))
            table._check()
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"cost table {path} must hold a table of `dspark profile`: {error}"
            ) from error
        for name, expected in key.items():
            if table.key.get(name) != expected:
                raise ValueError(
                    f"cost table {path} must be measured with {name} {expected!r}, got "
                    f"{table.key.get(name)!r}; measure again: dspark profile"
                )
        return table


def _line(x: float, points: list[float], values: list[float]) -> float:
    """Linear interpolation; beyond the last point its segment goes on, unless it falls: noise."""
    if x <= points[-1] or len(points) == 1:
        return float(np.interp(x, points, values))
    slope = (values[-1] - values[-2]) / (points[-1] - points[-2])
    return values[-1] + max(slope, 0.0) * (x - points[-1])


def table_key(target, draft) -> dict[str, str]:
    """What a table depends on: place and model, and the versions it was measured with."""
    hidden, vocab, layers = target.identity
    heads, vocab_rows = draft.calibration.shape[0], draft.vocab_weight.shape[0]
    return {
        "model": f"{target.name}: {layers} layers of {hidden}, {vocab} tokens, "
        f"{target.num_parameters} parameters",
        "layers": "its own" if target.fused is None else "fused",
        "backend": _library.backend_of("tree_attention", target.device.type)[0],
        "draft": f"{heads} heads, {vocab_rows} tokens, rank {draft.mix.shape[1]}",
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": device_name(target.device),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "dspark_kernels": __version__,
        "native library": _fingerprint(_library.NATIVE_PATH),
    }


def _fingerprint(path: Path | None) -> str:
    """Tells one build of a file from another."""
    return "none" if path is None else f"{zlib.crc32(path.read_bytes()):08x}"


def table_path(key: dict[str, str]) -> Path:
    """Where the table of a key is kept, whatever its versions: in the user's cache folder."""
    place = "\n".join(value for name, value in key.items() if name not in VERSIONS)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):  # nobody's home
        base = tempfile.gettempdir()
    name = hashlib.sha256(place.encode()).hexdigest()[:16]
    return Path(base) / "dspark_kernels" / f"cost-{name}.json"
