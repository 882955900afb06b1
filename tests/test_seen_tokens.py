import pytest
import torch
from trees import random_tree, to

import dspark_kernels
from dspark_kernels.reference.seen_tokens import seen_tokens as reference


def inputs(B=3, S=40, V=300, N=9, slots=None, beyond=0, seed=0):
    """Arguments of the op in its order. N: nodes of the trees, 0 for none; slots: how many draws of
    theirs, None for all; beyond: how many ids outside the vocabulary there are on either side."""
    g = torch.Generator().manual_seed(seed)
    history = torch.randint(-beyond, V + beyond, (B, S), generator=g)
    lengths = torch.randint(0, S + 1, (B,), generator=g).int()
    lengths[:1] = S
    if N == 0:
        return history, lengths, V, None, None, None
    tree = random_tree(B, N, seed=seed)
    tokens = torch.randint(-beyond, V + beyond, (B, N), generator=g)
    if slots is not None:
        slots = torch.randperm(B * N, generator=g)[:slots].sort().values
    return history, lengths, V, tokens, tree.ancestors, slots


def oracle(history, lengths, vocab_size, tokens, ancestors, slots):
    """The definition in plain loops: a set of tokens for each draw."""
    draws = []
    for b, length in enumerate(lengths.tolist()):
        text = history[b, :length].tolist()
        for words in [None] if tokens is None else ancestors[b].tolist():
            nodes = range(0 if words is None else tokens.shape[1])
            path = [int(tokens[b, j]) for j in nodes if words[j // 64] >> j % 64 & 1]
            draws.append({token for token in text + path if 0 <= token < vocab_size})
    return draws if slots is None else [draws[slot] for slot in slots.tolist()]


def check(function, arguments, device="cpu"):
    seen = function(*to(arguments, device))
    assert seen.dtype == torch.int64
    words = (arguments[2] + 63) // 64
    sets = [{t for t in range(words * 64) if row[t // 64] >> t % 64 & 1} for row in seen.tolist()]
    assert seen.shape == (len(sets), words) and sets == oracle(*arguments)
    return sets


CASES = {
    "plain": {},
    "requests": {"N": 0},
    "one_request": {"B": 1, "N": 0, "S": 1000},
    "slots": {"slots": 11},
    "no_slots": {"slots": 0},
    "words": {"N": 70, "S": 5, "V": 640},
    "one_word": {"V": 64},
    "one_token": {"V": 1},
    "odd": {"V": 129, "S": 33},
    "foreign": {"beyond": 200},
    "no_history": {"S": 0},
    "large_tree": {"B": 2, "N": 256, "slots": 100},
    "no_request": {"B": 0},
}


@pytest.mark.parametrize("name", CASES)
def test_definition_is_plain_loops(name):
    sets = check(reference, inputs(**CASES[name]))
    if name == "plain":  # the case means something
        assert len(set(map(len, sets))) > 3


@pytest.mark.backend
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_backend_is_plain_loops(name, seed, device):
    check(torch.ops.dspark.seen_tokens, inputs(**CASES[name], seed=seed), device)


@pytest.mark.backend
def test_backend_more_tokens_than_a_block_of_a_gpu_holds(device):
    history = torch.tensor([[0, 262143, 262144, 300001, 300000, 9]])
    arguments = history, torch.tensor([6]).int(), 300001, None, None, None
    seen = torch.ops.dspark.seen_tokens(*to(arguments, device))
    assert torch.equal(seen.cpu(), reference(*arguments))
    assert (seen != 0).sum() == 4


@pytest.mark.backend
def test_backend_takes_views(device):
    arguments = inputs(S=50, slots=9)
    expected = reference(*arguments)
    history, lengths, V, tokens, ancestors, slots = to(arguments, device)
    history = torch.nn.functional.pad(history, (3, 5), value=7)[:, 3:-5]
    views = (part.repeat_interleave(2, dim=-1)[..., ::2] for part in (lengths, tokens, ancestors))
    lengths, tokens, ancestors = views
    slots = slots.repeat_interleave(2)[::2]
    for given in (history, history.repeat_interleave(2, dim=1)[:, ::2]):
        seen = torch.ops.dspark.seen_tokens(given, lengths, V, tokens, ancestors, slots)
        assert torch.equal(seen.cpu(), expected)


def test_public_call(device):
    names = "tokens", "ancestors", "slots"
    for case in CASES.values():
        arguments = inputs(**case)
        given = to(arguments, device)
        seen = dspark_kernels.seen_tokens(*given[:3], **dict(zip(names, given[3:], strict=True)))
        assert torch.equal(seen.cpu(), reference(*arguments))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"history": torch.zeros(3, 40)}, TypeError, "history must have dtype int64, got float32"),
        ({"lengths": torch.zeros(2).int()}, ValueError, "lengths must have shape"),
        ({"lengths": torch.full((3,), 41).int()}, ValueError, "lengths must hold values from 0 to"),
        ({"vocab_size": 0}, ValueError, "vocab_size must be from 1 to 2147483647, got 0"),
        ({"tokens": None}, ValueError, "tokens must be given together with ancestors, got None"),
        ({"ancestors": None}, TypeError, r"ancestors must be a tensor of shape \[B, N, 1\], got"),
        ({"tokens": torch.zeros(3, 300).long()}, ValueError, "tokens must have 1 to 256 columns"),
        ({"ancestors": torch.zeros(3, 9, 2).long()}, ValueError, "ancestors must have shape"),
        ({"slots": torch.tensor([0, 27])}, ValueError, "slots must hold values from 0 to 26"),
        ({"slots": torch.tensor([-1])}, ValueError, "slots must hold values from 0 to 26"),
    ],
)
def test_errors(change, error, message):
    names = "history", "lengths", "vocab_size", "tokens", "ancestors", "slots"
    arguments = dict(zip(names, inputs(), strict=True)) | change
    with pytest.raises(error, match=f"^seen_tokens: {message}"):
        dspark_kernels.seen_tokens(**arguments)


def test_opcheck(device):
    for case in ({"N": 0}, {}, {"slots": 4}):
        torch.library.opcheck(torch.ops.dspark.seen_tokens.default, to(inputs(**case), device))
