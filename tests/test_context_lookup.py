import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dspark_kernels
from dspark_kernels.reference.context_lookup import context_lookup as reference


def oracle(history, max_ngram, min_ngram, num_paths, path_length):
    """The definition in plain loops, for one history without padding."""
    length = len(history)
    found = []
    for end in range(length - 1):
        match = 0
        while match < max_ngram and match <= end and history[end - match] == history[-1 - match]:
            match += 1
        if match >= min_ngram:
            found.append((match, end))
    paths, lengths = [], []
    for match, end in sorted(found, reverse=True):
        path = history[end + 1 : end + 1 + path_length]
        if len(paths) < num_paths and not any(
            all(a == b for a, b in zip(path, other, strict=False)) for other in paths
        ):
            paths.append(path)
            lengths.append(match)
    empty = num_paths - len(paths)
    paths = [(path * path_length)[:path_length] for path in paths]
    return paths + [[-1] * path_length] * empty, lengths + [0] * empty


def check(function, rows, device="cpu", padding=3, **options):
    """`function` on a batch of histories, padded by tokens that would match, against the oracle."""
    capacity = max(map(len, rows), default=0) + padding
    history = torch.tensor(
        [row + (row[-1:] or [0]) * (capacity - len(row)) for row in rows], dtype=torch.int64
    ).view(len(rows), capacity)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    paths, match_length = function(history.to(device), lengths.to(device), *options.values())
    assert paths.dtype == torch.int64 and match_length.dtype == torch.int32
    for b, row in enumerate(rows):
        expected_paths, expected_lengths = oracle(row, **options)
        assert match_length[b].tolist() == expected_lengths
        assert paths[b].tolist() == expected_paths


def public(history, lengths, max_ngram, min_ngram, num_paths, path_length):
    return dspark_kernels.context_lookup(
        history, lengths, max_ngram=max_ngram, min_ngram=min_ngram, num_paths=num_paths,
        path_length=path_length,
    )  # fmt: skip


histories = st.lists(st.lists(st.integers(0, 2), max_size=40), min_size=1, max_size=3)
options = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.integers(1, 8)).map(
    lambda o: {
        "max_ngram": max(o[:2]), "min_ngram": min(o[:2]), "num_paths": o[2], "path_length": o[3]
    }
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(histories, options)
def test_definition_is_plain_loops(rows, options):
    check(reference, rows, **options)


def test_definition_by_example():
    #          0  1  2  3  4  5  6  7  8  9
    history = [7, 1, 2, 3, 9, 1, 2, 4, 1, 2]
    paths, match_length = reference(torch.tensor([history]), torch.tensor([10]), 3, 1, 3, 4)
    assert paths.tolist() == [[[4, 1, 2, 4], [3, 9, 1, 2], [-1] * 4]]
    assert match_length.tolist() == [[2, 2, 0]]


def test_definition_a_longer_match_wins_over_a_later_one():
    history = [5, 1, 2, 8, 6, 2, 9, 5, 1, 2]
    paths, match_length = reference(torch.tensor([history]), torch.tensor([10]), 3, 1, 2, 1)
    assert paths.tolist() == [[[8], [9]]]
    assert match_length.tolist() == [[3, 1]]


@pytest.mark.backend
@settings(max_examples=200, deadline=None)
@given(histories, options)
def test_backend_is_plain_loops(device, rows, options):
    check(public, rows, device, **options)


@pytest.mark.backend
@pytest.mark.parametrize("vocab", [1, 3, 50])
def test_backend_long_histories(vocab, device):
    generator = torch.Generator().manual_seed(vocab)
    rows = [
        torch.randint(0, vocab, (length,), generator=generator).tolist()
        for length in (1, 63, 64, 65, 300, 1000)
    ]
    check(public, rows, device, max_ngram=4, min_ngram=2, num_paths=5, path_length=10)
    check(public, rows, device, max_ngram=16, min_ngram=1, num_paths=16, path_length=64)


@pytest.mark.backend
def test_backend_view_of_a_larger_buffer(device):
    buffer = torch.randint(0, 4, (3, 200), device=device)
    lengths = torch.tensor([100, 7, 0], dtype=torch.int32, device=device)
    view = buffer[:, ::2]
    for one, other in zip(
        public(view, lengths, 3, 1, 4, 6),
        reference(view.cpu(), lengths.cpu(), 3, 1, 4, 6),
        strict=True,
    ):
        assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_empty(shape, device):
    history = torch.zeros(shape, dtype=torch.int64, device=device)
    lengths = torch.zeros(shape[0], dtype=torch.int32, device=device)
    paths, match_length = public(history, lengths, 3, 2, 4, 5)
    assert paths.shape == (shape[0], 4, 5) and (paths == -1).all()
    assert match_length.shape == (shape[0], 4) and (match_length == 0).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"history": torch.zeros(2, 9)}, TypeError, "history must have dtype int64"),
        ({"history": torch.zeros(9).long()}, ValueError, "history must have shape"),
        ({"lengths": torch.zeros(3).int()}, ValueError, "lengths must have shape"),
        (
            {"lengths": torch.tensor([1, 10]).int()},
            ValueError,
            "lengths must hold values from 0 to 9",
        ),
        (
            {"lengths": torch.tensor([1, -1]).int()},
            ValueError,
            "lengths must hold values from 0 to 9",
        ),
        ({"max_ngram": 17}, ValueError, "max_ngram must be from 1 to 16"),
        ({"min_ngram": 0}, ValueError, "min_ngram must be from 1 to 3"),
        ({"min_ngram": 4}, ValueError, "min_ngram must be from 1 to 3"),
        ({"num_paths": 17}, ValueError, "num_paths must be from 1 to 16"),
        ({"path_length": 65}, ValueError, "path_length must be from 1 to 64"),
    ],
)
def test_errors(change, error, message):
    good = {"history": torch.zeros(2, 9).long(), "lengths": torch.ones(2).int(), "max_ngram": 3}
    with pytest.raises(error, match=f"context_lookup: {message}"):
        dspark_kernels.context_lookup(**good | change)


def test_opcheck(device):
    history = torch.randint(0, 4, (2, 30), device=device)
    lengths = torch.tensor([30, 11], dtype=torch.int32, device=device)
    torch.library.opcheck(torch.ops.dspark.context_lookup.default, (history, lengths, 3, 2, 4, 5))
