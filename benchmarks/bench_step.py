"""One plain and one tree step of a 7B-class model: python -m benchmarks.bench_step --config NAME

The model has the architecture of the name and random weights; nothing is downloaded. Times are of
the whole step of the loop - draft, target pass, draw, acceptance - over a cache filled to the
context; own_layers is the tree step whose target pass runs transformers' layers, not ours. Times do
not depend on the weights, tokens per step do: so the tokens per step needed for a speed-up are what
follows from the times, in columns of their own (needed_*).
"""

import argparse
import gc
import statistics
import time
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from dspark_kernels import decode
from dspark_kernels.integrations.transformers import TransformersTarget
from dspark_kernels.ops import values_on_trust
from dspark_kernels.results import origin, write_csv
from dspark_kernels.sampling import Sampling
from dspark_kernels.state import State
from dspark_kernels.statistics import no_clock

from .common import untrained_draft
from .timing import synchronize, timed_call

LLAMA_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "num_key_value_heads": 32,
}  # fmt: skip
CONFIGS = {
    "deepseek-llm-7b": LlamaConfig(vocab_size=102400, num_hidden_layers=30, **LLAMA_7B),
    "deepseek-coder-6.7b": LlamaConfig(vocab_size=32256, num_hidden_layers=32, **LLAMA_7B),
    "llama-3-8b": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8,
    ),
    "qwen3-8b": Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    ),
    "tiny": LlamaConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    ),
}  # fmt: skip
SPEEDUPS = (1.0, 2.53, 3.01)  # to break even, and the two that an article claims
RUNS = 15
WARM = 0.3  # seconds before a measurement


def build(name: str, device: str, dtype: torch.dtype):
    """A target with random weights, and an untrained draft for it."""
    config = CONFIGS[name]
    config.max_position_embeddings = 65536
    with torch.device(device), default_dtype(dtype):
        target = TransformersTarget(AutoModelForCausalLM.from_config(config))
    return target, untrained_draft(target)


@contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def cache_bytes(target, batch: int, slots: int) -> int:
    """Bytes of keys and values of `slots` tokens per request."""
    per_token = 2 * target.num_layers * target.kv_heads * target.head_dim * target.dtype.itemsize
    return batch * slots * per_token


def state_at(target, batch: int, context: int, room: int) -> State:
    """Requests with `context` tokens of random keys and values in the cache."""
    sampling = Sampling().tensors(batch, target.device)
    state = State.empty(target, batch, context + room, sampling, 0)
    for layer in state.cache.storage:
        layer.normal_()
    state.cache.seqlens.fill_(context)
    state.history.random_(target.lm_head.shape[0])
    state.lengths.fill_(context + 1)
    state.hidden.normal_()
    state.features.normal_()
    state.limit.fill_(2**30)
    return state


def step_of(target, draft, state: State, context: int, num_nodes: int):
    """A call that makes one step and puts the state back where it was; it captures in a graph."""

    @torch.inference_mode()
    @values_on_trust()
    def call():
        decode.step(target, draft, state, num_nodes, 0.0, no_clock)
        state.cache.seqlens.fill_(context)
        state.lengths.fill_(context + 1)

    return call


def milliseconds(call, device: str) -> float:
    """Median time of a call, after some that do not count: a GPU's clocks rise under load."""
    end = time.perf_counter() + WARM
    while time.perf_counter() < end:
        for _ in range(3):
            call()
        synchronize(device)
    return 1e3 * statistics.median(timed_call(call, device) for _ in range(RUNS))


def captured(call):
    """The call as a CUDA graph: (replay, ""), or (None, why it cannot be captured)."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        torch.cuda.synchronize()
        return None, str(error).splitlines()[0]
    return graph.replay, ""


def measure(target, draft, batch: int, context: int, num_nodes: int, device: str) -> dict:
    """The columns of one row: measured times, then what follows from them."""
    room = num_nodes + 2 * decode.max_depth(draft) + 2
    row = {"batch": batch, "context": context, "nodes": num_nodes}
    steps = {
        "plain": (None, 1, target.fused),
        "tree": (draft, num_nodes, target.fused),
        "own_layers": (draft, num_nodes, None),
    }
    measured = {f"{name}{way}": None for way in ("_ms", "_graph_ms") for name in steps}
    note, needed = "", cache_bytes(target, batch, context + room)
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else 8 * 2**30
    if needed > 0.9 * free:
        note = f"not run: a cache of {needed / 2**30:.0f} GiB does not fit"
    else:
        state = state_at(target, batch, context, room)
        for name, (drafted, nodes, fused) in steps.items():
            call = step_of(target, drafted, state, context, nodes)
            with patch.object(target, "fused", fused):  # None: as transformers runs them
                measured[f"{name}_ms"] = milliseconds(call, device)
                if device == "cuda":
                    replay, why = captured(call)
                    note = note or why
                    measured[f"{name}_graph_ms"] = replay and milliseconds(replay, device)
    follows = {}
    for way, suffix in (("eager", "_ms"), ("graph", "_graph_ms")):
        plain, tree = measured[f"plain{suffix}"], measured[f"tree{suffix}"]
        for speedup in SPEEDUPS:
            value = speedup * tree / plain if plain and tree else None
            follows[f"needed_{way}_{speedup:g}x"] = value
    return row | measured | follows | {"note": note}


def tables(name: str, rows: list[dict]):
    """What was measured, and what follows from it, in two tables."""
    place = ("batch", "context", "nodes")
    kinds = {
        f"{name}: milliseconds per step, measured": [k for k in rows[0] if k.endswith("_ms")],
        "tokens per step needed, which follows from these times": [
            k for k in rows[0] if k.startswith("needed_")
        ],
    }
    for title, fields in kinds.items():
        table = Table(*place, *(field.removeprefix("needed_") for field in fields), title=title)
        for row in rows:
            values = ("" if row[field] is None else f"{row[field]:.2f}" for field in fields)
            table.add_row(*(str(row[field]) for field in place), *values)
        yield table
    yield from dict.fromkeys(row["note"] for row in rows if row["note"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_step", description=__doc__)
    parser.add_argument("--config", choices=CONFIGS, nargs="+", default=["tiny"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--context", type=int, nargs="+", default=[512, 4096, 32768])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--nodes", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--csv", type=Path, metavar="DIR", help="write <DIR>/step_<device>.csv")
    options = parser.parse_args()
    setting = {"dtype": options.dtype, **origin(options.device)}
    console, results = Console(width=130), []
    for name in options.config:
        target, draft = build(name, options.device, getattr(torch, options.dtype))
        rows = []
        for batch, context, nodes in product(options.batch, options.context, options.nodes):
            with console.status(f"{name}, batch {batch}, context {context}, nodes {nodes}"):
                rows.append(measure(target, draft, batch, context, nodes, options.device))
            results.append({"config": name} | rows[-1] | setting)
            if options.csv:  # at once: a run cut short keeps what it measured
                write_csv(options.csv / f"step_{options.device}.csv", results)
        console.print(*tables(name, rows), sep="\n")
        del target, draft
        gc.collect()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
