import math

import pytest
import torch
from chi_square import chi_square

import dspark_kernels
from dspark_kernels.reference.chain_reject import chain_reject as reference
from dspark_kernels.reference.noise import STREAM_ACCEPT, STREAM_RESIDUAL, gumbel, uniform
from dspark_kernels.reference.sample_logits import sample_logits


def inputs(B=4, K=3, V=11, seed=0, dtype=torch.float32, similar=1.0):
    """Arguments of the op, the draft close enough to the target for chains of every length."""
    g = torch.Generator().manual_seed(seed)
    target = torch.randn(B, K + 1, V, generator=g)
    draft = target[:, :K] + similar * torch.randn(B, K, V, generator=g)
    temperature = torch.tensor([0.5, 1.0, 1.5, 0.8]).repeat(B)[:B]
    seeds = torch.randint(-(2**63), 2**63 - 1, (B,), generator=g)
    position = torch.arange(B) * 2**31 + 5
    rows = torch.arange(K) + position[:, None]
    tokens = sample_logits(
        draft.flatten(0, 1), None, temperature.repeat_interleave(K), seeds.repeat_interleave(K),
        rows.flatten(), None, None, None, None, None,
    ).view(B, K)  # fmt: skip
    return tokens, draft.to(dtype), target.to(dtype), temperature, seeds, position


def oracle(tokens, draft, target, temperature, seed, position, b):
    """One request in float64 loops; also how close any decision was."""
    length, vocab = draft.shape[1:]
    tau, ids = float(temperature[b]), torch.arange(vocab)
    softmax = lambda row: (torch.where(row.isnan(), -math.inf, row.double()) / tau).softmax(0)  # noqa: E731
    margin, emitted = math.inf, []
    for i in range(length + 1):
        p, row = softmax(target[b, i]), position[b : b + 1] + i
        token = int(tokens[b, i]) if i < length else -1
        weights = p
        if 0 <= token < vocab:
            q = softmax(draft[b, i])
            u = float(uniform(seed[b : b + 1], row, torch.zeros(1).long(), STREAM_ACCEPT))
            margin = min(margin, abs(u - float(p[token] / q[token])))
            if u < p[token] / q[token]:
                emitted.append(token)
                continue
            weights = (p - q).clamp(min=0)
        scores = weights.log() + gumbel(seed[b : b + 1], row, ids, STREAM_RESIDUAL)[0].double()
        best = scores.sort(descending=True).values
        margin = min(margin, float(best[0] - best[1])) if vocab > 1 else margin
        return [*emitted, int(scores.argmax())], margin


def check(function, arguments, device="cpu"):
    tokens, count = function(*(part.to(device) for part in arguments))
    assert tokens.dtype == torch.int64 and count.dtype == torch.int32
    for b in range(len(count)):
        expected, margin = oracle(*arguments, b)
        assert margin > 1e-5, "the case is within rounding: choose another seed"
        assert count[b] == len(expected)
        assert tokens[b].tolist() == expected + [-1] * (tokens.shape[1] - len(expected))
    return count


CASES = {
    "plain": {"B": 64},
    "one_token": {"K": 1},
    "no_draft": {"K": 0},
    "one_word": {"V": 1},
    "long": {"K": 33, "B": 8, "similar": 0.1},
    "wide": {"V": 1003, "B": 8, "similar": 0.3},
    "slices": {"V": 5001, "similar": 0.3},
    "far": {"similar": 4.0, "B": 32},
    "empty": {"B": 0},
}


@pytest.mark.parametrize("name", CASES)
def test_definition_is_float64_loops(name):
    count = check(reference, inputs(**CASES[name]))
    assert name != "plain" or set(count.tolist()) == {1, 2, 3, 4}


def ragged(arguments):
    arguments[0][0, 0], arguments[0][1, 1], arguments[0][2, 2], arguments[0][3, 0] = (
        -1,
        -1,
        10**12,
        11,
    )


def test_definition_ragged():
    arguments = inputs(similar=0.1)
    ragged(arguments)
    count = check(reference, arguments)
    assert (count <= torch.tensor([1, 2, 3, 1])).all()


def spoil(arguments, how):
    tokens, draft, target, *_ = arguments
    if how == "nan":
        draft[:, 0, ::3], target[:, 0, 1::3] = math.nan, math.nan
    elif how == "minus_inf":
        draft[:, 0, ::3], target[:, 0, 1::3] = -math.inf, -math.inf
    elif how == "equal":
        target[:, :-1] = draft
    elif how == "impossible_draft":
        draft.scatter_(2, tokens[..., None], -math.inf)  # q of the token is 0: p / q is infinite


@pytest.mark.parametrize("how", ["nan", "minus_inf"])
def test_definition_hostile_values(how):
    arguments = inputs()
    spoil(arguments, how)
    check(reference, arguments)


def test_definition_rows_of_nan_yield_an_id_in_range():
    arguments = inputs()
    arguments[1][:], arguments[2][:] = math.nan, math.nan
    tokens, count = reference(*arguments)
    assert (count == 1).all() and ((tokens[:, 0] >= 0) & (tokens[:, 0] < 11)).all()


def first_two_tokens(function, draw_stream, draws=50_000, vocab=4, device="cpu"):
    """Counts of the first emitted token, and of the second after each first; and their laws."""
    g = torch.Generator().manual_seed(1)
    target = torch.randn(1, vocab, generator=g), torch.randn(vocab, vocab, generator=g)
    draft = [part + torch.randn(part.shape, generator=g) for part in target]
    seed = torch.arange(draws)
    ids, tokens = torch.arange(vocab), []
    rows = draft[0].expand(draws, -1)
    for i in range(2):
        noise = gumbel(seed, torch.full_like(seed, i), ids, draw_stream)
        tokens.append((rows + noise).argmax(dim=1))
        rows = draft[1][tokens[0]]
    first, second = tokens
    draft_logits = torch.stack((draft[0].expand(draws, -1), draft[1][first]), 1)
    target_logits = torch.stack(
        (target[0].expand(draws, -1), target[1][first], torch.zeros(draws, vocab)), 1
    )
    arguments = (
        torch.stack(tokens, 1), draft_logits, target_logits, torch.ones(draws), seed,
        torch.zeros(draws).long(),
    )  # fmt: skip
    emitted, count = (part.cpu() for part in function(*(part.to(device) for part in arguments)))
    p_first = target[0][0].softmax(0)
    first_counts = torch.bincount(emitted[:, 0], minlength=vocab).double()
    followed = count > 1
    pairs = emitted[followed, 0] * vocab + emitted[followed, 1]
    pair_counts = torch.bincount(pairs, minlength=vocab**2).view(vocab, vocab).double()
    return first_counts, p_first.double(), pair_counts, target[1].softmax(1).double()


@pytest.mark.parametrize("function", [
    reference, pytest.param(dspark_kernels.chain_reject, marks=pytest.mark.backend)
])  # fmt: skip
def test_the_emitted_law_is_the_targets(function, device):
    first, p_first, pairs, p_second = first_two_tokens(function, draw_stream=0, device=device)
    statistic, limit = chi_square(first, p_first)
    assert statistic < limit
    for row, probs in zip(pairs, p_second, strict=True):
        statistic, limit = chi_square(row, probs)
        assert statistic < limit


def test_negative_control_shared_noise_is_not_lossless():
    """Drafts drawn with the residual's own noise depend on it: the same test must fail."""
    first, p_first, *_ = first_two_tokens(reference, draw_stream=STREAM_RESIDUAL)
    statistic, limit = chi_square(first, p_first)
    assert statistic > 2 * limit


@pytest.mark.backend
@pytest.mark.parametrize("name", CASES)
def test_backend(name, device):
    check(dspark_kernels.chain_reject, inputs(**CASES[name]), device)


@pytest.mark.backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_backend_dtypes(dtype, device):
    check(dspark_kernels.chain_reject, inputs(B=32, V=301, similar=0.3, dtype=dtype), device)


@pytest.mark.backend
def test_backend_ragged(device):
    arguments = inputs(similar=0.1)
    ragged(arguments)
    check(dspark_kernels.chain_reject, arguments, device)


@pytest.mark.backend
@pytest.mark.parametrize("how", ["nan", "minus_inf", "equal", "impossible_draft"])
def test_backend_hostile_values(how, device):
    arguments = inputs(B=8)
    spoil(arguments, how)
    outputs = dspark_kernels.chain_reject(*(part.to(device) for part in arguments))
    for one, other in zip(outputs, reference(*arguments), strict=True):
        assert torch.equal(one.cpu(), other)


@pytest.mark.backend
def test_backend_views(device):
    arguments = [part.to(device) for part in inputs()]
    views = [part.repeat_interleave(2, dim=-1)[..., ::2] for part in arguments]
    for one, other in zip(
        dspark_kernels.chain_reject(*views), dspark_kernels.chain_reject(*arguments), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("index", "value", "error", "message"),
    [
        (0, torch.zeros(4, 3), TypeError, "draft_tokens must have dtype int64"),
        (1, torch.zeros(4, 2, 11), ValueError, "draft_logits must have shape"),
        (2, torch.zeros(4, 3, 11), ValueError, "target_logits must have shape"),
        (2, torch.zeros(4, 4, 11).half(), TypeError, "target_logits must have dtype float32"),
        (3, torch.zeros(4), ValueError, "temperature must hold values"),
        (4, torch.zeros(4), TypeError, "seed must have dtype int64"),
        (5, torch.zeros(3).long(), ValueError, "position must have shape"),
    ],
)
def test_errors(index, value, error, message):
    arguments = list(inputs())
    arguments[index] = value
    with pytest.raises(error, match=f"chain_reject: {message}"):
        dspark_kernels.chain_reject(*arguments)


def test_an_empty_vocabulary_is_refused():
    arguments = list(inputs())
    arguments[1:3] = torch.zeros(4, 3, 0), torch.zeros(4, 4, 0)
    with pytest.raises(ValueError, match="target_logits must have at least one column"):
        dspark_kernels.chain_reject(*arguments)


def test_opcheck(device):
    arguments = tuple(part.to(device) for part in inputs())
    torch.library.opcheck(torch.ops.dspark.chain_reject.default, arguments)
