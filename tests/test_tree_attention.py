import math

import pytest
import torch
from dtypes import DTYPES, EPSILON
from tolerance import assert_close
from torch._subclasses.fake_tensor import FakeTensorMode
from trees import random_tree

import dspark_kernels
from dspark_kernels._library import INTERPRETER
from dspark_kernels.reference.tree_attention import tree_attention as reference
from dspark_kernels.reference.tree_attention import unpack_ancestors

FP8 = torch.float8_e4m3fn


def inputs(
    B=2, N=7, Hq=4, Hkv=2, E=16, S=60, dtype=torch.float32, seqlens=None, seed=0, device="cpu"
):
    """Arguments of the op by name; slots behind the tree hold NaN."""
    g = torch.Generator().manual_seed(seed)
    if seqlens is None:
        seqlens = torch.randint(0, S - N + 1, (B,), generator=g).tolist()
    k_cache, v_cache = (torch.full((B, S, Hkv, E), math.nan) for _ in range(2))
    for b, seqlen in enumerate(seqlens):
        live = (seqlen + N, Hkv, E)
        k_cache[b, : seqlen + N] = torch.randn(live, generator=g)
        v_cache[b, : seqlen + N] = torch.randn(live, generator=g)
    arguments = {
        "q": torch.randn(B, N, Hq, E, generator=g).to(dtype),
        "k_cache": k_cache.to(dtype),
        "v_cache": v_cache.to(dtype),
        "cache_seqlens": torch.tensor(seqlens, dtype=torch.int32).view(B),
        "ancestors": random_tree(B, N, seed=seed).ancestors,
    }
    return {name: tensor.to(device) for name, tensor in arguments.items()}


def paged(arguments, block_size, seed=0):
    """The same caches in shuffled blocks; unused blocks hold NaN."""
    g = torch.Generator().manual_seed(seed)
    result = dict(arguments)
    batch, slots = arguments["k_cache"].shape[:2]
    blocks = -(-slots // block_size)
    table = torch.randperm(batch * blocks + 2, generator=g)[: batch * blocks].view(batch, blocks)
    table = table.to(arguments["q"].device)
    for name in ("k_cache", "v_cache"):
        cache = arguments[name]
        shape = (batch, blocks * block_size, *cache.shape[2:])
        rows = torch.full(shape, math.nan, device=cache.device).to(cache.dtype)
        rows[:, :slots] = cache
        pages = rows.new_empty(batch * blocks + 2, block_size, *cache.shape[2:])
        pages[:] = torch.full((), math.nan)
        pages[table] = rows.view(batch, blocks, block_size, *cache.shape[2:])
        result[name] = pages
    return result | {"block_table": table.int()}


def positional(arguments):
    """The arguments in the order of the schema."""
    a = {"block_table": None, "k_scale": None, "v_scale": None, "softcap": 0.0} | arguments
    scale = a.get("scale") or a["q"].shape[-1] ** -0.5
    return (
        *(a[name] for name in ("q", "k_cache", "v_cache", "cache_seqlens", "ancestors")),
        scale, a["block_table"], a.get("window") or 0, a["softcap"], a["k_scale"], a["v_scale"],
        a.get("rows"),
    )  # fmt: skip


def in_float32(arguments):
    return {
        name: tensor.float() if name in ("q", "k_cache", "v_cache") else tensor
        for name, tensor in arguments.items()
    }


def check(arguments):
    """The public op against the float32 reference."""
    out, lse = dspark_kernels.tree_attention(**arguments, return_lse=True)
    expected, expected_lse = reference(*positional(in_float32(arguments)))
    dtype = arguments["q"].dtype
    assert out.dtype == dtype and out.shape == arguments["q"].shape and lse.dtype == torch.float32
    # the weights and the output are rounded to the dtype
    error = EPSILON[dtype] * (expected.abs() + 1) if dtype != torch.float32 else 0.0
    assert_close(out, expected, expected + error)
    assert_close(lse, expected_lse, expected_lse)


# --- the definition -----------------------------------------------------------------------------


def oracle(q, k, v, seqlens, ancestors, scale, table, window, softcap, k_scale, v_scale, rows):
    """One query, one slot at a time, in Python floats."""
    (batch, nodes), heads = ancestors.shape[:2], q.shape[-2]
    out, lse = torch.zeros(q.shape), torch.full(q.shape[:-1], -math.inf)

    def related(b, node, other):
        return (int(ancestors[b, node, other // 64]) >> (other % 64)) & 1

    def place(b, node, head):
        return (b, node, head) if rows is None else (int(rows[b, node]), head)

    for b in range(batch):
        depth = [sum(related(b, i, j) for j in range(nodes)) - 1 for i in range(nodes)]
        seqlen = int(seqlens[b])
        slots = k.shape[1] * (1 if table is None else table.shape[1])
        for i, h in ((i, h) for i in range(nodes) for h in range(heads)):
            if rows is not None and rows[b, i] < 0:
                continue
            kv, scores, values = h * k.shape[2] // heads, [], []
            for slot in range(min(seqlen + nodes, slots)):
                block, row = b, slot
                if table is not None:
                    block, row = int(table[b, slot // k.shape[1]]), slot % k.shape[1]
                if not 0 <= block < len(k):
                    continue
                position = slot if slot < seqlen else seqlen + depth[slot - seqlen]
                if slot >= seqlen and not related(b, i, slot - seqlen):
                    continue
                if window and position <= seqlen + depth[i] - window:
                    continue
                score = scale * float(q[place(b, i, h)].double() @ k[block, row, kv].double())
                score *= 1 if k_scale is None else float(k_scale[kv])
                scores.append(softcap * math.tanh(score / softcap) if softcap else score)
                values.append(v[block, row, kv].double() * (1 if v_scale is None else v_scale[kv]))
            if scores:
                weights = torch.tensor(scores, dtype=torch.float64)
                out[place(b, i, h)] = weights.softmax(0) @ torch.stack(values)
                lse[place(b, i, h)] = weights.logsumexp(0)
    return out, lse


VARIANTS = {
    "plain": {},
    "window": {"window": 5},
    "window of one": {"window": 1},
    "softcap": {"softcap": 3.0},
    "scale": {"scale": 0.7},
    "negative scale": {"scale": -0.3},
    "scales": {"k_scale": torch.tensor([0.5, 2.0]), "v_scale": torch.tensor([3.0, 0.1])},
}


@pytest.mark.parametrize("in_rows", [False, True])
@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_definition_is_plain_loops(variant, block_size, in_rows):
    arguments = inputs(N=5, E=3, S=14, seqlens=[0, 9]) | VARIANTS[variant]
    if in_rows:
        arguments = packed(arguments)
    if block_size:
        arguments = paged(arguments, block_size)
        arguments["block_table"][1, :2] = torch.tensor([-1, 99])
    for actual, expected in zip(
        reference(*positional(arguments)), oracle(*positional(arguments)), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


# --- backends -----------------------------------------------------------------------------------

SHAPES = [  # B, N, Hq, Hkv, E, S
    (1, 1, 1, 1, 64, 1),
    (1, 1, 6, 2, 64, 70),
    (1, 2, 3, 1, 16, 50),
    (2, 7, 9, 3, 32, 101),
    (1, 33, 4, 2, 16, 97),
    (1, 64, 2, 1, 16, 64),
    (1, 65, 2, 2, 16, 100),
    (1, 128, 1, 1, 16, 140),
    (1, 64, 8, 2, 128, 900),
    (2, 33, 8, 2, 64, 700),
    (1, 40, 8, 2, 192, 300),
]


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, dtype, device):
    check(inputs(*shape, dtype=dtype, device=device))


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_256_nodes(dtype, device):
    check(inputs(1, 256, 2, 1, 16, 300, dtype=dtype, seqlens=[3], device=device))


@pytest.mark.backend
@pytest.mark.parametrize("head_dim", [1, 5, 40, 96, 128, 192])
def test_head_dims(head_dim, device):
    check(inputs(1, 3, 2, 1, head_dim, 40, dtype=DTYPES[-1], device=device))


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nodes", [1, 5])
def test_long_prefix(nodes, dtype, device):
    slots = 300 if INTERPRETER else 3000
    arguments = inputs(2, nodes, 4, 2, 32, slots, seqlens=[slots - nodes, 130], dtype=dtype)
    check({name: tensor.to(device) for name, tensor in arguments.items()})


@pytest.mark.backend
def test_equal_scores_over_a_long_prefix(device, fitting):
    """What a row has so far is rescaled at every tile: by exactly 1, or the errors add up."""
    slots = fitting(3_000, 100_000)
    arguments = inputs(1, 1, 16, 1, 16, slots, seqlens=[slots - 1], device=device) | {"scale": 1.0}
    arguments["k_cache"][:] = torch.eye(16, device=device)[0]
    scores = arguments["q"][..., 0].copy_(torch.linspace(-120.1, 119.7, 16))
    out, lse = dspark_kernels.tree_attention(**arguments, return_lse=True)
    torch.testing.assert_close(lse.double(), scores.double() + math.log(slots), rtol=0, atol=4e-5)
    mean = arguments["v_cache"][0, :, 0].double().mean(dim=0)
    torch.testing.assert_close(out.double(), mean.expand(out.shape), rtol=0, atol=1e-6)


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [None, 1, 16, 100])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant, block_size, dtype, device):
    arguments = inputs(2, 9, 4, 2, 16, 61, dtype=dtype, seed=1, device=device)
    change = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in VARIANTS[variant].items()
    }
    arguments |= change
    check(arguments if block_size is None else paged(arguments, block_size))


@pytest.mark.backend
@pytest.mark.parametrize("window", [2, 40, 500])
@pytest.mark.parametrize("block_size", [None, 16])
def test_window_over_many_slots(block_size, window, device):
    """What no node sees any more may hold anything, or have no block."""
    seqlens = [600, 77]
    arguments = inputs(2, 6, 2, 1, 16, 610, seqlens=seqlens, device=device) | {"window": window}
    gone = [max(seqlen - window + 1, 0) for seqlen in seqlens]
    for request, slots in enumerate(gone):
        arguments["k_cache"][request, :slots] = arguments["v_cache"][request, :slots] = math.nan
    if block_size is not None:
        arguments = paged(arguments, block_size)
        for request, slots in enumerate(gone):
            arguments["block_table"][request, : slots // block_size] = -1
    check(arguments)


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [None, 16])
def test_fp8_cache(block_size, dtype, device):
    arguments = inputs(2, 6, 4, 2, 32, 75, dtype=dtype, device=device)
    for name in ("k_cache", "v_cache"):
        arguments[name] = arguments[name].to(FP8)
    arguments["k_scale"] = torch.tensor([0.5, 2.0], device=device)
    arguments["v_scale"] = torch.tensor([1.5, 0.1], device=device)
    check(arguments if block_size is None else paged(arguments, block_size))


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [1, 16, 48, 256])
def test_long_paged_prefixes(block_size, dtype, device):
    """Blocks smaller and larger than a tile of slots, all there; then one is not."""
    arguments = inputs(2, 5, 4, 2, 32, 700, dtype=dtype, seqlens=[690, 300], device=device)
    arguments = paged(arguments, block_size)
    check(arguments)
    arguments["block_table"][0, 400 // block_size] = -1
    arguments["block_table"][1, 0] = len(arguments["k_cache"])
    check(arguments)


@pytest.mark.backend
def test_blocks_outside_the_cache_are_invisible(device):
    arguments = paged(inputs(2, 5, 2, 1, 16, 70, seqlens=[50, 60], device=device), 8)
    arguments["block_table"][0, 2] = -1
    arguments["block_table"][1, 1] = len(arguments["k_cache"])
    check(arguments)
    arguments["block_table"][1] = -1  # a request without a cache sees nothing
    out, lse = dspark_kernels.tree_attention(**arguments, return_lse=True)
    assert (out[1] == 0).all() and (lse[1] == -math.inf).all()
    assert torch.isfinite(out).all()


@pytest.mark.backend
def test_a_row_that_sees_nothing(device):
    arguments = inputs(1, 4, 2, 1, 16, 20, seqlens=[0], device=device)
    arguments["ancestors"][0, 2] = 0
    out, lse = dspark_kernels.tree_attention(**arguments, return_lse=True)
    assert (out[0, 2] == 0).all() and (lse[0, 2] == -math.inf).all()
    check(arguments)


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_do_not_overflow(dtype, device):
    arguments = inputs(dtype=dtype, device=device) | {"scale": 60.0}
    out, lse = dspark_kernels.tree_attention(**arguments, return_lse=True)
    expected, expected_lse = reference(*positional(in_float32(arguments)))
    assert torch.isfinite(out).all()
    torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=1e-3)


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_views(dtype, device):
    plain = inputs(2, 5, 4, 2, 24, 50, dtype=dtype, device=device)
    views = dict(plain)
    for name in ("q", "k_cache", "v_cache"):  # slices of one tensor with the heads outside
        tensor = plain[name].transpose(1, 2)
        wide = torch.full((*tensor.shape[:-1], 30), math.nan, device=device).to(dtype)
        wide[..., 3:27] = tensor
        views[name] = wide[..., 3:27].transpose(1, 2)
    check(views)
    views["q"] = plain["q"].transpose(2, 3).contiguous().transpose(2, 3)
    views["k_cache"] = plain["k_cache"].transpose(1, 3).contiguous().transpose(1, 3)
    check(views)


@pytest.mark.backend
def test_no_requests(device):
    out, lse = dspark_kernels.tree_attention(**inputs(B=0, device=device), return_lse=True)
    assert out.shape == (0, 7, 4, 16) and lse.shape == (0, 7, 4)


@pytest.mark.backend
@pytest.mark.parametrize("nodes", [7, 70])
def test_nodes_without_bits_leave_the_others_alone(nodes, device):
    """A few take part, none does in the last request."""
    arguments = inputs(B=4, N=nodes, S=140, device=device)
    out, lse = dspark_kernels.tree_attention(**arguments, return_lse=True)
    taking = torch.rand(4, nodes, generator=torch.Generator().manual_seed(1)) < 0.3
    taking[3] = False
    taking = taking.to(device)
    arguments["ancestors"] = arguments["ancestors"].masked_fill(~taking[:, :, None], 0)
    part, part_lse = dspark_kernels.tree_attention(**arguments, return_lse=True)
    assert_close(part[taking], out[taking], out[taking])
    assert_close(part_lse[taking], lse[taking], lse[taking])


def packed(arguments, seed=0):
    """The nodes of some subtrees with the root, in rows of any order; other slots hold NaN."""
    g = torch.Generator().manual_seed(seed)
    batch, nodes, *heads = arguments["q"].shape
    related = unpack_ancestors(arguments["ancestors"].cpu(), nodes)
    left_out = (torch.rand(batch, nodes, generator=g) < 0.3) & (torch.arange(nodes) > 0)
    taking = ~(related & left_out[:, None]).any(dim=2)  # neither they nor an ancestor
    count = int(taking.sum())
    rows = torch.full((batch, nodes), -1)
    rows[taking] = torch.randperm(count, generator=g)
    place = torch.empty(count, dtype=torch.long)
    place[rows[taking]] = taking.flatten().nonzero()[:, 0]
    result = arguments | {"rows": rows.to(arguments["q"].device)}
    result["q"] = arguments["q"].view(batch * nodes, *heads)[place.to(arguments["q"].device)]
    for name in ("k_cache", "v_cache"):
        result[name] = arguments[name].clone()
        for b, seqlen in enumerate(arguments["cache_seqlens"].tolist()):
            result[name][b, seqlen : seqlen + nodes][~taking[b]] = math.nan
    return result


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [None, 16])
@pytest.mark.parametrize(("nodes", "seqlen"), [(7, 600), (70, 100)])
def test_packed_rows(nodes, seqlen, block_size, dtype, device):
    shape = {"B": 3, "N": nodes, "S": seqlen + 100, "seqlens": [0, seqlen, 30]}
    dense = inputs(**shape, dtype=dtype, device=device)
    arguments = packed(dense)
    check(arguments if block_size is None else paged(arguments, block_size))
    all_out, all_lse = dspark_kernels.tree_attention(**dense, return_lse=True)
    out, lse = dspark_kernels.tree_attention(**arguments, return_lse=True)
    rows = arguments["rows"]
    assert_close(out[rows[rows >= 0]], all_out[rows >= 0], all_out[rows >= 0])
    assert_close(lse[rows[rows >= 0]], all_lse[rows >= 0], all_lse[rows >= 0])


@pytest.mark.backend
def test_a_request_does_not_depend_on_the_others(device):
    arguments = inputs(3, 4, 2, 1, 16, 700, seqlens=[690, 3, 200], device=device)
    alone = {name: tensor[:1] for name, tensor in arguments.items()}
    batch = dspark_kernels.tree_attention(**arguments)
    torch.testing.assert_close(
        batch[:1], dspark_kernels.tree_attention(**alone), rtol=1e-6, atol=1e-6
    )


# --- errors and registration --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.zeros(2, 7, 4)}, ValueError, r"q must have shape \[B, N, Hq, E\]"),
        ({"q": torch.zeros(2, 7, 4, 16).double()}, TypeError, "q must have dtype float32"),
        ({"q": torch.zeros(2, 0, 4, 16)}, ValueError, r"q must have 1 to 256 nodes \(N\), got N=0"),
        ({"q": torch.zeros(2, 257, 4, 16)}, ValueError, "q must have 1 to 256 nodes"),
        ({"q": torch.zeros(2, 7, 4, 257)}, ValueError, "q must have head dimensions from 1 to 256"),
        ({"q": torch.zeros(2, 7, 4, 0)}, ValueError, "q must have head dimensions from 1 to 256"),
        ({"scale": float("nan")}, ValueError, "scale must be a number, got nan"),
        ({"scale": "x"}, TypeError, "scale must be a number, got 'x'"),
        ({"softcap": float("nan")}, ValueError, "softcap must be a number >= 0, got nan"),
        ({"k_cache": torch.zeros(2, 60, 2, 8)}, ValueError, "k_cache must have shape .* E=16"),
        (
            {"k_cache": torch.zeros(2, 60, 2, 16).half()},
            TypeError,
            "k_cache must have dtype float32",
        ),
        (
            {"v_cache": torch.zeros(2, 60, 2, 16).to(FP8)},
            TypeError,
            "v_cache must have dtype float32 like k",
        ),
        ({"v_cache": torch.zeros(2, 61, 2, 16)}, ValueError, "v_cache must have shape .* S=60"),
        ({"q": torch.zeros(2, 7, 3, 16)}, ValueError, "Hkv dividing Hq=3, got Hkv=2"),
        ({"cache_seqlens": torch.zeros(2)}, TypeError, "cache_seqlens must have dtype int32"),
        ({"cache_seqlens": torch.tensor([0, 54]).int()}, ValueError, "values from 0 to 53, got 54"),
        ({"cache_seqlens": torch.tensor([0, -1]).int()}, ValueError, "values from 0 to 53, got -1"),
        ({"ancestors": torch.zeros(2, 7, 2).long()}, ValueError, "ancestors must have shape"),
        ({"ancestors": torch.zeros(2, 7, 1).int()}, TypeError, "ancestors must have dtype int64"),
        ({"block_table": torch.zeros(3, 1).int()}, ValueError, "block_table must have shape"),
        ({"block_table": torch.zeros(2, 1)}, TypeError, "block_table must have dtype int32"),
        ({"window": 0}, ValueError, "window must be >= 1, got 0"),
        ({"window": 2.5}, TypeError, "window must be an int >= 1, got 2.5"),
        ({"softcap": -1.0}, ValueError, "softcap must be a number >= 0, got -1.0"),
        ({"k_scale": torch.ones(3)}, ValueError, r"k_scale must have shape \[Hkv\] with Hkv=2"),
        ({"v_scale": torch.ones(2).half()}, TypeError, "v_scale must have dtype float32"),
        ({"rows": torch.zeros(2, 7).long()}, ValueError, r"q must have shape \[T, Hq, E\], got"),
        ({"q": torch.zeros(9, 4, 16), "rows": torch.zeros(2, 7)}, TypeError, "rows must have dt"),
        (
            {"q": torch.zeros(9, 4, 16), "rows": torch.full((2, 7), 9)},
            ValueError,
            "rows must hold values from -1 to 8, got 9",
        ),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=f"tree_attention: .*{message}"):
        dspark_kernels.tree_attention(**inputs() | change)


def test_error_more_nodes_than_slots():
    small = inputs(N=7, S=7, seqlens=[0, 0])
    for name in ("k_cache", "v_cache"):
        small[name] = small[name][:, :6]
    with pytest.raises(ValueError, match="k_cache must hold N=7 nodes per request, got 6 slots"):
        dspark_kernels.tree_attention(**small)


def test_fp8_needs_a_gpu_that_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with FakeTensorMode():
        arguments = {
            "q": torch.empty(1, 4, 2, 16, device="cuda"),
            "k_cache": torch.empty(1, 9, 1, 16, dtype=FP8, device="cuda"),
            "v_cache": torch.empty(1, 9, 1, 16, dtype=FP8, device="cuda"),
            "cache_seqlens": torch.zeros(1, dtype=torch.int32, device="cuda"),
            "ancestors": torch.ones(1, 4, 1, dtype=torch.int64, device="cuda"),
        }
        with pytest.raises(ValueError, match=r"k_cache must be on a GPU .* 8\.9 .*, got \(8, 6\)"):
            dspark_kernels.tree_attention(**arguments)


@pytest.mark.parametrize("in_rows", [False, True])
@pytest.mark.parametrize("block_size", [None, 8])
def test_opcheck(block_size, in_rows, device):
    arguments = inputs(seqlens=[53, 53], device=device)
    if in_rows:
        arguments = packed(arguments)
    if block_size:
        arguments = paged(arguments, block_size)
    for name in ("k_cache", "v_cache"):  # opcheck compares them: no NaN
        arguments[name].nan_to_num_()
    torch.library.opcheck(torch.ops.dspark.tree_attention.default, positional(arguments))
