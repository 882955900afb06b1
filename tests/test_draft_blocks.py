import math

import pytest
import torch
from dtypes import DTYPES, EPSILON
from tolerance import assert_close

import dspark_kernels
from dspark_kernels.reference.draft_blocks import draft_blocks as reference


def inputs(
    B=2, H=3, D=20, F=None, scaled=False, dtype=torch.float32, seed=0, device="cpu", spread=1.0
):
    """Arguments of the op by name; F is the width of `features`, None for reading `hidden`."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=g) * scale).to(dtype).to(device)

    width = D if F is None else F
    return {
        "hidden": normal(B, D),
        "weight": normal(H, D, width, scale=spread * max(width, 1) ** -0.5),
        "bias": normal(H, D),
        "features": None if F is None else normal(B, F),
        "residual_scale": normal(H, D) if scaled else None,
    }


def check(arguments):
    """The public op against the float32 reference."""
    out = dspark_kernels.draft_blocks(**arguments)
    hidden = arguments["hidden"]
    heads, dim = arguments["bias"].shape
    assert out.shape == (len(hidden), heads, dim) and out.dtype == hidden.dtype
    expected = reference(*(None if t is None else t.float() for t in arguments.values()))
    rounded = 0.0 if hidden.dtype == torch.float32 else EPSILON[hidden.dtype] / 2
    assert_close(out, expected, expected * (1 + rounded))


@pytest.mark.parametrize("features", [None, 4])
@pytest.mark.parametrize("scaled", [False, True])
def test_definition_is_plain_loops(features, scaled):
    arguments = inputs(D=5, F=features, scaled=scaled)
    out = reference(*arguments.values())
    source = arguments["hidden" if features is None else "features"]
    for b, head, i in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)):
        update = float(source[b].double() @ arguments["weight"][head, i].double())
        update += float(arguments["bias"][head, i])
        scale = float(arguments["residual_scale"][head, i]) if scaled else 1.0
        expected = scale * float(arguments["hidden"][b, i]) + update / (1 + math.exp(-update))
        assert math.isclose(out[b, head, i], expected, rel_tol=1e-5, abs_tol=1e-6)


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("B", "H", "D", "F"),
    [
        (1, 1, 1, None),
        (1, 5, 64, None),
        (2, 3, 33, 50),
        (8, 1, 100, 7),
        (9, 4, 48, None),
        (33, 2, 31, 65),
        (65, 2, 20, None),
        (5, 2, 512, None),
        (20, 2, 64, 512),
    ],
)
def test_shapes(B, H, D, F, scaled, dtype, device):
    check(inputs(B, H, D, F, scaled, dtype, device=device))


@pytest.mark.backend
def test_large_updates_saturate(device):
    check(inputs(spread=200.0, device=device))


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_views_and_unused_memory(dtype, device):
    views = inputs(3, 2, 40, 24, True, dtype, device=device)
    for name in ("hidden", "features"):
        rows, columns = views[name].shape
        poisoned = torch.full((rows, columns + 9), math.nan, dtype=dtype, device=device)
        poisoned[:, 5 : 5 + columns] = views[name]
        views[name] = poisoned[:, 5 : 5 + columns]
    views["weight"] = views["weight"].transpose(1, 2).contiguous().transpose(1, 2)
    views["bias"] = views["bias"].T.contiguous().T
    views["residual_scale"] = views["residual_scale"].repeat_interleave(2, 1)[:, ::2]
    check(views)


@pytest.mark.backend
@pytest.mark.parametrize(("batch", "heads"), [(0, 3), (2, 0)])
def test_empty(batch, heads, device):
    assert dspark_kernels.draft_blocks(**inputs(batch, heads, device=device)).shape == (
        batch, heads, 20,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(20)}, ValueError, r"hidden must have shape \[B, D\], got \[20\]"),
        ({"hidden": torch.zeros(2, 20).int()}, TypeError, "hidden must have dtype float32"),
        ({"hidden": torch.zeros(2, 0)}, ValueError, "hidden must have at least one column"),
        ({"weight": torch.zeros(3, 20, 19)}, ValueError, "weight must have shape .* with D=20"),
        ({"weight": torch.zeros(3, 20, 20).half()}, TypeError, "weight must have dtype float32"),
        ({"bias": torch.zeros(2, 20)}, ValueError, "bias must have shape .* with H=3"),
        ({"bias": torch.zeros(3, 20).half()}, TypeError, "bias must have dtype float32 like"),
        ({"features": torch.zeros(1, 20)}, ValueError, "features must have shape .* with B=2"),
        ({"features": torch.zeros(2, 20).half()}, TypeError, "features must have dtype float32"),
        ({"residual_scale": torch.zeros(3)}, ValueError, "residual_scale must have shape"),
        ({"residual_scale": torch.ones(3, 20).half()}, TypeError, "residual_scale must have dtype"),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=f"draft_blocks: {message}"):
        dspark_kernels.draft_blocks(**inputs() | change)


@pytest.mark.parametrize("features", [None, 12])
def test_opcheck(features, device):
    arguments = inputs(F=features, scaled=True, device=device)
    torch.library.opcheck(torch.ops.dspark.draft_blocks.default, tuple(arguments.values()))
