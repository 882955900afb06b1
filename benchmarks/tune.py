"""Measure tiles on this GPU and rewrite its part of dspark_kernels/triton/tiles.py.

    python -m benchmarks.tune [--minutes 20] [--op linear_topk]

From every entry of the table it walks downhill: one block size, or number of warps, stages or
programs at a time is halved, doubled or changed by one, or a block is halved for twice the
programs, and what is faster is kept, until nothing helps. Times are medians with a cold L2; a
candidate whose result differs is out. The candidates are compiled side by side, by other processes
that fill Triton's cache.
"""

import argparse
import contextlib
import functools
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import triton
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from dspark_kernels.triton import config, tiles
from dspark_kernels.triton.draft_blocks import draft_blocks
from dspark_kernels.triton.fused_linear import fused_linear
from dspark_kernels.triton.linear_topk import linear_topk
from dspark_kernels.triton.sample_logits import sample_logits
from dspark_kernels.triton.tree_attention import tree_attention

V, D = 151936, 4096
DTYPES = {"half": torch.bfloat16, "single": torch.float32, "fp8": torch.float8_e4m3fn}
FIXED = ("BLOCK_M",)  # the shape class
CROSSING = {"linear_topk": 8, "fused_linear": 32, "fused_linears": tiles.ANY}  # the second size
BATCHES = (16, 32, 64, 96, 128, 192, 256, 384, 512)  # where to look for the crossover
HEADER = '''\
"""The table of tiles: (op, dtype class, capability) -> entries; the first that fits serves.

An entry is (size limits, block sizes, warps, stages, programs per SM). The sizes are (M, k) for
linear_topk, (k,) for logits_topk, (V,) for sample_logits, (B,) for draft_blocks, (M, columns of the
output per SM) for fused_linear and (query rows per KV head, E, slots of the cache per SM) for
tree_attention.

`python -m benchmarks.tune` rewrites this file. What MEASURED does not name was chosen on paper, and
checked by compiling (`tests/test_triton_aot.py`).
"""

ANY = 1 << 30

'''


def case(op, kind, sizes, device):
    """A call of the op's launcher at these sizes, on data that does not fit the L2."""

    def normal(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, device=device).to(dtype)

    def noise(rows):
        numbers = torch.arange(rows, device=device)
        return torch.ones(rows, device=device), numbers, numbers + 1000

    dtype, rows = DTYPES[kind], 64 if sizes[0] == tiles.ANY else sizes[0]
    if op == "linear_topk":
        x, weight = normal(rows, D, dtype=dtype), normal(V, D, dtype=dtype)
        k = 48 if sizes[1] == 64 else 8  # of a draft's heads; of what else is ranked
        arguments = (x, weight, k, None, *noise(len(x)), None, 0, None, None)
        return lambda: linear_topk(*arguments)
    if op == "logits_topk":
        x, weight = normal(256, D), normal(V, D)
        return lambda: linear_topk(x, weight, 8, None, *noise(256), None, 0, None, None)
    if op == "sample_logits":
        logits, top_p = normal(64, V), torch.full((64,), 0.9, device=device)
        return lambda: sample_logits(logits, None, *noise(64), None, top_p, None, None, None)
    if op == "draft_blocks":
        hidden, bias = normal(rows, D, dtype=dtype), normal(5, D, dtype=dtype)
        weight = normal(5, D, D, dtype=dtype)
        return lambda: draft_blocks(hidden, weight, bias, None, None)
    if op in ("fused_linear", "fused_linears"):
        x, gated = normal(rows, D, dtype=dtype), sizes[1] == tiles.ANY
        width = 14336 if gated else sizes[1] * config.device_of(x).sms
        weights = list(normal(1 + gated, width, D, dtype=dtype))
        return lambda: fused_linear(x, weights, [], gated, None, None, 0.0)
    rows, width = min(sizes[0], 256), min(sizes[1], 256)
    batch, nodes, heads, group = 4, rows // 4, 8, 4
    slots = 16384 if sizes[2] == tiles.ANY else 2048
    q = normal(batch, nodes, heads * group, width, dtype=torch.bfloat16 if kind == "fp8" else dtype)
    cache = normal(2, batch, slots, heads, width, dtype=dtype)
    lengths = torch.full((batch,), slots - nodes, dtype=torch.int32, device=device)
    ancestors = torch.full((batch, nodes, (nodes + 63) // 64), -1, device=device)
    arguments = (q, *cache, lengths, ancestors, width**-0.5, None, 0, 0.0, None, None, None)
    return lambda: tree_attention(*arguments)


def neighbours(entry):
    """The entries one step away."""
    limits, blocks, warps, stages, per_sm = entry
    for name, size in blocks.items():
        if name not in FIXED:
            for changed, programs in (
                (size // 2, per_sm), (size * 2, per_sm), (size // 2, per_sm * 2),
            ):  # fmt: skip
                new = {**blocks, name: changed}
                if changed >= 16 and new.get("SLICE", 0) <= new.get("BLOCK_V", 0):
                    yield limits, new, warps, stages, programs
    for changed in {max(warps // 2, 1), min(warps * 2, 16)} - {warps}:
        yield limits, blocks, changed, stages, per_sm
    for changed in {max(stages - 1, 1), stages + 1} - {stages}:
        yield limits, blocks, warps, changed, per_sm
    for changed in {max(per_sm - 1, 1), per_sm + 1} - {per_sm}:
        yield limits, blocks, warps, stages, changed


class CompileOnly:
    """In the place of Triton's driver: says for which GPU to compile, and needs none."""

    def __init__(self, target):
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch  # kernels are kept by device

    def get_current_stream(self, device):
        return 0


def compile_only(target, device, patch=setattr):
    """Make this process one whose launches only compile, for another process that has the GPU.

    patch: sets the attributes, in the manner of setattr.
    """
    launch = JITFunction.run

    @functools.wraps(launch)
    def run(*arguments, warmup, **options):
        return launch(*arguments, warmup=True, **options)

    patch(driver, "_active", CompileOnly(target))
    patch(config, "_cuda_device", lambda index: device)
    patch(JITFunction, "run", run)


def compile_entry(key, index, entry):
    """In such a process: put what the entry of the table compiles to into Triton's cache."""
    (op, kind, _), limits = key, entry[0]
    config.TILES[key][index] = entry
    with contextlib.suppress(Exception):  # the process with the GPU meets it again
        case(op, kind, limits, "meta")()


def measure(call, expected=None):
    """Median microseconds of call(), infinite if it cannot run or gives something else."""
    try:
        result = call()
        if expected is not None and not close(result, expected):
            return float("inf")
        return 1000 * triton.testing.do_bench(call, return_mode="median")
    except (triton.TritonError, RuntimeError):
        return float("inf")


def close(result, expected):
    pairs = zip(flat(result), flat(expected), strict=True)
    return all(torch.allclose(a.float(), b.float(), rtol=2e-2, atol=2e-2) for a, b in pairs)


def flat(result):
    """The float outputs of a call; ids may differ in near-ties."""
    outputs = result if isinstance(result, tuple) else (result,)
    return [tensor for tensor in outputs if tensor.is_floating_point()]


def descend(key, index, deadline, compilers):
    """Replace entry `index` of the table at `key` by the fastest found before the deadline."""
    op, kind, _ = key
    entries = config.TILES[key]
    call = case(op, kind, entries[index][0], "cuda")
    expected, best = call(), measure(call)
    first, tried, improved = best, [entries[index]], True
    while improved and time.time() < deadline:
        improved = False
        candidates = [entry for entry in neighbours(entries[index]) if entry not in tried]
        compiled = [compilers.submit(compile_entry, key, index, entry) for entry in candidates]
        for candidate, done in zip(candidates, compiled, strict=True):
            done.result()
            if time.time() >= deadline:
                break
            tried.append(candidate)
            kept, entries[index] = entries[index], candidate
            duration = measure(call, expected)
            if duration < 0.99 * best:
                best, improved = duration, True
            else:
                entries[index] = kept
    print(f"{op} {kind} {entries[index][0]}: {first:.1f} -> {best:.1f} us, {len(tried)} tried")


def find_crossover(key):
    """The largest number of rows up to which the fused kernel is as fast as plain products."""
    op, kind, _ = key
    largest = 0
    for rows in BATCHES:
        call, durations = case(op, kind, (rows, CROSSING[op]), "cuda"), []
        for limit in (tiles.ANY, 0):
            config.CROSSOVER[key] = limit
            durations.append(measure(call))
        print(f"{op} {kind}: {rows} rows fused {durations[0]:.1f} us, plain {durations[1]:.1f} us")
        if durations[0] > durations[1]:
            break
        largest = rows
    return largest


def render(table, crossover, measured):
    """The text of tiles.py."""
    lines = [HEADER, f"MEASURED = {measured!r}\n\n".replace("'", '"')]
    lines.append(
        "# rows of x up to which an op is fused; above it, plain products\n"
        "# (fused_linears: several weights at once)\nCROSSOVER = {\n"
    )
    for (op, kind, capability), rows in crossover.items():
        lines.append(f'    ("{op}", "{kind}", {capability}): {rows},\n')
    lines.append("}\n\nTILES = {\n")
    for (op, kind, capability), entries in table.items():
        lines.append(f'    ("{op}", "{kind}", {capability}): [\n')
        for limits, *values in entries:
            sizes = ", ".join("ANY" if size == tiles.ANY else str(size) for size in limits)
            sizes += "," * (len(limits) == 1)
            blocks = ", ".join(f'"{name}": {size}' for name, size in values[0].items())
            numbers = ", ".join(map(str, values[1:]))
            lines.append(f"        (({sizes}), {{{blocks}}}, {numbers}),\n")
        lines.append("    ],\n")
    lines.append("}\n")
    return "".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="stop looking after this long")
    parser.add_argument("--op", help="only this op of the table")
    options = parser.parse_args()
    end = time.time() + 60 * options.minutes
    device = config.device_of(torch.empty(0, device="cuda"))
    capability = device.capability
    compilers = ProcessPoolExecutor(
        max(1, len(os.sched_getaffinity(0)) - 2), multiprocessing.get_context("spawn"),
        compile_only, (driver.active.get_current_target(), device),
    )  # fmt: skip
    jobs = [
        (key, index)
        for key, entries in config.TILES.items()
        for index in range(len(entries))
        if key[2] == capability and options.op in (None, key[0])
    ]
    for done, (key, index) in enumerate(jobs):
        now = time.time()
        descend(key, index, now + max(0, end - now) / (len(jobs) - done), compilers)
    compilers.shutdown(cancel_futures=True)
    for key in config.CROSSOVER:
        if key[1:] == ("half", capability) and key[0].startswith(options.op or ""):
            config.CROSSOVER[key] = find_crossover(key)
    name = torch.cuda.get_device_name()
    measured = f"{name}, torch {torch.__version__}, Triton {triton.__version__}"
    text = render(config.TILES, config.CROSSOVER, tiles.MEASURED | {capability: measured})
    Path(tiles.__file__).write_text(text)


if __name__ == "__main__":
    main()
