import math

import pytest
import torch

import dspark_kernels
from dspark_kernels.reference.best_slots import best_slots as reference


def inputs(B=4, M=9, nodes=None, total=None, levels=0, finished=0.3, remaining=50, seed=0):
    """Arguments of the op by name. levels: distinct scores, 0 for as many as come."""
    g = torch.Generator().manual_seed(seed)

    def integers(low, high):
        return torch.randint(low, high, (B,), generator=g).int()

    nodes = M if nodes is None else nodes
    scores = torch.rand(B, M, generator=g)
    if levels:
        scores = (scores * levels).ceil() / levels
    scores = scores.cummin(dim=1).values
    scores[:, 0] = 1.0
    num_nodes, lengths = integers(1, M + 1), integers(1, 1000)
    return {
        "scores": scores.masked_fill(torch.arange(M) >= num_nodes[:, None], 0.0),
        "num_nodes": num_nodes,
        "lengths": lengths,
        "limit": lengths + integers(1, remaining + 1),
        "done": torch.rand(B, generator=g) < finished,
        "nodes": nodes,
        "total": B * nodes // 2 if total is None else total,
    }


def to(arguments, device):
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }


def oracle(scores, num_nodes, lengths, limit, done, nodes, total):
    """The definition in plain loops: slots, rows and counts as lists."""
    batch, priority = len(scores), []
    for b in range(batch):
        remaining = 0 if done[b] else max(int(limit[b]) - int(lengths[b]), 0)
        priority.append(math.inf if remaining else 0.0)
        weight = torch.tensor(float(remaining)).sqrt()
        priority += (scores[b, 1:nodes] * weight).tolist()
    slots = sorted(range(len(priority)), key=lambda slot: (-priority[slot], slot))[:total]
    slots.sort()
    rows = [[-1] * nodes for _ in range(batch)]
    for row, slot in enumerate(slots):
        rows[slot // nodes][slot % nodes] = row
    used = num_nodes.tolist()
    counts = [sum(row >= 0 for row in rows[b][: used[b]]) for b in range(batch)]
    return slots, rows, counts


def check(function, arguments, device="cpu"):
    outputs = function(*to(arguments, device).values())
    assert [part.dtype for part in outputs] == [torch.int64, torch.int64, torch.int32]
    for one, other in zip(outputs, oracle(**arguments), strict=True):
        assert one.tolist() == other
    return outputs


CASES = {
    "plain": {},
    "ties": {"B": 9, "M": 40, "levels": 3, "remaining": 2},
    "all_equal": {"B": 5, "M": 33, "levels": 1, "remaining": 1, "total": 70},
    "unused": {"B": 3, "M": 64, "total": 180},
    "all": {"total": 36},
    "one": {"total": 1},
    "one_request": {"B": 1, "M": 65, "total": 20},
    "one_node": {"B": 70, "M": 1, "total": 33},
    "roots": {"B": 40, "M": 16, "total": 12, "finished": 0},
    "finished": {"B": 12, "M": 8, "finished": 1},
    "mostly_finished": {"B": 12, "M": 8, "finished": 0.8, "total": 70},
    "first_columns": {"B": 8, "M": 64, "nodes": 20},
    "long": {"B": 6, "M": 30, "remaining": 10**9},
    "large": {"B": 40, "M": 256, "nodes": 255, "total": 3000},
    "large_ties": {"B": 40, "M": 256, "levels": 2, "remaining": 3},
}


@pytest.mark.parametrize("name", CASES)
def test_definition_is_plain_loops(name):
    arguments = inputs(**CASES[name])
    slots, rows, counts = check(reference, arguments)
    if name == "unused":  # the cases mean something
        assert counts.sum() < len(slots) == 180
    if name == "mostly_finished":
        assert 0 < arguments["done"].sum() < 12 and (rows[arguments["done"], 0] >= 0).any()
    if name == "plain":
        assert len(set(counts.tolist())) > 1 and arguments["done"].any()


@pytest.mark.backend
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_backend_is_plain_loops(name, seed, device):
    check(torch.ops.dspark.best_slots, inputs(**CASES[name], seed=seed), device)


@pytest.mark.backend
def test_backend_every_total(device):
    for total in range(1, 4 * 9 + 1):
        check(torch.ops.dspark.best_slots, inputs(levels=4, total=total), device)


@pytest.mark.backend
def test_backend_takes_views(device):
    expected = inputs(B=5, M=12)
    arguments = to(expected, device)
    arguments["scores"] = torch.nn.functional.pad(arguments["scores"], (3, 5), value=9.0)[:, 3:-5]
    for name in ("num_nodes", "lengths", "limit", "done"):
        arguments[name] = arguments[name].repeat_interleave(2)[::2]
    spread = arguments["scores"].repeat_interleave(2, dim=1)[:, ::2]
    for scores in (arguments["scores"], spread):
        outputs = torch.ops.dspark.best_slots(*(arguments | {"scores": scores}).values())
        for one, other in zip(outputs, oracle(**expected), strict=True):
            assert one.tolist() == other


@pytest.mark.backend
def test_backend_requests_beyond_their_limit_are_finished(device):
    arguments = inputs(B=6, finished=0) | {"total": 20}
    arguments["lengths"][::2] += 100
    check(torch.ops.dspark.best_slots, arguments, device)


@pytest.mark.backend
@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf, -math.inf])
def test_backend_hostile_scores(value, device):
    arguments = inputs(B=6)
    arguments["scores"][:, ::3] = value
    arguments["num_nodes"][:3] = torch.tensor([-5, 0, 99])
    outputs = torch.ops.dspark.best_slots(*to(arguments, device).values())
    for one, other in zip(outputs, reference(*arguments.values()), strict=True):
        assert torch.equal(one.cpu(), other)
    assert len(outputs[0].unique()) == arguments["total"]


def public(arguments):
    tensors = {name: value for name, value in arguments.items() if name not in ("nodes", "total")}
    return dspark_kernels.best_slots(**tensors, nodes=arguments["nodes"], total=arguments["total"])


def test_public_call(device):
    arguments = inputs()
    packing = public(to(arguments, device))
    slots, rows, counts = oracle(**arguments)
    assert packing.slots.tolist() == slots and packing.rows.tolist() == rows
    assert packing.counts.tolist() == counts
    assert (packing.rows >= 0).flatten().nonzero()[:, 0].tolist() == slots


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": torch.zeros(4, 9).half()}, TypeError, "scores must have dtype float32, got fl"),
        ({"scores": torch.zeros(36)}, ValueError, r"scores must have shape \[B, M\]"),
        ({"num_nodes": torch.zeros(3).int()}, ValueError, "num_nodes must have shape"),
        ({"lengths": torch.zeros(4)}, TypeError, "lengths must have dtype int32"),
        ({"limit": torch.zeros(4, 1).int()}, ValueError, "limit must have shape"),
        ({"done": torch.zeros(4).int()}, TypeError, "done must have dtype bool"),
        ({"nodes": 0}, ValueError, "nodes must be from 1 to 9, got 0"),
        ({"nodes": 10}, ValueError, "nodes must be from 1 to 9, got 10"),
        ({"nodes": 2.0}, TypeError, "nodes must be an int from 1 to 9, got 2.0"),
        ({"total": 0}, ValueError, "total must be from 1 to 36, got 0"),
        ({"nodes": 5, "total": 21}, ValueError, "total must be from 1 to 20, got 21"),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=f"best_slots: {message}"):
        public(inputs() | change)


@pytest.mark.backend
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": 10}, "nodes must be 1 to the"),
        ({"total": 37}, "total must be 1 to B · nodes"),
    ],
)
def test_errors_of_the_launcher(change, message, device):
    if dspark_kernels._library.backend_of("best_slots", device.type)[0] != "native":
        pytest.skip("the reference checks nothing")
    with pytest.raises(RuntimeError, match=f"best_slots: {message}"):
        torch.ops.dspark.best_slots(*to(inputs() | change, device).values())


def test_opcheck(device):
    arguments = to(inputs(B=3, nodes=7), device)
    torch.library.opcheck(torch.ops.dspark.best_slots.default, tuple(arguments.values()))
