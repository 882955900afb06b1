"""A whole step on a GPU, eager and as one CUDA graph: python -m benchmarks.step_graph [--csv DIR]

Plain decoding, a tree of one node, is beside it.
The target is of the Llama architecture with random weights, so nothing is said about acceptance:
only what a step costs, how many kernels it launches, and how long the GPU waits between them.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

from dspark_kernels.decode import step
from dspark_kernels.graph import Graphs
from dspark_kernels.integrations.transformers import TransformersTarget
from dspark_kernels.prefill import prefill
from dspark_kernels.results import origin, write_csv
from dspark_kernels.sampling import Sampling
from dspark_kernels.statistics import no_clock

from .common import untrained_draft

SIZES, BATCHES, STEPS, PROMPT = (1, 16, 64), (1, 8), 20, 512
MODEL = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
    "max_position_embeddings": 4096,
}  # fmt: skip


def load(device: str):
    """A target with random bfloat16 weights, and an untrained draft for it."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**MODEL), dtype=torch.bfloat16)
    target = TransformersTarget(model)
    return target, untrained_draft(target)


def milliseconds(run) -> float:
    """Mean time of a step, the host's included."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(STEPS):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / STEPS


def launches_and_gaps(run) -> tuple[int, float]:
    """Kernels and copies of one step, and the milliseconds between them in which the GPU idles."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    idle, end = 0.0, spans[0][1]
    for start, stop in spans[1:]:
        idle += max(start - end, 0)
        end = max(end, stop)
    return len(spans), idle / 1e3


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, metavar="DIR", help="write <DIR>/step_graph_cuda.csv")
    options = parser.parse_args()
    target, draft = load("cuda")
    rows = []
    for batch in BATCHES:
        prompts = torch.randint(target.lm_head.shape[0], (batch, PROMPT)).tolist()
        room = SIZES[-1] + draft.max_depth + 1
        state, _ = prefill(target, prompts, Sampling(), [], 1, room)  # finished: its context stays
        graphs = Graphs(target.device)
        for nodes in SIZES:
            drafter = None if nodes == 1 else draft

            def eager(state=state, drafter=drafter, nodes=nodes):
                return step(target, drafter, state, nodes, 0.0, no_clock)

            def replayed(graphs=graphs, nodes=nodes, eager=eager):
                return graphs(nodes, eager)

            for _ in range(3):  # to compile, to capture, and to warm up
                replayed()
            count, idle = launches_and_gaps(eager)
            _, replayed_idle = launches_and_gaps(replayed)
            rows.append(
                {
                    "requests": batch, "nodes": nodes, "launches": count,
                    "eager_ms": milliseconds(eager), "eager_gaps_ms": idle,
                    "graph_ms": milliseconds(replayed), "graph_gaps_ms": replayed_idle,
                }
            )  # fmt: skip
    table = Table(*(name.removesuffix("_ms").replace("_", " ") for name in rows[0]))
    for row in rows:
        values = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
        table.add_row(*values)
    Console(width=120).print(
        table, f"ms, on {torch.cuda.get_device_name()}; one node is plain decoding"
    )
    if options.csv:
        setting = {"config": "llama-1.2b", "context": PROMPT, "dtype": "bfloat16", **origin("cuda")}
        write_csv(options.csv / "step_graph_cuda.csv", [row | setting for row in rows])


if __name__ == "__main__":
    main()
