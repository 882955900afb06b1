"""Every Triton kernel × entry of the table of tiles, compiled for sm_80, sm_90 and sm_100 without a GPU."""

import pytest
import torch

pytest.importorskip("triton")

import triton_aot
from dspark_kernels import merge_topk
from dspark_kernels.triton.draft_blocks import draft_blocks
from dspark_kernels.triton.linear_topk import linear_topk
from dspark_kernels.triton.sample_logits import sample_logits
from dspark_kernels.triton.tiles import CROSSOVER, TILES
from dspark_kernels.triton.tree_attention import tree_attention

HALF, SINGLE = torch.bfloat16, torch.float32
DTYPES = {"half": HALF, "single": SINGLE, "fp8": torch.float8_e4m3fn}
V, D = 151936, 4096


def empty(*shape, dtype=HALF):
    return torch.empty(*shape, dtype=dtype, device="meta")


def noise(rows):
    return empty(rows, dtype=SINGLE), *(empty(rows, dtype=torch.int64) for _ in range(2))


def call_linear_topk(dtype, rows, k):
    x, weight, bias = empty(rows, D, dtype=dtype), empty(V, D, dtype=dtype), empty(V, dtype=dtype)
    linear_topk(x, weight, k, bias, *noise(rows), empty(V, dtype=torch.int64), 0)


def call_logits_topk(_, k):
    linear_topk(empty(256, D), empty(V, D), k, None, *noise(256), None, 0)


def call_sample_logits(_, width):
    top_k, top_p = empty(64, dtype=torch.int32), empty(64, dtype=SINGLE)
    sample_logits(empty(64, V), *noise(64), top_k, top_p, empty(64, dtype=SINGLE))


def call_draft_blocks(dtype, batch):
    hidden, weight = empty(batch, D, dtype=dtype), empty(5, D, D, dtype=dtype)
    vectors = empty(5, D, dtype=dtype)
    draft_blocks(hidden, weight, vectors, hidden, vectors)


def call_tree_attention(dtype, rows, width):
    """Contiguous with softcap, and paged with a window; the most registers of each kind of load."""
    nodes, group, heads = max(1, rows // 4), 4, 8
    q = empty(8, nodes, group * heads, width, dtype=SINGLE if dtype == SINGLE else HALF)
    lengths, scales = empty(8, dtype=torch.int32), (None, None)
    ancestors = empty(8, nodes, (nodes + 63) // 64, dtype=torch.int64)
    if dtype == torch.float8_e4m3fn:
        scales = empty(heads, dtype=SINGLE), empty(heads, dtype=SINGLE)
    cache, pages = empty(8, 4096, heads, width, dtype=dtype), empty(2048, 16, heads, width, dtype=dtype)
    table = empty(8, 256, dtype=torch.int32)
    tree_attention(q, cache, cache, lengths, ancestors, 0.1, None, 0, 30.0, *scales)
    tree_attention(q, pages, pages, lengths, ancestors, 0.1, table, 1000, 0.0, *scales)


CASES = [
    pytest.param(op, kind, capability, limits, id=f"{op}-{kind}-{capability}-{index}")
    for (op, kind, capability), entries in TILES.items()
    for index, (limits, *_) in enumerate(entries)
    if (kind, capability) != ("fp8", 80)  # Triton has no e4m3 below 8.9
]


def bounded(op, limits):
    """Sizes in reach of an entry's limits."""
    bounds = {"linear_topk": (64, 64), "draft_blocks": (64,), "tree_attention": (256, 256)}
    return [min(pair) for pair in zip(limits, bounds.get(op, limits), strict=True)]


@pytest.fixture(scope="module")
def report(request):
    """Rows of what was compiled, printed at the end."""
    rows = []
    yield rows
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    reporter.write_line("")
    reporter.write_line("| sm | tile | kernel | registers | shared KB | instructions |")
    reporter.write_line("|---|---|---|---|---|---|")
    for capability, tile, code in rows:
        kinds = ", ".join(f"{n} {kind}" for kind, n in code.instructions.items() if n)
        reporter.write_line(
            f"| {capability} | {tile} | {code.kernel} | {code.registers} "
            f"| {code.shared / 1024:.0f} | {kinds} |"
        )


@pytest.mark.parametrize("op, kind, capability, limits", CASES)
def test_compiles_without_spills(op, kind, capability, limits, monkeypatch, report):
    sizes = bounded(op, limits)
    call = globals()[f"call_{op}"]
    launches = triton_aot.record(monkeypatch, capability, lambda: call(DTYPES[kind], *sizes))
    assert launches
    for launch in launches:
        if (launch.source.hash(), str(launch.options), capability) in compiled:
            continue
        compiled.add((launch.source.hash(), str(launch.options), capability))
        code = triton_aot.compile_launch(launch, capability)
        report.append((capability, f"{op} {kind} {sizes}", code))
        assert code.stack == 0, code
        assert code.shared <= triton_aot.SHARED_MEMORY[capability], code
        blocks = launch.source.constants_by_name
