import math

import pytest
import torch
import torch.nn.functional as F
from dtypes import DTYPES, EPSILON
from tolerance import assert_close

import dspark_kernels
from dspark_kernels.ops import values_on_trust
from dspark_kernels.reference.rotary_append import rotary_append as reference


def inputs(
    B=2, N=3, Hq=4, Hkv=2, E=16, capacity=20, lengths=(5, 0), block_size=None, normed=False,
    dtype=torch.float32, seed=0, device="cpu",
):  # fmt: skip
    """Arguments of the op in the order of its schema; paged if there is a block size."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g).to(device, dtype)

    angle = torch.randn(B, N, E, generator=g)
    rows, slots, table = B, capacity, None
    if block_size is not None:
        per_request = -(-capacity // block_size)
        rows, slots = B * per_request + 1, block_size
        table = torch.randperm(rows, generator=g)[:-1].view(B, per_request).int().to(device)
    return {
        "qkv": normal(B, N, Hq + 2 * Hkv, E),
        "cos": angle.cos().to(device, dtype),
        "sin": angle.sin().to(device, dtype),
        "positions": None,
        "q_norm_weight": normal(E) if normed else None,
        "k_norm_weight": normal(E) if normed else None,
        "eps": 1e-5,
        "k_cache": normal(rows, slots, Hkv, E),
        "v_cache": normal(rows, slots, Hkv, E),
        "cache_seqlens": torch.tensor(lengths, dtype=torch.int32, device=device),
        "block_table": table,
    }


def call(a):
    return dspark_kernels.rotary_append(
        a["qkv"], a["cos"], a["sin"], a["k_cache"], a["v_cache"], a["cache_seqlens"],
        positions=a["positions"], block_table=a["block_table"], q_norm_weight=a["q_norm_weight"],
        k_norm_weight=a["k_norm_weight"], eps=a["eps"], rows=a.get("rows"),
    )  # fmt: skip


def check(arguments):
    """The op against the float32 reference: queries, and both caches everywhere."""
    dtype = arguments["qkv"].dtype
    expected = {
        name: value.float() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    for name in ("k_cache", "v_cache"):
        expected[name] = arguments[name].float().clone()
    expected_q = reference(*expected.values())
    before = arguments["cache_seqlens"].clone()
    q = call(arguments)
    assert q.dtype == dtype and torch.equal(arguments["cache_seqlens"], before)
    rounded = 0.0 if dtype == torch.float32 else EPSILON[dtype] / 2
    assert_close(q, expected_q, expected_q * (1 + rounded))
    assert_close(arguments["k_cache"], expected["k_cache"], expected["k_cache"] * (1 + rounded))
    assert torch.equal(arguments["v_cache"].float(), expected["v_cache"])


def test_definition_is_a_rotation_of_pairs():
    arguments = inputs(1, 2, 3, 1, 8, lengths=(4,), normed=True)
    angle = torch.randn(1, 2, 4)
    arguments["cos"], arguments["sin"] = angle.cos().repeat(1, 1, 2), angle.sin().repeat(1, 1, 2)
    q = reference(*arguments.values())
    heads = F.rms_norm(arguments["qkv"][:, :, :3], (8,), arguments["q_norm_weight"], 1e-5)
    pairs = torch.complex(heads[..., :4], heads[..., 4:])
    turned = pairs * torch.polar(torch.ones_like(angle), angle)[:, :, None]
    torch.testing.assert_close(q, torch.cat((turned.real, turned.imag), dim=-1))
    assert torch.equal(arguments["v_cache"][0, 4:6], arguments["qkv"][0, :, 4:])


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize(
    ("B", "N", "Hq", "Hkv", "E"),
    [(1, 1, 1, 1, 2), (2, 3, 4, 2, 16), (1, 16, 9, 3, 64), (2, 7, 4, 4, 6), (2, 40, 2, 1, 128)],
)
def test_shapes(B, N, Hq, Hkv, E, block_size, normed, dtype, device):
    lengths = (5, 0)[:B]
    check(inputs(B, N, Hq, Hkv, E, 48, lengths, block_size, normed, dtype, device=device))


@pytest.mark.backend
@pytest.mark.parametrize("block_size", [None, 4])
def test_nothing_is_written_beyond_the_cache(block_size, device):
    arguments = inputs(2, 6, capacity=8, lengths=(5, 30), block_size=block_size, device=device)
    if block_size is not None:
        arguments["block_table"][0, 1] = -1
        arguments["block_table"][1, 0] = len(arguments["k_cache"])
    check(arguments)


def packed(arguments):
    """Some of the tokens, in rows of another order."""
    batch, nodes = arguments["qkv"].shape[:2]
    g = torch.Generator().manual_seed(0)
    slots = torch.randperm(batch * nodes, generator=g)[: -(-batch * nodes // 2)]
    rows = torch.full((batch * nodes,), -1).index_copy_(0, slots, torch.arange(len(slots)))
    parts = {name: arguments[name].flatten(0, 1)[slots] for name in ("qkv", "cos", "sin")}
    return arguments | parts | {"rows": rows.view(batch, nodes).to(arguments["qkv"].device)}


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [None, 4])
def test_packed_rows(block_size, dtype, device):
    arguments = inputs(3, 7, lengths=(5, 0, 17), block_size=block_size, dtype=dtype, device=device)
    check(packed(arguments))


def with_tables(arguments):
    """The same angles in tables of more positions, in another order."""
    tokens, width = arguments["cos"].shape[:-1], arguments["cos"].shape[-1]
    g = torch.Generator().manual_seed(0)
    positions = torch.randperm(3 * tokens.numel(), generator=g)[: tokens.numel()]
    tables = {}
    for name in ("cos", "sin"):
        angles = arguments[name].reshape(-1, width)
        tables[name] = angles.new_full((3 * len(angles), width), math.nan)
        tables[name][positions.to(angles.device)] = angles
    return tables | {"positions": positions.view(tokens).to(arguments["cos"].device)}


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_rows", [False, True])
def test_positions_are_rows_of_tables(in_rows, dtype, device):
    expected = inputs(3, 7, lengths=(5, 0, 17), normed=True, dtype=dtype, device=device)
    expected = packed(expected) if in_rows else expected
    caches = {name: expected[name].clone() for name in ("k_cache", "v_cache")}
    arguments = expected | with_tables(expected) | caches
    assert torch.equal(call(arguments), call(expected))
    for name, cache in caches.items():
        assert torch.equal(cache, expected[name])


@pytest.mark.backend
def test_positions_outside_the_tables_are_read_as_the_nearest(device):
    arguments = inputs(1, 2, lengths=(0,), device=device)
    arguments |= {name: arguments[name][0] for name in ("cos", "sin")}
    places = [torch.tensor([place], device=device) for place in ([-(2**40), 2**40], [0, 1])]
    with values_on_trust():
        outside, nearest = (call(arguments | {"positions": place}) for place in places)
    assert torch.equal(outside, nearest)


@pytest.mark.backend
def test_views(device):
    arguments = inputs(device=device)
    storage = torch.zeros(2, 20, 3, 2, 2, 16, device=device)
    arguments["k_cache"], arguments["v_cache"] = storage[:, :, 1, 0], storage[:, :, 1, 1]
    arguments["qkv"] = arguments["qkv"].transpose(1, 2).contiguous().transpose(1, 2)
    check(arguments)
    assert storage[:, :, 0].eq(0).all() and storage[:, :, 2].eq(0).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"qkv": torch.zeros(2, 3, 8)}, ValueError, "qkv must have shape"),
        ({"qkv": torch.zeros(2, 3, 8, 15)}, ValueError, "cos must have shape .* with E=15"),
        (
            {"qkv": torch.zeros(2, 3, 8, 15)}
            | dict.fromkeys(("cos", "sin"), torch.zeros(2, 3, 15)),
            ValueError, "qkv must have an even head dimension up to 512, got 15",
        ),
        ({"qkv": torch.zeros(2, 3, 4, 16)}, ValueError, "qkv must have more than 4 heads, got 4"),
        ({"cos": torch.zeros(2, 4, 16)}, ValueError, "cos must have shape .* with N=3"),
        ({"positions": torch.zeros(2, 3).long()}, ValueError, r"cos must have shape \[L, E\]"),
        (
            dict.fromkeys(("cos", "sin"), torch.zeros(9, 16))
            | {"positions": torch.full((2, 3), 9)},
            ValueError, "positions must hold values from 0 to 8, got 9",
        ),
        (
            dict.fromkeys(("cos", "sin"), torch.zeros(0, 16))
            | {"positions": torch.zeros(2, 3).long()},
            ValueError, "cos must have a row per position, got 0",
        ),
        ({"sin": torch.zeros(2, 3, 16).half()}, TypeError, "sin must have dtype float32 like"),
        ({"k_cache": torch.zeros(3, 20, 2, 16)}, ValueError, "k_cache must have shape .* B=2"),
        ({"v_cache": torch.zeros(2, 19, 2, 16)}, ValueError, "v_cache must have shape .* S=20"),
        ({"v_cache": torch.zeros(2, 20, 16, 2).transpose(2, 3)}, ValueError, "v_cache must have a"),
        ({"cache_seqlens": torch.zeros(2)}, TypeError, "cache_seqlens must have dtype int32"),
        ({"cache_seqlens": torch.tensor([0, -1]).int()}, ValueError, "cache_seqlens must hold"),
        ({"block_table": torch.zeros(3, 2).int()}, ValueError, "block_table must have shape"),
        ({"eps": float("nan")}, ValueError, "eps must be a number >= 0, got nan"),
        ({"k_norm_weight": torch.zeros(15)}, ValueError, "k_norm_weight must .* with E=16"),
        ({"rows": torch.zeros(2, 3).long()}, ValueError, r"qkv must have shape \[T, heads, E\]"),
        (
            packed(inputs()) | {"rows": torch.full((2, 3), -2)},
            ValueError,
            "rows must hold values from -1 to 2, got -2",
        ),
    ],
)  # fmt: skip
def test_errors(change, error, message):
    with pytest.raises(error, match=f"rotary_append: {message}"):
        call(inputs() | change)


@pytest.mark.parametrize("in_rows", [False, True])
@pytest.mark.parametrize("block_size", [None, 4])
def test_opcheck(block_size, in_rows, device):
    arguments = inputs(block_size=block_size, normed=True, device=device)
    arguments = packed(arguments) if in_rows else arguments | {"rows": None}
    arguments |= with_tables(arguments) if block_size else {}
    torch.library.opcheck(torch.ops.dspark.rotary_append.default, tuple(arguments.values()))
