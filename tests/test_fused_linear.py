import math

import pytest
import torch
import torch.nn.functional as F
from dtypes import DTYPES, EPSILON
from tolerance import assert_close

import dspark_kernels
from dspark_kernels._library import INTERPRETER, backend_of
from dspark_kernels.reference.fused_linear import fused_linear as reference


def inputs(
    M=3, D=20, columns=(24,), biased=False, gated=False, residual=False, normed=False,
    dtype=torch.float32, seed=0, device="cpu",
):  # fmt: skip
    """Arguments of the op by name."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=g) * scale).to(dtype).to(device)

    width = columns[0] if gated else sum(columns)
    return {
        "x": normal(M, D),
        "weights": [normal(n, D, scale=max(D, 1) ** -0.5) for n in columns],
        "biases": [normal(n) for n in columns] if biased else [],
        "gated": gated,
        "residual": normal(M, width) if residual else None,
        "norm_weight": normal(width) if normed else None,
        "eps": 1e-5,
    }


def converted(arguments, dtype):
    """The same arguments with all tensors in another dtype."""

    def convert(value):
        if isinstance(value, list):
            return [convert(entry) for entry in value]
        return value.to(dtype) if isinstance(value, torch.Tensor) else value

    return {name: convert(value) for name, value in arguments.items()}


def check(arguments):
    """The public op against the float32 reference, the norm of what came out against its own."""
    dtype, weight = arguments["x"].dtype, arguments["norm_weight"]
    outputs = call(arguments)
    out, *normed = [outputs] if weight is None else outputs
    exact = converted(arguments | {"norm_weight": None}, torch.float32)
    (expected,) = reference(*exact.values())
    rounded = 0.0 if dtype == torch.float32 else EPSILON[dtype] / 2
    pairs = [(out, expected)]
    if weight is not None:
        rows, weight = out.float(), weight.float()
        pairs.append((normed[0], F.rms_norm(rows, rows.shape[1:], weight, arguments["eps"])))
    for actual, expected in pairs:
        assert actual.shape == expected.shape and actual.dtype == dtype
        assert_close(actual, expected, expected * (1 + rounded))


def call(arguments):
    x, weights, *_ = arguments.values()
    options = {name: arguments[name] for name in list(arguments)[2:]}
    return dspark_kernels.fused_linear(x, weights, **options)


@pytest.mark.parametrize("gated", [False, True])
def test_definition_is_torch_layer_by_layer(gated):
    arguments = inputs(4, 12, (10, 10), True, gated, True, True)
    x, weight = arguments["x"], arguments["norm_weight"]
    a, b = map(F.linear, [x, x], arguments["weights"], arguments["biases"])
    expected = F.silu(a) * b if gated else torch.cat((a, b), dim=1)
    expected = expected + arguments["residual"]
    out, normed = reference(*arguments.values())
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(normed, F.rms_norm(out, weight.shape, weight, arguments["eps"]))


SHAPES = [
    (1, 576, (576, 192, 192)), (1, 1, (1,)), (2, 33, (50, 7)), (5, 64, (48,)), (8, 100, (13,)),
    (9, 65, (49, 1, 2, 3)), (16, 576, (96,)), (17, 40, (100,)), (33, 31, (20,)), (64, 97, (30,)),
    (65, 200, (17, 60)), (140, 50, (51,)), (3, 1100, (20, 5)), (270, 12, (6, 3)),
    (32, 512, (96, 40)), (64, 1024, (130,)), (1, 1536, (70,)), (2, 2080, (33,)), (4, 160, (100,)),
    (3, 4096, (17,)),
]  # fmt: skip


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize(("M", "D", "columns"), SHAPES)
def test_shapes(M, D, columns, around, dtype, device):
    check(inputs(M, D, columns, around, False, around, around, dtype, device=device))


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("M", "D", "N"), [
    (1, 64, 5), (7, 33, 48), (20, 60, 99), (70, 24, 50), (4, 1536, 21), (260, 7, 3),
    (40, 1024, 70),
])  # fmt: skip
def test_gated(M, D, N, dtype, device):
    check(inputs(M, D, (N, N), True, True, True, True, dtype, device=device))


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_views_and_unused_memory(dtype, device):
    arguments = inputs(6, 40, (24, 9), True, False, True, True, dtype, device=device)

    def poisoned(tensor):
        room = torch.full((tensor.shape[0], tensor.shape[1] + 9), math.nan, dtype=dtype)
        room = room.to(device)
        room[:, 5:-4] = tensor
        return room[:, 5:-4]

    arguments["x"] = poisoned(arguments["x"])
    arguments["residual"] = poisoned(arguments["residual"])
    arguments["weights"] = [
        poisoned(arguments["weights"][0]),
        arguments["weights"][1].T.contiguous().T,
    ]
    arguments["norm_weight"] = arguments["norm_weight"].repeat_interleave(2)[::2]
    check(arguments)
    arguments["x"] = arguments["x"].repeat_interleave(2, dim=1)[:, ::2]
    check(arguments)


@pytest.mark.backend
def test_many_rows(device):
    rows = 1100 if INTERPRETER else 4100
    for columns in ((3, 2), (4,)):
        check(inputs(rows, 5, columns, True, False, True, True, device=device))


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [False, True])
def test_more_rows_than_fit_into_a_cache(gated, dtype, device, fitting):
    """They are packed and multiplied in groups."""
    columns = (20, 20) if gated else (50, 3)
    check(inputs(150, fitting(20, 8200), columns, True, gated, True, True, dtype, device=device))


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [300, 576])
def test_rows_do_not_depend_on_each_other(depth, dtype, device, request):
    """A row's result has the same bits alone and among others."""
    native = backend_of("fused_linear", "cpu")[0] == "native"
    if dtype != torch.float32 and not (native and request.config.getoption("--device") == "cpu"):
        pytest.skip("a GPU's tiles of 16-bit numbers depend on the number of rows")
    arguments = inputs(70, depth, (50, 50), True, True, False, True, dtype, device=device)
    together = call(arguments)
    for count in (1, 2, 3, 4, 5, 8, 9, 33):
        some = arguments | {"x": arguments["x"][:count]}
        for alone, among in zip(call(some), together, strict=True):
            assert torch.equal(alone, among[:count])


@pytest.mark.backend
@pytest.mark.parametrize(("M", "columns"), [(0, (4,)), (3, (0,)), (3, (0, 5))])
def test_empty(M, columns, device):
    arguments = inputs(M, columns=columns, normed=True, device=device)
    assert [part.shape for part in call(arguments)] == [(M, sum(columns))] * 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(20)}, ValueError, r"x must have shape \[M, D\], got \[20\]"),
        ({"x": torch.zeros(2, 20).int()}, TypeError, "x must have dtype float32"),
        ({"x": torch.zeros(3, 0)}, ValueError, r"x must have at least one column, got \[3, 0\]"),
        ({"eps": -1.0}, ValueError, r"eps must be a number >= 0, got -1\.0"),
        ({"eps": "small"}, TypeError, "eps must be a number >= 0, got 'small'"),
        ({"weights": []}, ValueError, "weights must hold 1 to 4 tensors, got 0"),
        ({"weights": [torch.zeros(24, 19)]}, ValueError, r"weights\[0\] must .* with D=20"),
        ({"weights": [torch.zeros(24, 20).half()]}, TypeError, r"weights\[0\] must have dtype"),
        ({"gated": True}, ValueError, "weights must hold 2 tensors if gated, got 1"),
        (
            {"gated": True, "weights": [torch.zeros(24, 20), torch.zeros(23, 20)]},
            ValueError, r"weights\[1\] must have shape \[N, D\] with N=24",
        ),
        ({"biases": [torch.zeros(24)] * 2}, ValueError, "biases must be empty or hold a tensor"),
        ({"biases": [torch.zeros(23)]}, ValueError, r"biases\[0\] must have shape .* with N0=24"),
        ({"norm_weight": torch.zeros(23)}, ValueError, "norm_weight must .* with width=24"),
        ({"residual": torch.zeros(3, 23)}, ValueError, "residual must .* with width=24"),
        ({"residual": torch.zeros(3, 24).half()}, TypeError, "residual must have dtype float32"),
    ],
)  # fmt: skip
def test_errors(change, error, message):
    with pytest.raises(error, match=f"fused_linear: {message}"):
        call(inputs() | change)


@pytest.mark.parametrize("gated", [False, True])
def test_opcheck(gated, device):
    arguments = inputs(3, 12, (10, 10), True, gated, True, True, device=device)
    torch.library.opcheck(torch.ops.dspark.fused_linear.default, tuple(arguments.values()))
