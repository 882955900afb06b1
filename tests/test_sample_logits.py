import math

import pytest
import torch
from chi_square import chi_square
from dtypes import DTYPES
from penalties import WRONG, penalty

import dspark_kernels
from dspark_kernels.reference.noise import gumbel
from dspark_kernels.reference.sample_logits import kept_tokens
from dspark_kernels.reference.sample_logits import sample_logits as reference
from dspark_kernels.reference.seen_tokens import penalize

NAMES = (
    "logits", "ids", "temperature", "seed", "position", "top_k", "top_p", "min_p", "seen",
    "repetition_penalty",
)  # fmt: skip


def inputs(M=5, V=40, cuts="", dtype=torch.float32, seed=0, device="cpu", scale=2.0):
    """Arguments of the op by name; `cuts` names the truncations, which differ from row to row."""
    g = torch.Generator().manual_seed(seed)
    every = {
        "logits": (torch.randn(M, V, generator=g) * scale).to(dtype),
        "temperature": torch.tensor([1.0, 0.5, 0.0, 2.0, 0.1]).repeat(M)[:M],
        "seed": torch.randint(-(2**63), 2**63 - 1, (M,), generator=g),
        "position": torch.randint(0, 2**40, (M,), generator=g),
        "top_k": torch.tensor([3, 0, 1, 10**6, 7, 1], dtype=torch.int32).repeat(M)[:M],
        "top_p": torch.tensor([0.9, 1.0, 0.4, 0.03, 0.7, 0.0, 0.999]).repeat(M)[:M],
        "min_p": torch.tensor([0.0, 0.1, 1.0, 0.001, 0.05, 0.9]).repeat(M)[:M],
    }
    names = ("logits", "temperature", "seed", "position", *cuts.split())
    return {name: every[name].to(device) for name in names}


def positional(arguments):
    return tuple(arguments.get(name) for name in NAMES)


def check(arguments):
    """The public op against the reference: another id must have a score within rounding."""
    ids, expected = dspark_kernels.sample_logits(**arguments), reference(*positional(arguments))
    assert ids.shape == expected.shape and ids.dtype == torch.int64
    differs = (ids != expected).nonzero()[:, 0]
    logits, listed, temperature, seed, position, *_cuts = positional(arguments)
    columns = torch.arange(logits.shape[1], device=logits.device)
    logits = penalize(logits.float(), columns, *positional(arguments)[-2:])
    for row in differs.tolist():
        scores = logits[row] / temperature[row]
        tokens = columns if listed is None else listed[row]
        scores += gumbel(seed[row : row + 1], position[row : row + 1], tokens)[0]
        one, other = (scores[tokens == drawn[row]].max() for drawn in (ids, expected))
        assert abs(one - other) <= 1e-5 * (1 + abs(other)), (row, ids[row], expected[row])


# --- the definition -----------------------------------------------------------------------------


def kept_by_loops(scaled, top_k, top_p, min_p):
    """The set of tokens kept from one row of logits / τ, by plain loops over sorted values."""
    order = sorted(range(len(scaled)), key=lambda v: -scaled[v])
    if 0 < top_k < len(scaled):
        order = [v for v in order if scaled[v] >= scaled[order[top_k - 1]]]
    weight = {v: math.exp(scaled[v] - scaled[order[0]]) for v in order}
    total, above, kept = sum(weight.values()), 0.0, []
    for v in order:
        alike = kept and scaled[v] == scaled[kept[-1]]
        if kept and not alike and top_p < 1 and above / total >= top_p:
            break
        kept.append(v)
        above += weight[v]
    return {v for v in kept if math.exp(scaled[v] - scaled[order[0]]) >= min_p}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("top_k", [0, 1, 4, 30])
@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.97, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.07])
def test_definition_of_truncation(top_k, top_p, min_p, ties):
    scaled = torch.randn(3, 20, generator=torch.Generator().manual_seed(top_k)) * 2
    scaled = scaled.round() if ties else scaled
    rows = (torch.full((3,), value) for value in (top_k, top_p, min_p))
    kept = kept_tokens(scaled, *rows)
    for row in range(3):
        expected = kept_by_loops(scaled[row].tolist(), top_k, top_p, min_p)
        assert set(kept[row].nonzero()[:, 0].tolist()) == expected


def test_definition_without_temperature_is_argmax():
    logits = torch.tensor([[1.0, 3.0, 3.0], [math.nan, -math.inf, -5.0], [math.nan] * 3])
    assert reference(logits, *[None] * 9).tolist() == [1, 2, 0]
    ids = torch.tensor([[9, 8, 4], [3, 2, 1], [7, 6, 5]])
    assert reference(logits, ids, *[None] * 8).tolist() == [8, 1, 7]


@pytest.mark.parametrize("cuts", ["", "top_k", "top_p", "min_p", "top_k top_p min_p"])
def test_definition_draws_from_the_truncated_softmax(cuts):
    count, V = 4000, 12
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(1, V, generator=g) * 1.5
    options = {
        "top_k": torch.tensor([6]).int(), "top_p": torch.tensor([0.8]), "min_p": torch.tensor([0.1])
    }  # fmt: skip
    rows = [options[name] if name in cuts else None for name in options]
    ids = reference(
        logits.expand(count, -1), None, torch.full((count,), 0.8), torch.full((count,), 3),
        torch.arange(count), *(None if row is None else row.expand(count) for row in rows),
        None, None,
    )  # fmt: skip
    counts = torch.bincount(ids, minlength=V).double()
    kept = kept_tokens(logits / 0.8, *rows)[0]
    assert (counts[~kept] == 0).all()
    probabilities = torch.where(kept, logits[0].double() / 0.8, -math.inf).softmax(0)
    statistic, limit = chi_square(counts, probabilities)
    assert statistic < limit
    if cuts:  # another truncation fails
        statistic, limit = chi_square(counts, (logits[0].double() / 0.8).softmax(0))
        assert statistic > limit


# --- backends -----------------------------------------------------------------------------------

CUTS = ["", "top_k", "top_p", "min_p", "top_k top_p", "top_k top_p min_p"]
CASES = [  # the dtypes in turn
    (M, V, cuts, DTYPES[(i + j) % len(DTYPES)])
    for i, (M, V) in enumerate([(1, 1), (5, 63), (9, 64), (7, 65), (12, 999)])
    for j, cuts in enumerate(CUTS)
]


@pytest.mark.backend
@pytest.mark.parametrize(("M", "V", "cuts", "dtype"), CASES)
def test_shapes(M, V, cuts, dtype, device):
    check(inputs(M, V, cuts, dtype, device=device))


@pytest.mark.backend
@pytest.mark.parametrize("cuts", CUTS)
def test_large_vocabulary(cuts, device):
    check(inputs(3, 5_011, cuts, seed=4, device=device))


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize(("M", "V", "seen"), [(1, 1, 1), (5, 63, 63), (9, 64, 10), (12, 999, 500)])
def test_penalty(M, V, seen, cuts, dtype, device):
    """The last columns may be beyond its bits."""
    arguments = inputs(M, V, cuts, dtype, device=device)
    check(arguments | penalty(M, seen, device=device))


@pytest.mark.backend
@pytest.mark.parametrize("noise", [False, True])
def test_the_penalized_draw_is_that_of_linear_topk(noise, device):
    g = torch.Generator().manual_seed(1)
    x, weight = torch.randn(10, 16, generator=g), torch.randn(990, 16, generator=g)
    x, weight = x.to(device), weight.to(device)
    options = penalty(5, 990, entries=10, device=device)
    options["seen"][:] = -1  # every token: else one that is not seen may be drawn in all rows
    options["seen"][:, ::2] = 0
    if noise:
        options |= {
            "temperature": torch.full((5,), 0.5, device=device),
            "seed": torch.arange(5, device=device),
            "position": torch.arange(10, device=device),
        }
    ids = dspark_kernels.sample_logits(x @ weight.T, **options)
    assert torch.equal(ids, dspark_kernels.linear_topk(x, weight, 1, **options)[1][:, 0])
    without = {name: None for name in ("seen", "repetition_penalty")}
    assert not torch.equal(ids, dspark_kernels.sample_logits(x @ weight.T, **options | without))


@pytest.mark.backend
@pytest.mark.parametrize("entries", [1, 4])
def test_views_of_what_was_seen(entries, device):
    arguments = inputs(4, 60, device=device)
    shared = penalty(4, 60, entries=entries, device=device)
    expected = dspark_kernels.sample_logits(**arguments | shared)
    shared["seen"] = shared["seen"].repeat_interleave(2, dim=1)[:, ::2]
    shared["repetition_penalty"] = shared["repetition_penalty"].repeat_interleave(2)[::2]
    found = dspark_kernels.sample_logits(**arguments | shared)
    assert torch.equal(found, expected)


@pytest.mark.backend
@pytest.mark.parametrize(("M", "B", "R"), [(0, 2, 2), (15, 3, 15), (15, 3, 3), (40, 1, 8)])
def test_rows_share_what_was_seen(M, B, R, device):
    arguments = inputs(M, 70, device=device)
    shared = penalty(B, 70, entries=R, device=device)
    shared |= {name: inputs(B, 70)[name].to(device) for name in ("temperature", "seed")}
    spread = {
        name: entry.repeat_interleave(M // len(entry), dim=0) for name, entry in shared.items()
    }
    expected = dspark_kernels.sample_logits(**arguments | spread)
    assert torch.equal(dspark_kernels.sample_logits(**arguments | shared), expected)


@pytest.mark.backend
@pytest.mark.parametrize("spread", [2.0, 1e-3, 0.0])
def test_more_candidates_than_are_noted(spread, device):
    """Close to each other, or equal: all matter until the last passes, or to the end."""
    arguments = inputs(2, 24_000, "top_k top_p", seed=5, device=device)
    arguments["logits"] = 9 + spread * arguments["logits"]
    arguments["top_k"] = torch.tensor([20_000, 0], dtype=torch.int32, device=device)
    check(arguments)


@pytest.mark.backend
@pytest.mark.parametrize("equal", [250, 262, 512])
def test_many_equal_candidates_in_one_place(equal, device):
    """As many as are noted of a part, and more, where the others of the row have few."""
    arguments = inputs(2, 9_000, "top_k top_p", seed=6, device=device, scale=1.0)
    arguments["logits"][:, :equal] = 2.5
    arguments["top_k"] = torch.tensor([equal // 2, 0], dtype=torch.int32, device=device)
    check(arguments)


@pytest.mark.backend
@pytest.mark.parametrize("masked", [-math.inf, torch.finfo(torch.float32).min])
def test_fewer_tokens_are_left_than_top_k(masked, device):
    arguments = inputs(2, 9_000, "top_k top_p", seed=7, device=device)
    arguments["logits"][:, 100:] = masked
    arguments["top_k"] = torch.tensor([101, 5_000], dtype=torch.int32, device=device)
    check(arguments)


@pytest.mark.backend
@pytest.mark.parametrize("cuts", CUTS[1:])
def test_ties_share_their_fate(cuts, device):
    arguments = inputs(12, 50, cuts, device=device)
    arguments["logits"].round_()
    check(arguments)


@pytest.mark.backend
def test_truncation_by_repeated_draws(device):
    """Many draws from one row: exactly the kept tokens come out."""
    M, V = 64, 30
    row = inputs(1, V, device=device)["logits"]
    arguments = {
        "logits": row.expand(M, -1),
        "temperature": torch.full((M,), 5.0, device=device),
        "seed": torch.arange(M, device=device),
        "position": torch.zeros(M, dtype=torch.int64, device=device),
        "top_k": torch.full((M,), 4, dtype=torch.int32, device=device),
    }
    ids = dspark_kernels.sample_logits(**arguments)
    assert set(ids.tolist()) == set(row[0].topk(4).indices.tolist())


@pytest.mark.backend
@pytest.mark.parametrize("cuts", CUTS)
def test_nan_and_infinite_logits(cuts, device):
    arguments = inputs(6, 70, cuts, device=device)
    logits = arguments["logits"]
    logits[:, 5:30] = -math.inf
    logits[:, 60:] = math.nan
    logits[3] = math.nan
    logits[4, :] = -math.inf
    logits[5, 40] = math.inf
    check(arguments)


@pytest.mark.backend
def test_argmax_goes_to_the_lowest_id(device):
    logits = torch.zeros(3, 200, device=device)
    logits[0, [30, 31, 190]] = 2
    logits[1, [7, 100]] = 1
    assert dspark_kernels.sample_logits(logits).tolist() == [30, 7, 0]


@pytest.mark.backend
def test_the_draw_is_that_of_linear_topk(device):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(6, 16, generator=g).to(device), torch.randn(90, 16, generator=g)
    noise = {
        "temperature": torch.tensor([0.0, 0.5, 1.0, 2.0, 0.7, 1.0], device=device),
        "seed": torch.arange(6, device=device),
        "position": torch.arange(6, device=device) + 2**35,
    }
    ids = dspark_kernels.sample_logits(x @ weight.to(device).T, **noise)
    drawn = dspark_kernels.linear_topk(x, weight.to(device), 1, **noise)[1]
    assert torch.equal(ids, drawn[:, 0])


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_views_and_unused_memory(dtype, device):
    arguments = inputs(5, 45, "top_k top_p", dtype, device=device)
    poisoned = torch.full((5, 60), math.inf, dtype=dtype, device=device)
    poisoned[:, 7:52] = arguments["logits"]
    check(arguments | {"logits": poisoned[:, 7:52]})
    check(arguments | {"logits": arguments["logits"].T.contiguous().T})
    check(arguments | {"seed": arguments["seed"].repeat_interleave(2)[::2]})


@pytest.mark.backend
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize(("M", "B"), [(0, 2), (5, 1), (15, 3), (15, 5), (7, 7), (70, 14)])
def test_rows_share_their_options(M, B, cuts, device):
    arguments = inputs(M, 70, device=device)
    shared = inputs(B, 70, cuts, seed=1, device=device)
    del shared["logits"], shared["position"]
    spread = {name: option.repeat_interleave(M // B) for name, option in shared.items()}
    expected = dspark_kernels.sample_logits(**arguments | spread)
    assert torch.equal(dspark_kernels.sample_logits(**arguments | shared), expected)


def listed(arguments, count):
    """The same, but for the largest logits alone, in descending order, and their ids."""
    columns = arguments["logits"].float().sort(dim=1, descending=True, stable=True)[1][:, :count]
    logits = arguments["logits"].gather(1, columns)
    return arguments | {"logits": logits, "ids": columns}


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("count", [1, 2, 17, 50, 64])
def test_listed_tokens(count, cuts, dtype, device):
    """Logits with ties, infinities and NaN; ids of any order and size."""
    arguments = inputs(12, count, cuts, dtype, seed=count, device=device)
    g = torch.Generator().manual_seed(count)
    arguments["logits"][3:].mul_(2).round_()
    arguments["logits"][5, : count // 2] = -math.inf
    arguments["logits"][6] = math.nan
    arguments["logits"][8, count // 2] = math.inf
    ids = torch.stack([torch.randperm(300_000, generator=g)[:count] for _ in range(12)])
    ids[7] += 2**32 - 300_000
    check(arguments | {"ids": ids.to(device)})


@pytest.mark.backend
@pytest.mark.parametrize("cuts", ["top_k", "top_k top_p", "top_k min_p", "top_k top_p min_p"])
def test_the_draw_from_a_list_is_that_from_all(cuts, device):
    """Where top-k leaves out all that is not listed."""
    arguments = inputs(35, 400, cuts, seed=3, device=device)
    most = torch.tensor([64, 40, 1, 63, 20], dtype=torch.int32, device=device)
    arguments["top_k"] = most.repeat(7)
    expected = dspark_kernels.sample_logits(**arguments)
    assert torch.equal(dspark_kernels.sample_logits(**listed(arguments, 64)), expected)


@pytest.mark.backend
def test_lists_in_views(device):
    arguments = listed(inputs(6, 90, "top_k top_p", device=device), 40)
    expected = dspark_kernels.sample_logits(**arguments)
    poisoned = torch.full((6, 50), math.inf, device=device)
    poisoned[:, 3:43] = arguments["logits"]
    views = {"logits": poisoned[:, 3:43], "ids": arguments["ids"].T.contiguous().T}
    assert torch.equal(dspark_kernels.sample_logits(**arguments | views), expected)


@pytest.mark.backend
@pytest.mark.parametrize("count", [None, 7])
def test_no_rows(count, device):
    arguments = inputs(M=0, device=device)
    arguments = arguments if count is None else listed(arguments, count)
    assert dspark_kernels.sample_logits(**arguments).shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(40)}, ValueError, r"logits must have shape \[M, V\]"),
        ({"logits": torch.zeros(5, 0)}, ValueError, "logits must have at least one column"),
        ({"logits": torch.zeros(5, 40).long()}, TypeError, "logits must have dtype float32"),
        (
            {"temperature": torch.zeros(4)},
            ValueError,
            r"temperature must have shape \[B\] with B dividing M=5, got \[4\]",
        ),
        (
            {"position": torch.zeros(1).long()},
            ValueError,
            r"position must have shape \[M\] with M=5",
        ),
        ({"temperature": -torch.ones(5)}, ValueError, "temperature must hold values >= 0"),
        ({"ids": torch.zeros(5, 39).long()}, ValueError, r"ids must have shape \[M, V\]"),
        ({"ids": torch.zeros(5, 40).int()}, TypeError, "ids must have dtype int64"),
        ({"ids": torch.full((5, 40), -1)}, ValueError, "ids must hold values from 0 to"),
        (
            {"logits": torch.zeros(5, 65), "ids": torch.zeros(5, 65).long()},
            ValueError,
            r"logits must have at most 64 columns with ids, got \[5, 65\]",
        ),
        ({"seed": None}, ValueError, "seed must be given together with temperature"),
        ({"position": None}, ValueError, "position must be given together with temperature"),
        ({"top_k": torch.ones(5)}, TypeError, "top_k must have dtype int32"),
        ({"top_k": torch.full((5,), -1).int()}, ValueError, "top_k must hold values >= 0, got -1"),
        ({"top_p": torch.ones(5).half()}, TypeError, "top_p must have dtype float32"),
        ({"top_p": torch.full((5,), 1.5)}, ValueError, "top_p must hold values from 0 to 1"),
        ({"min_p": torch.ones(1)}, ValueError, r"min_p must have shape \[B\] with B=5, got \[1\]"),
        ({"min_p": -torch.ones(5)}, ValueError, "min_p must hold values from 0 to 1, got -1"),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=f"sample_logits: {message}"):
        dspark_kernels.sample_logits(**inputs() | change)


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_errors_of_a_penalty(change, error, message):
    arguments = {"logits": torch.zeros(4, 40)} | penalty(4, 40)
    with pytest.raises(error, match=f"sample_logits: {message}"):
        dspark_kernels.sample_logits(**arguments | change)


def test_a_list_takes_no_penalty():
    arguments = listed(inputs(), 7) | penalty(5, 40)
    with pytest.raises(ValueError, match="sample_logits: seen must be left out with ids, got both"):
        dspark_kernels.sample_logits(**arguments)


@pytest.mark.parametrize("count", [None, 20])
@pytest.mark.parametrize("cuts", ["", "top_k top_p min_p"])
def test_opcheck(cuts, count, device):
    arguments = inputs(cuts=cuts, device=device)
    arguments = positional(arguments if count is None else listed(arguments, count))
    torch.library.opcheck(torch.ops.dspark.sample_logits.default, arguments)


def test_opcheck_with_a_penalty(device):
    arguments = positional(inputs(device=device) | penalty(5, 40, device=device))
    torch.library.opcheck(torch.ops.dspark.sample_logits.default, arguments)
