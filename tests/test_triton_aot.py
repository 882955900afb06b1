"""Every Triton kernel × entry of the table of tiles, compiled for three GPUs without one."""

import multiprocessing
import re
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

pytest.importorskip("triton")

import triton_aot
from triton.backends.compiler import GPUTarget

from benchmarks import tune
from dspark_kernels.cache import KVCache
from dspark_kernels.integrations import fused_pass
from dspark_kernels.triton import config, tiles
from dspark_kernels.triton.draft_blocks import draft_blocks
from dspark_kernels.triton.fused_linear import fused_linear
from dspark_kernels.triton.linear_topk import linear_topk
from dspark_kernels.triton.rotary_append import rotary_append
from dspark_kernels.triton.sample_logits import sample_logits
from dspark_kernels.triton.tree_attention import tree_attention

DTYPES = {"half": torch.bfloat16, "single": torch.float32, "fp8": torch.float8_e4m3fn}
LARGEST = {
    "linear_topk": (64, 64), "draft_blocks": (64,), "fused_linear": (128, 64),
    "tree_attention": (256, 256, 2048),
}  # fmt: skip
MATRIX_UNIT = {80: "mma", 90: "wgmma", 100: "tcgen05"}
V, D = 151936, 4096


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype, device="meta")


def floats(*shape):
    return empty(*shape, dtype=torch.float32)


def int32s(*shape):
    return empty(*shape, dtype=torch.int32)


def int64s(*shape):
    return empty(*shape, dtype=torch.int64)


def noise(rows):
    return floats(rows), int64s(rows), int64s(rows)


def penalty(rows):
    return int64s(rows, V // 64), floats(rows)


def call_linear_topk(dtype, rows, k):
    x, weight, bias = empty(rows, D, dtype=dtype), empty(V, D, dtype=dtype), empty(V, dtype=dtype)
    linear_topk(x, weight, k, bias, *noise(rows), int64s(V), 0, None, None)
    linear_topk(x, weight, k, None, *noise(rows), None, 0, *penalty(rows))


def call_logits_topk(dtype, k):
    linear_topk(empty(256, D), empty(V, D), k, None, *noise(256), None, 0, *penalty(256))


def call_sample_logits(dtype, width):
    cuts = int32s(64), floats(64), floats(64)
    sample_logits(empty(64, V), None, *noise(64), *cuts, *penalty(64))
    listed = empty(64, 64), int64s(64, 64)
    sample_logits(*listed, *noise(64), *cuts, None, None)


def call_draft_blocks(dtype, batch):
    hidden, vectors = empty(batch, D, dtype=dtype), empty(5, D, dtype=dtype)
    draft_blocks(hidden, empty(5, D, D, dtype=dtype), vectors, hidden, vectors)


def call_fused_linear(dtype, rows, _):
    """Queries, keys and values; the gated half of an MLP; the other half, with a norm behind it."""
    x, norm = empty(rows, D, dtype=dtype), empty(D, dtype=dtype)
    weights = [empty(columns, D, dtype=dtype) for columns in (D, 1024, 1024)]
    biases = [empty(len(weight), dtype=dtype) for weight in weights]
    fused_linear(x, weights, biases, False, None, None, 0.0)
    fused_linear(x, [empty(14336, D, dtype=dtype)] * 2, [], True, None, None, 0.0)
    hidden, down = empty(rows, 14336, dtype=dtype), empty(D, 14336, dtype=dtype)
    fused_linear(hidden, [down], [], False, x, norm, 1e-5)


def call_tree_attention(dtype, rows, width, slots):
    """Contiguous, plain, with a softcap, or packed; paged, also with a window and packed."""
    batch, heads, group, nodes = 8, 8, 4, rows // 4
    q = empty(batch, nodes, heads * group, width)
    scales = None, None
    if dtype == torch.float8_e4m3fn:
        scales = floats(heads), floats(heads)
    elif dtype == torch.float32:
        q = q.float()
    tree = int32s(batch), int64s(batch, nodes, (nodes + 63) // 64)
    slots = slots * triton_aot.SMS[80] // (batch * heads)  # of a request, on the fewest SMs
    cache = empty(batch, slots, heads, width, dtype=dtype)
    pages = empty(2048, 16, heads, width, dtype=dtype)
    packed = q.flatten(0, 1), int64s(batch, nodes)
    contiguous = cache, cache, *tree, 0.1, None, 0
    tree_attention(q, *contiguous, 0.0, *scales, None)
    if dtype == torch.float32:
        return
    tree_attention(q, *contiguous, 30.0, *scales, None)
    tree_attention(packed[0], *contiguous, 0.0, *scales, packed[1])
    paged = pages, pages, *tree, 0.1, int32s(batch, slots // 16)
    tree_attention(q, *paged, 0, 0.0, *scales, None)
    tree_attention(packed[0], *paged, 1000, 0.0, *scales, packed[1])


CASES = [
    pytest.param(op, kind, capability, limits, per_sm, id=f"{op}-{kind}-sm{capability}-{index}")
    for (op, kind, capability), entries in tiles.TILES.items()
    for index, (limits, *_, per_sm) in enumerate(entries)
    if (kind, capability) != ("fp8", 80)  # Triton has no e4m3 below 8.9
]


@pytest.fixture(scope="module")
def compiled():
    """(kernel, capability) of what a test has looked at."""
    return set()


@pytest.fixture
def report(tabulate):
    """Called with the sizes a kernel was compiled for, the capability and its code."""

    def add(sizes, capability, code):
        kinds = ", ".join(f"{count} {kind}" for kind, count in code.instructions.items() if count)
        size = code.registers, code.shared, code.stack
        tabulate("Triton kernels", code.kernel, sizes, f"sm_{capability}", *size, kinds)

    return add


def assert_products_are_awaited(ttgir):
    """On sm_100, which nothing emulates: no product is the last before somebody reads one."""
    last = None
    for place in re.findall("tc_gen5_mma|wait_barrier|tmem_load", ttgir):
        assert (last, place) != ("tc_gen5_mma", "tmem_load")
        last = place


@pytest.mark.parametrize("op, kind, capability, limits, per_sm", CASES)
def test_compiles_well(op, kind, capability, limits, per_sm, monkeypatch, compiled, report):
    """No spills (or of eight numbers in float32), tensor cores and loads ahead of them in bf16;
    never too much shared memory, and registers for as many programs as the table says."""
    sizes = [min(pair) for pair in zip(limits, LARGEST.get(op, limits), strict=True)]
    if op == "fused_linear":
        sizes[0] = min(sizes[0], tiles.CROSSOVER["fused_linears", kind, capability])
    call = globals()[f"call_{op}"]
    kernels = triton_aot.launches(monkeypatch, capability, lambda: call(DTYPES[kind], *sizes))
    assert kernels
    for kernel in kernels:
        if (kernel.hash, capability) in compiled:
            continue
        compiled.add((kernel.hash, capability))
        code = triton_aot.code_of(kernel)
        report(f"{kind} {sizes}", capability, code)
        assert code.shared <= triton_aot.SHARED_MEMORY[capability], code
        own = code.kernel == f"_{op}_kernel"
        threads = 32 * kernel.metadata.num_warps * per_sm
        assert not own or code.registers * threads <= config.REGISTERS, code
        few_spills = kind == "single" and op in ("linear_topk", "tree_attention")
        assert code.stack <= (32 if few_spills else 0), code
        if own and kind != "single":  # float32 products run on the plain cores
            used = {unit for unit in MATRIX_UNIT.values() if code.instructions[unit]}
            few = triton_aot.constant(kernel, "BLOCK_V") in (16, 32)  # below the 64 rows of a wgmma
            assert used == {"mma" if few else MATRIX_UNIT[capability]}, code
            assert code.instructions["cp.async 16"] > 0, code
            assert_products_are_awaited(kernel.asm["ttgir"])


@pytest.mark.parametrize("capability", MATRIX_UNIT)
@pytest.mark.parametrize("width", [2, 128, 512])
def test_rotary_append_compiles_well(width, capability, monkeypatch, report):
    qkv, caches = empty(1, 32, 48, width), [empty(1, 1024, 8, width)] * 2
    pages, angle, norm = [empty(64, 16, 8, width)] * 2, empty(1, 32, width), empty(width)
    tables, length, blocks = [empty(1024, width)] * 2, int32s(1), int32s(1, 64)

    def call():
        rotary_append(qkv, *tables, int64s(1, 32), None, None, 0.0, *caches, length, None, None)
        rotary_append(qkv, angle, angle, None, norm, norm, 1e-6, *pages, length, blocks, None)
        rotary_append(
            qkv[0], *tables, int64s(32), None, None, 0.0, *caches, length, None, int64s(1, 48)
        )

    for kernel in triton_aot.launches(monkeypatch, capability, call):
        code = triton_aot.code_of(kernel)
        report(f"E {width}", capability, code)
        assert code.stack == 0, code


@pytest.mark.parametrize(
    ("width", "inner", "nodes", "count"),
    [
        (4096, 14336, 1, 9), (4096, 14336, 16, 9), (4096, 14336, 64, 9),
        (2048, 8192, 1, 9), (2048, 8192, 16, 9), (2048, 8192, 64, 10),
    ],
)  # fmt: skip
def test_kernels_of_a_layer(width, inner, nodes, count, monkeypatch):
    """What a layer of Llama-3-8B or of a 1.2B model launches on an H200, see README."""
    names = "fused_linear", "rotary_append", "tree_attention"
    kernels = {name: SimpleNamespace(default=globals()[name]) for name in names}
    monkeypatch.setattr(fused_pass, "ops", SimpleNamespace(**kernels))
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_attention_heads=32, num_key_value_heads=8
    )
    with torch.device("meta"):
        block = LlamaDecoderLayer(config, 0).bfloat16()
        layer = fused_pass.FusedLayer(block, block.input_layernorm)
    cache = KVCache.contiguous(1, 1, 8192, 8, width // 32, torch.bfloat16, "meta")
    angles = [empty(8192, width // 32)] * 2
    arguments = (
        angles, int64s(1, nodes), cache.keys[0], cache.values[0], cache, int64s(1, nodes, 1), None,
        None,
    )  # fmt: skip
    kernels = triton_aot.launches(
        monkeypatch, 90, lambda: layer(*[empty(nodes, width)] * 2, *arguments)
    )
    assert len(kernels) == count, [kernel.name for kernel in kernels]


def test_tune_compiles_ahead(monkeypatch, tmp_path):
    """A process without a GPU fills the cache; the next one finds everything there."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    key = "fused_linear", "half", 90
    entry = tiles.TILES[key][0]
    counts = []
    setting = GPUTarget("cuda", 90, 32), config.Device(90, triton_aot.SMS[90])
    for _ in range(2):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, tune.compile_only, setting) as compilers:
            compilers.submit(tune.compile_entry, key, 0, entry).result()
        counts.append(len(list(tmp_path.rglob("*.cubin"))))
    assert counts[0] == counts[1] > 0


def test_tune_walks_downhill(monkeypatch, capsys):
    """To four warps, five stages and blocks of 256, from eight, three and 1024."""
    key = "sample_logits", "single", 90
    table = {key: [((tiles.ANY,), {"BLOCK_V": 1024}, 8, 3, 1)]}
    monkeypatch.setattr(config, "TILES", table)

    def duration(call, expected=None):
        _, blocks, warps, stages, _ = table[key][0]
        return 100.0 + abs(warps - 4) + 2 * abs(stages - 5) + abs(blocks["BLOCK_V"] - 256) / 64

    monkeypatch.setattr(tune, "measure", duration)
    monkeypatch.setattr(tune, "case", lambda *_: lambda: None)
    compilers = SimpleNamespace(submit=lambda *_: SimpleNamespace(result=lambda: None))
    tune.descend(key, 0, time.time() + 60, compilers)
    assert table[key] == [((tiles.ANY,), {"BLOCK_V": 256}, 4, 5, 1)]
    assert "120.0 -> 100.0 us" in capsys.readouterr().out


def test_tune_writes_the_table_as_it_is():
    text = tune.render(tiles.TILES, tiles.CROSSOVER, tiles.MEASURED)
    assert text == Path(tiles.__file__).read_text()
