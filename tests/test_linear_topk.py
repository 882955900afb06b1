import importlib.util
import math

import pytest
import torch
from chi_square import chi_square
from dtypes import DTYPES
from penalties import WRONG, penalty

import dspark_kernels
from dspark_kernels._library import backend_of
from dspark_kernels.reference.linear_topk import linear_topk as reference
from dspark_kernels.reference.linear_topk import perturb
from dspark_kernels.reference.noise import gumbel
from dspark_kernels.reference.seen_tokens import penalize

NAMES = (
    "bias", "temperature", "seed", "position", "id_map", "vocab_offset", "seen",
    "repetition_penalty",
)  # fmt: skip


def inputs(M=4, V=50, D=32, k=3, dtype=torch.float32, noise=False, seed=0, device="cpu"):
    """Arguments of the op by name; every third row of the noise has temperature 0."""
    g = torch.Generator().manual_seed(seed)
    arguments = {
        "x": torch.randn(M, D, generator=g).to(dtype),
        "weight": torch.randn(V, D, generator=g).mul(max(D, 1) ** -0.5).to(dtype),
        "k": k,
        "bias": torch.randn(V, generator=g).to(dtype),
    }
    if noise:
        arguments |= {
            "temperature": (0.3 + torch.rand(M, generator=g)) * (torch.arange(M) % 3 < 2),
            "seed": torch.randint(-(2**63), 2**63 - 1, (M,), generator=g),
            "position": torch.randint(0, 2**40, (M,), generator=g),
        }
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }


def positional(arguments):
    """The arguments in the order of the schema."""
    a = {name: None for name in NAMES} | {"vocab_offset": 0} | arguments
    return a["x"], a["weight"], a["k"], *(a[name] for name in NAMES)


def check(arguments):
    """The public op against the reference: every id has the score of its rank, within rounding."""
    keys, ids, logsumexp = dspark_kernels.linear_topk(**arguments)
    x, weight, k, bias, temperature, seed, position, id_map, offset, *less = positional(arguments)
    expected_keys, expected_ids, expected_logsumexp = reference(*positional(arguments))
    assert keys.shape == ids.shape == (len(x), k) and logsumexp.shape == (len(x),)
    assert keys.dtype == logsumexp.dtype == torch.float32 and ids.dtype == torch.int64
    tokens = torch.arange(len(weight), device=x.device) + offset if id_map is None else id_map
    scores = x.float() @ weight.float().T + (0 if bias is None else bias.float())
    scores = penalize(scores, tokens, *less)
    scores = perturb(scores, tokens, temperature, seed, position)
    close = {"rtol": 1e-5, "atol": 1e-5 * (1 + float(scores[scores.isfinite()].abs().max()))}
    torch.testing.assert_close(keys, expected_keys, **close)
    torch.testing.assert_close(logsumexp, expected_logsumexp, **close)
    columns = torch.searchsorted(tokens, ids).clamp(max=len(tokens) - 1)
    assert torch.equal(tokens[columns], ids)
    assert (ids.sort(1).values.diff(dim=1) > 0).all()  # distinct
    differs = ids != expected_ids
    found = scores.gather(1, columns)
    torch.testing.assert_close(found[differs], expected_keys[differs], **close)
    assert torch.equal(ids[expected_keys.isinf()], expected_ids[expected_keys.isinf()])


# --- the definition -----------------------------------------------------------------------------


def oracle(
    x, weight, k, bias, temperature, seed, position, id_map, vocab_offset, seen, repetition_penalty
):
    """Sorting Python floats, one row at a time."""
    ids = [row + vocab_offset for row in range(len(weight))] if id_map is None else id_map.tolist()
    for row in range(len(x)):
        scores = (x[row].double() @ weight.double().T).tolist()
        if bias is not None:
            scores = [score + float(b) for score, b in zip(scores, bias, strict=True)]
        if seen is not None:
            words, by = seen[row].tolist(), float(repetition_penalty[row])
            there = [t < 64 * len(words) and words[t // 64] >> t % 64 & 1 for t in ids]
            less = [score / by if score > 0 else score * by for score in scores]
            scores = [a if known else b for known, a, b in zip(there, less, scores, strict=True)]
        if temperature is not None and temperature[row] > 0:
            noise = gumbel(seed[row : row + 1], position[row : row + 1], torch.tensor(ids))[0]
            tau = float(temperature[row])
            scores = [s / tau + float(n) for s, n in zip(scores, noise, strict=True)]
        scores = [-math.inf if math.isnan(score) else score for score in scores]
        order = sorted(range(len(ids)), key=lambda v: (-scores[v], v))[:k]
        top = max(scores)
        total = sum(math.exp(score - top) for score in scores) if top > -math.inf else 0.0
        logsumexp = top + math.log(total) if total else -math.inf
        yield [scores[v] for v in order], [ids[v] for v in order], logsumexp


@pytest.mark.parametrize("penalized", [False, True])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("k", [1, 4, 11])
def test_definition_is_sorting(k, noise, penalized):
    arguments = inputs(V=11, D=5, k=k, noise=noise)
    if penalized:
        arguments |= penalty(4, 30, seed=2)  # the last tokens are beyond its 64 bits
    arguments["x"][1] = math.nan
    arguments["weight"][[2, 7]] = 0.25  # a tie
    arguments["id_map"] = torch.arange(11) * 7 + 1
    keys, ids, logsumexp = reference(*positional(arguments))
    for row, expected in enumerate(oracle(*positional(arguments))):
        torch.testing.assert_close(keys[row], torch.tensor(expected[0]))
        assert ids[row].tolist() == expected[1]
        torch.testing.assert_close(logsumexp[row], torch.tensor(expected[2]))


def draws(function, count=4000, V=8, temperature=0.7):
    """How often each id is drawn from one row of logits, and its probability."""
    g = torch.Generator().manual_seed(1)
    x, weight = torch.randn(1, 4, generator=g), torch.randn(V, 4, generator=g)
    ids = function(
        x.expand(count, -1).contiguous(), weight, 1, None, torch.full((count,), temperature),
        torch.full((count,), 5), torch.arange(count), None, 0, None, None,
    )[1]  # fmt: skip
    return torch.bincount(ids[:, 0], minlength=V).double(), (x @ weight.T)[0].double()


def test_definition_draws_from_the_softmax():
    counts, logits = draws(reference)
    statistic, limit = chi_square(counts, (logits / 0.7).softmax(0))
    assert statistic < limit
    statistic, limit = chi_square(counts, logits.softmax(0))  # of another temperature
    assert statistic > limit


# --- backends -----------------------------------------------------------------------------------

SHAPES = [  # M, V, D, k
    (1, 1, 1, 1),
    (1, 97, 64, 1),
    (5, 130, 33, 8),
    (8, 133, 100, 16),
    (9, 49, 320, 49),
    (17, 70, 65, 64),
    (64, 100, 31, 5),
    (70, 65, 200, 2),
    (8, 700, 512, 16),
    (24, 300, 256, 8),
    (64, 70, 256, 20),
]
CASES = [  # the noise in turn: all pairs, and half of the triples
    (shape, (i + j) % 2 == 1, dtype)
    for i, shape in enumerate(SHAPES)
    for j, dtype in enumerate(DTYPES)
]


@pytest.mark.backend
@pytest.mark.parametrize(("shape", "noise", "dtype"), CASES)
def test_shapes(shape, noise, dtype, device):
    check(inputs(*shape, dtype=dtype, noise=noise, device=device))


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_of_the_weight(dtype, device):
    check(inputs(3, 5003, 40, 8, dtype=dtype, noise=True, device=device))


@pytest.mark.backend
def test_equal_logits_of_a_large_vocabulary(device, fitting):
    """The sum of a row is rescaled at every tile: by exactly 1, or the errors add up."""
    vocab = fitting(4_000, 150_000)
    logits = torch.linspace(-120.1, 119.7, 16, device=device)
    weight = torch.ones(vocab, 1, device=device)
    _, _, logsumexp = dspark_kernels.linear_topk(logits[:, None], weight, 1)
    expected = logits.double() + math.log(vocab)
    torch.testing.assert_close(logsumexp.double(), expected, rtol=0, atol=4e-5)


@pytest.mark.backend
def test_without_bias(device):
    arguments = inputs(noise=True, device=device)
    del arguments["bias"]
    check(arguments)


PENALIZED = [  # M, V, D, k, noise
    (1, 1, 1, 1, False),
    (5, 130, 33, 8, True),
    (17, 70, 65, 64, False),
    (40, 700, 16, 3, True),
    (70, 300, 96, 2, False),
]


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("M", "V", "D", "k", "noise"), PENALIZED)
def test_penalty(M, V, D, k, noise, dtype, device):
    arguments = inputs(M, V, D, k, dtype, noise, device=device)
    check(arguments | penalty(M, V, device=device))


@pytest.mark.backend
@pytest.mark.parametrize("ids", ["all", "shard", "map"])
def test_many_rows_in_chunks_of_the_vocabulary(ids, device, monkeypatch):
    """As Triton has them: of three, each is ranked, and penalized, by its own tokens."""
    if importlib.util.find_spec("triton"):
        monkeypatch.setattr("dspark_kernels.triton.linear_topk.CHUNK_ELEMENTS", 1024 * 70)
    arguments = inputs(M=70, V=2500, D=16, k=5, noise=True, device=device)
    arguments |= {
        "all": {},
        "shard": {"vocab_offset": 99},
        "map": {"id_map": torch.arange(2500, device=device) * 2 + 1},
    }[ids]
    check(arguments)
    check(arguments | penalty(70, 2000, device=device))


@pytest.mark.backend
@pytest.mark.parametrize("M", [5, 75])
def test_a_penalty_is_of_tokens_not_of_rows(M, device):
    """Of a reduced vocabulary, or of a shard; some tokens are beyond the bits."""
    arguments = inputs(M=M, V=60, k=7, device=device)
    id_map = torch.arange(60, device=device) * 5 + 3
    check(arguments | {"id_map": id_map} | penalty(M, 200, device=device))
    check(arguments | {"vocab_offset": 99} | penalty(M, 140, device=device))


@pytest.mark.backend
def test_a_penalty_of_infinite_and_missing_numbers(device):
    arguments = inputs(M=5, V=70, k=20, device=device) | penalty(5, 70, device=device)
    arguments["bias"][:20] = -math.inf
    arguments["bias"][60:] = math.nan
    arguments["bias"][33] = math.inf
    check(arguments)


@pytest.mark.backend
@pytest.mark.parametrize("entries", [1, 4])
def test_views_of_what_was_seen(entries, device):
    arguments = inputs(M=4, V=60, device=device)
    shared = penalty(4, 60, entries=entries, device=device)
    expected = dspark_kernels.linear_topk(**arguments | shared)
    shared["seen"] = shared["seen"].repeat_interleave(2, dim=1)[:, ::2]
    shared["repetition_penalty"] = shared["repetition_penalty"].repeat_interleave(2)[::2]
    found = dspark_kernels.linear_topk(**arguments | shared)
    assert all(map(torch.equal, found, expected))


@pytest.mark.backend
@pytest.mark.parametrize(("M", "B", "R"), [(0, 2, 2), (15, 3, 15), (15, 3, 3), (40, 1, 8)])
def test_rows_share_what_was_seen(M, B, R, device):
    arguments = inputs(M=M, V=90, device=device)
    shared = penalty(B, 90, entries=R, device=device)
    spread = {
        name: entry.repeat_interleave(M // len(entry), dim=0) for name, entry in shared.items()
    }
    expected = dspark_kernels.linear_topk(**arguments | spread)
    assert all(map(torch.equal, dspark_kernels.linear_topk(**arguments | shared), expected))


@pytest.mark.backend
def test_ids_of_a_reduced_vocabulary(device):
    arguments = inputs(V=60, k=7, noise=True, device=device)
    g = torch.Generator().manual_seed(3)
    id_map = torch.randperm(100_000, generator=g)[:60].sort().values
    check(arguments | {"id_map": id_map.to(device)})


@pytest.mark.backend
@pytest.mark.parametrize("offset", [1, 4, 70_003])
def test_a_shard_has_the_ids_and_the_noise_of_the_whole(offset, device):
    whole = inputs(V=offset + 40 if offset < 10 else 40, noise=True, device=device)
    if offset >= 10:
        check(whole | {"vocab_offset": offset})
        return
    shard = whole | {"weight": whole["weight"][offset:], "bias": whole["bias"][offset:]}
    check(shard | {"vocab_offset": offset})


@pytest.mark.backend
@pytest.mark.parametrize("k", [1, 5, 64])
def test_ties_go_to_the_lowest_row(k, device):
    arguments = inputs(M=6, V=150, k=k, device=device)
    for name in ("x", "weight", "bias"):
        arguments[name].round_()  # small integers: every sum is exact
    arguments["weight"][:] = arguments["weight"][torch.arange(150) % 3]
    arguments["weight"][:, 0] += torch.arange(150, device=device) % 3  # three distinct scores
    arguments["x"][:, 0] = 100
    arguments["bias"][:] = 0
    _, ids, _ = dspark_kernels.linear_topk(**arguments)
    first = min(k, 50)
    counting = torch.arange(first, device=device) * 3 + ids[:, :1] % 3
    assert torch.equal(ids[:, :first], counting)


@pytest.mark.backend
@pytest.mark.parametrize(
    ("k", "order"),
    [(1, "random"), (3, "random"), (3, "ascending"), (3, "equal"), (9, "ascending")],
)
def test_many_rows_and_many_tiles(k, order, device, fitting):
    """Programs of a GPU then tell each other what they found."""
    vocab, half = fitting(700, 60_000), torch.float16
    arguments = inputs(M=40, V=vocab, D=16, k=k, dtype=half, noise=True, device=device)
    if order != "random":
        arguments["temperature"][:] = 0
        arguments["x"][:] = torch.arange(1, 41, device=device)[:, None]
        arguments["bias"][:] = 0
        arguments["weight"][:] = 1
    if order == "ascending":
        arguments["weight"].mul_(torch.arange(vocab, device=device)[:, None] / vocab)
    check(arguments)
    if order == "equal":
        _, ids, _ = dspark_kernels.linear_topk(**arguments)
        assert torch.equal(ids, torch.arange(k, device=device).expand(40, -1))


@pytest.mark.backend
@pytest.mark.parametrize("noise", [False, True])
def test_nan_and_infinite_scores(noise, device):
    arguments = inputs(M=5, V=70, k=20, noise=noise, device=device)
    arguments["x"][0] = math.nan  # every score -inf
    bias = arguments["bias"]
    bias[:30] = -math.inf
    bias[60:] = math.nan
    check(arguments)
    bias[:] = -math.inf
    _, ids, logsumexp = dspark_kernels.linear_topk(**arguments)
    assert torch.equal(ids, torch.arange(20, device=device).expand(5, -1))
    assert (logsumexp == -math.inf).all()
    bias[33] = math.inf
    keys, ids, logsumexp = dspark_kernels.linear_topk(
        **arguments | {"x": arguments["x"].nan_to_num()}
    )
    assert (ids[:, 0] == 33).all() and (keys[:, 0] == math.inf).all()
    assert (logsumexp == math.inf).all()


@pytest.mark.backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_views_and_unused_memory(dtype, device):
    plain = inputs(M=5, V=67, D=40, k=4, dtype=dtype, noise=True, device=device)
    views = dict(plain)
    for name in ("x", "weight"):
        rows, columns = plain[name].shape
        poisoned = torch.full((rows + 2, 2 * columns + 3), math.nan, dtype=dtype, device=device)
        poisoned[1:-1, 3 : 3 + columns] = plain[name]
        views[name] = poisoned[1:-1, 3 : 3 + columns]
    views["bias"] = plain["bias"].repeat_interleave(2)[::2]
    views["seed"] = plain["seed"].repeat_interleave(3)[::3]
    check(views)
    views["x"] = plain["x"].T.contiguous().T
    views["weight"] = plain["weight"].T.contiguous().T
    check(views)


@pytest.mark.backend
@pytest.mark.parametrize("noise", [False, True])
def test_no_rows(noise, device):
    keys, ids, logsumexp = dspark_kernels.linear_topk(**inputs(M=0, noise=noise, device=device))
    assert keys.shape == ids.shape == (0, 3) and logsumexp.shape == (0,)


@pytest.mark.backend
@pytest.mark.parametrize(
    ("M", "B"), [(0, 2), (1, 1), (5, 1), (15, 3), (15, 5), (7, 7), (40, 8), (70, 1), (70, 35)]
)
def test_rows_share_their_options(M, B, device):
    arguments = inputs(M=M, noise=True, device=device)
    options = inputs(M=B, noise=True, seed=1, device=device)
    shared = {name: options[name] for name in ("temperature", "seed")}
    spread = {name: option.repeat_interleave(M // B) for name, option in shared.items()}
    expected = dspark_kernels.linear_topk(**arguments | spread)
    found = dspark_kernels.linear_topk(**arguments | shared)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_the_cpu_a_row_has_the_same_bits_among_others(dtype):
    """Draws from lists are the same for trees and chains because of it."""
    if backend_of("linear_topk", "cpu")[0] != "native":
        pytest.skip("other backends round sums by the number of rows")
    arguments = inputs(M=70, V=900, D=300, k=64, dtype=dtype)
    whole = dspark_kernels.linear_topk(**arguments)
    for count in (1, 2, 5, 16, 33):
        alone = dspark_kernels.linear_topk(**arguments | {"x": arguments["x"][:count]})
        for keys_or_ids, among in zip(alone[:2], whole[:2], strict=True):
            assert torch.equal(keys_or_ids, among[:count])


@pytest.mark.backend
def test_a_row_does_not_depend_on_the_others(device):
    arguments = inputs(M=40, V=200, D=96, k=8, noise=True, device=device)
    whole = dspark_kernels.linear_topk(**arguments)
    rows = {name: arguments[name][3:7] for name in ("x", "temperature", "seed", "position")}
    for all_rows, some_rows in zip(
        whole, dspark_kernels.linear_topk(**arguments | rows), strict=True
    ):
        torch.testing.assert_close(all_rows[3:7], some_rows, rtol=1e-6, atol=1e-6)


@pytest.mark.backend
def test_draws_from_the_softmax(device):
    def public(x, weight, k, bias, temperature, seed, position, *_none):
        tensors = (t.to(device) for t in (x, weight, temperature, seed, position))
        x, weight, temperature, seed, position = tensors
        result = dspark_kernels.linear_topk(
            x, weight, k, temperature=temperature, seed=seed, position=position
        )
        return [tensor.cpu() for tensor in result]

    counts, logits = draws(public, count=256)
    statistic, limit = chi_square(counts, (logits / 0.7).softmax(0))
    assert statistic < limit


@pytest.mark.backend
def test_outputs_require_no_gradient(device):
    arguments = inputs(device=device)
    arguments["weight"].requires_grad_()
    assert not any(t.requires_grad for t in dspark_kernels.linear_topk(**arguments))


# --- errors and registration --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": None}, TypeError, r"x must be a tensor of shape \[M, D\], got NoneType"),
        ({"x": torch.zeros(4, 32).long()}, TypeError, "x must have dtype float32 or bfloat16"),
        ({"x": torch.zeros(32)}, ValueError, r"x must have shape \[M, D\], got \[32\]"),
        ({"x": torch.zeros(4, 0)}, ValueError, r"x must have at least one column, got \[4, 0\]"),
        ({"weight": torch.zeros(50, 31)}, ValueError, r"shape \[V, D\] with D=32, got \[50, 31\]"),
        (
            {"weight": torch.zeros(50, 32).half()},
            TypeError,
            "weight must have dtype float32",
        ),
        ({"weight": torch.zeros(50, 32, device="meta")}, ValueError, "weight must be on cpu"),
        ({"k": 0}, ValueError, "k must be from 1 to 64, got 0"),
        ({"k": 65}, ValueError, "k must be from 1 to 64, got 65"),
        ({"k": 51}, ValueError, "k must be at most V=50, got 51"),
        ({"k": 2.0}, TypeError, "k must be an int from 1 to 64, got 2.0"),
        ({"bias": torch.zeros(49)}, ValueError, "bias must have shape"),
        ({"bias": torch.zeros(50).half()}, TypeError, "bias must have dtype float32 like x"),
        ({"temperature": torch.zeros(4).half()}, TypeError, "temperature must have dtype float32"),
        (
            {"temperature": torch.zeros(3)},
            ValueError,
            r"temperature must have shape \[B\] with B dividing M=4, got \[3\]",
        ),
        ({"temperature": torch.zeros(0)}, ValueError, r"with B dividing M=4, got \[0\]"),
        ({"temperature": torch.zeros(4, 1)}, ValueError, r"temperature must have shape \[B\], got"),
        ({"temperature": torch.zeros(2)}, ValueError, r"seed must .* \[B\] with B=2, got \[4\]"),
        ({"temperature": -torch.ones(4)}, ValueError, "temperature must hold values >= 0, got -1"),
        ({"seed": None}, ValueError, "seed must be given together with temperature"),
        ({"position": None}, ValueError, "position must be given together with temperature"),
        ({"seed": torch.zeros(4)}, TypeError, "seed must have dtype int64"),
        (
            {"position": torch.zeros(2).long()},
            ValueError,
            r"position must have shape \[M\] with M=4",
        ),
        ({"id_map": torch.zeros(49).long()}, ValueError, "id_map must have shape"),
        ({"id_map": torch.arange(50).int()}, TypeError, "id_map must have dtype int64"),
        ({"vocab_offset": -1}, ValueError, "vocab_offset must be >= 0, got -1"),
        (
            {"vocab_offset": 1, "id_map": torch.arange(50)},
            ValueError,
            "vocab_offset must be 0 with id_map, got 1",
        ),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=f"linear_topk: .*{message}"):
        dspark_kernels.linear_topk(**inputs(noise=True) | change)


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_errors_of_a_penalty(change, error, message):
    with pytest.raises(error, match=f"linear_topk: {message}"):
        dspark_kernels.linear_topk(**inputs() | penalty(4, 50) | change)


@pytest.mark.parametrize("noise", [False, True])
def test_opcheck(noise, device):
    arguments = inputs(noise=noise, device=device)
    for less in ({}, penalty(4, 50, device=device)):
        given = positional(arguments | less)
        torch.library.opcheck(torch.ops.dspark.linear_topk.default, given)
