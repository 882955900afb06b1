import pytest
import torch

import dspark_kernels
from dspark_kernels.reference.advance_step import advance_step as reference

CHANGED = ("history", "lengths", "cache_seqlens", "root", "done", "kept")


def inputs(
    B=4, P=5, N=6, S=40, K=2, widths=(24, 7), dtype=torch.float32, packed=False, vocab=9, seed=0
):
    """Arguments of the op by name; some requests are done, end, or have no room left."""
    g = torch.Generator().manual_seed(seed)

    def integers(high, *shape, dtype=torch.int32):
        return torch.randint(0, high, shape, generator=g).to(dtype)

    lengths = S - P - integers(max(S - P - 1, 1), B)
    lengths[: B // 4] = S - 1  # room for one token
    slots = torch.arange(B * N).view(B, N)
    rows, node, total = None, integers(N, B), B * N
    if packed:
        kept = torch.rand(B, N, generator=g) < 0.6
        kept[torch.arange(B), node.long()] = True
        total = int(kept.sum())
        rows = torch.full((B, N), -1).masked_scatter_(kept, slots.flatten()[:total])
    return {
        "tokens": integers(vocab, B, P, dtype=torch.int64),
        "num_tokens": integers(P + 1, B),
        "node": node,
        "rows": rows,
        "hidden": [torch.randn(total, width, generator=g).to(dtype) for width in widths],
        "stop": integers(vocab, K, dtype=torch.int64),
        "limit": lengths + integers(2 * P + 1, B),
        "history": integers(100, B, S, dtype=torch.int64),
        "lengths": lengths,
        "cache_seqlens": integers(30, B),
        "root": integers(100, B, dtype=torch.int64),
        "done": torch.rand(B, generator=g) < 0.3,
        "kept": [torch.randn(B, width, generator=g).to(dtype) for width in widths],
    }


def clone(arguments, device="cpu"):
    def one(value):
        if isinstance(value, list):
            return [one(part) for part in value]
        return value if value is None else value.to(device, copy=True)

    return {name: one(value) for name, value in arguments.items()}


def oracle(arguments):
    """The definition in plain loops: (what is returned, the arguments afterwards)."""
    x, counts = clone(arguments), []
    batch, columns = x["tokens"].shape
    for b in range(batch):
        if x["done"][b]:
            counts.append(0)
            continue
        length = int(x["lengths"][b])
        tokens = x["tokens"][b].tolist()[: int(x["num_tokens"][b].clamp(min=0))]
        tokens = tokens[: x["history"].shape[1] - length]
        for i, token in enumerate(tokens):
            x["history"][b, length + i] = token
        counts.append(len(tokens))
        x["lengths"][b] += len(tokens)
        x["cache_seqlens"][b] += len(tokens)
        if tokens:
            x["root"][b] = tokens[-1]
        ended = bool(set(tokens) & set(x["stop"].tolist()))
        x["done"][b] = ended or x["lengths"][b] >= x["limit"][b]
        node = int(x["node"][b])
        for source, target in zip(x["hidden"], x["kept"], strict=True):
            row = b * (len(source) // batch) + node if x["rows"] is None else x["rows"][b, node]
            target[b] = source[row]
    return counts, x


def check(function, arguments, device="cpu"):
    """`function` against the loops: what it returns, what it changes and what it leaves alone."""
    given = clone(arguments, device)
    counts = function(*given.values())
    expected, after = oracle(arguments)
    assert counts.dtype == torch.int32 and counts.tolist() == expected
    for name in given:
        one, other = (x[name] if isinstance(x[name], list) else [x[name]] for x in (given, after))
        for a, b in zip(one, other, strict=True):
            assert a is b is None or torch.equal(a.cpu(), b), name
    return counts, given


CASES = {
    "plain": {"B": 64},
    "packed": {"B": 64, "packed": True},
    "one_node": {"N": 1, "P": 1},
    "wide": {"widths": (576, 1152, 64, 8), "dtype": torch.bfloat16},
    "bytes": {"widths": (3, 5), "dtype": torch.bfloat16},
    "no_stop": {"K": 0},
    "many_tokens": {"P": 65, "S": 200, "vocab": 1000, "B": 8},
    "nothing_kept": {"widths": ()},
    "no_room": {"S": 5, "P": 5},
    "empty": {"B": 0},
}


@pytest.mark.parametrize("name", CASES)
def test_definition_is_plain_loops(name):
    counts, given = check(reference, inputs(**CASES[name]))
    if name in ("plain", "packed"):  # the cases mean something
        assert len(set(counts.tolist())) > 4
        assert 0 < int(given["done"].sum()) < 64


@pytest.mark.backend
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_backend_is_plain_loops(name, seed, device):
    check(torch.ops.dspark.advance_step, inputs(**CASES[name], seed=seed), device)


def spread(tensor):
    """The same values in every other element."""
    wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
    wide[..., ::2] = tensor
    return wide[..., ::2]


@pytest.mark.backend
def test_backend_takes_views(device):
    expected = inputs(packed=True)
    arguments = clone(expected, device)
    for name in ("tokens", "num_tokens", "node", "rows", "stop", "limit"):
        arguments[name] = spread(arguments[name])
    arguments["hidden"] = [spread(part) for part in arguments["hidden"]]
    whole = torch.nn.functional.pad(arguments["history"], (3, 5))
    arguments["history"] = whole[:, 3:-5]
    before, counts = whole.clone(), torch.ops.dspark.advance_step(*arguments.values())
    expected_counts, after = oracle(expected)
    assert counts.tolist() == expected_counts
    assert torch.equal(arguments["history"].cpu(), after["history"])
    assert torch.equal(whole[:, :3], before[:, :3]) and torch.equal(whole[:, -5:], before[:, -5:])
    assert torch.equal(arguments["kept"][1].cpu(), after["kept"][1])


@pytest.mark.backend
def test_backend_counts_beyond_the_tokens(device):
    arguments = inputs(B=3)
    arguments["num_tokens"] = torch.tensor([99, -4, 2], dtype=torch.int32)
    arguments["done"][:], arguments["lengths"][:] = False, 10
    given = clone(arguments, device)
    assert torch.ops.dspark.advance_step(*given.values()).tolist() == [5, 0, 2]
    assert given["lengths"].tolist() == [15, 10, 12]


def public(arguments):
    positional = ("tokens", "num_tokens", "node", "hidden")
    named = {name: value for name, value in arguments.items() if name not in positional}
    return dspark_kernels.advance_step(*(arguments[name] for name in positional), **named)


@pytest.mark.parametrize("packed", [False, True])
def test_public_call(packed, device):
    arguments = inputs(packed=packed)
    assert public(clone(arguments, device)).tolist() == oracle(arguments)[0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": torch.zeros(4, 5)}, TypeError, "tokens must have dtype int64, got float32"),
        ({"num_tokens": torch.zeros(3).int()}, ValueError, "num_tokens must have shape"),
        ({"node": torch.full((4,), 6).int()}, ValueError, "node must hold values from 0 to 5"),
        ({"rows": torch.zeros(4, 6)}, TypeError, "rows must have dtype int64"),
        ({"hidden": torch.zeros(24, 24)}, TypeError, "hidden must be a list of tensors"),
        ({"hidden": [torch.zeros(24, 24)]}, ValueError, "hidden must be at most 4 tensors, as"),
        (
            {"hidden": [torch.zeros(25, 24), torch.zeros(25, 7)]},
            ValueError, "hidden must have N rows for each of 4, got 25",
        ),
        (
            {"hidden": [torch.zeros(24, 24).half(), torch.zeros(24, 7)]},
            TypeError, r"kept\[0\] must have dtype float16",
        ),
        ({"kept": [torch.zeros(4, 24), torch.zeros(4, 8)]}, ValueError, r"kept\[1\] must have sha"),
        ({"stop": torch.zeros(2).int()}, TypeError, "stop must have dtype int64"),
        ({"lengths": torch.full((4,), 41).int()}, ValueError, "lengths must hold values from 0 to"),
        ({"root": torch.zeros(4).int()}, TypeError, "root must have dtype int64"),
        ({"done": torch.zeros(4).int()}, TypeError, "done must have dtype bool"),
    ],
)  # fmt: skip
def test_errors(change, error, message):
    arguments = inputs()
    with pytest.raises(error, match=f"advance_step: {message}"):
        public(clone(arguments) | change)


@pytest.mark.backend
@pytest.mark.parametrize("name", ["lengths", "root", "done"])
def test_backend_changes_no_copy(name, device):
    if dspark_kernels._library.backend_of("advance_step", device.type)[0] != "native":
        pytest.skip("the reference takes any strides")
    arguments = clone(inputs(), device)
    arguments[name] = spread(arguments[name])
    with pytest.raises(RuntimeError, match=f"advance_step: {name} must be contiguous"):
        torch.ops.dspark.advance_step(*arguments.values())


def test_opcheck(device):
    for packed in (False, True):
        arguments = clone(inputs(packed=packed), device)
        torch.library.opcheck(torch.ops.dspark.advance_step.default, tuple(arguments.values()))
