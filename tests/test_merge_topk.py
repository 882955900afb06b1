import math

import pytest
import torch

import dspark_kernels
from dspark_kernels.reference.merge_topk import merge_topk as reference


def inputs(S=3, M=4, K=5, k=4, ties=False, seed=0, device="cpu"):
    """Arguments of the op by name; ids are distinct within a row."""
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(S, M, K, generator=g)
    if ties:
        keys = keys.round()
    keys = keys.sort(dim=-1, descending=True).values
    ids = torch.stack([torch.randperm(10 * S * K, generator=g)[: S * K] for _ in range(M)] or [])
    return {
        "keys": keys.to(device),
        "ids": ids.view(M, S, K).transpose(0, 1).contiguous().to(device),
        "logsumexp": (keys.logsumexp(-1) + torch.rand(S, M, generator=g)).to(device),
        "k": k,
    }


def check(arguments):
    result = dspark_kernels.merge_topk(**arguments)
    keys, ids, logsumexp = reference(*arguments.values())
    assert torch.equal(result[0], keys) and torch.equal(result[1], ids)
    torch.testing.assert_close(result[2], logsumexp, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_definition_is_sorting(ties):
    arguments = inputs(ties=ties)
    keys, ids, logsumexp = reference(*arguments.values())
    for row in range(4):
        pairs = zip(
            arguments["keys"][:, row].flatten().tolist(),
            arguments["ids"][:, row].flatten().tolist(),
            strict=True,
        )
        expected = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:4]
        assert list(zip(keys[row].tolist(), ids[row].tolist(), strict=True)) == expected
        total = sum(math.exp(x) for x in arguments["logsumexp"][:, row].tolist())
        assert math.isclose(logsumexp[row], math.log(total), rel_tol=1e-5)


@pytest.mark.backend
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("S", "M", "K", "k"),
    [(1, 1, 1, 1), (1, 3, 8, 8), (2, 5, 7, 3), (4, 9, 64, 64), (8, 2, 1, 5), (3, 0, 4, 2)],
)
def test_shapes(S, M, K, k, ties, device):
    if M:
        check(inputs(S, M, K, k, ties, device=device))
        return
    empty = torch.zeros(S, 0, K, device=device)
    keys, ids, logsumexp = dspark_kernels.merge_topk(empty, empty.long(), empty[:, :, 0], k)
    assert keys.shape == ids.shape == (0, k) and logsumexp.shape == (0,)


@pytest.mark.backend
def test_infinite_keys(device):
    arguments = inputs(device=device)
    arguments["keys"][:, 1] = -math.inf
    arguments["keys"][:2, 2, 3:] = -math.inf
    arguments["logsumexp"][:, 1] = -math.inf
    arguments["keys"][1, 3, 0] = math.inf
    arguments["logsumexp"][1, 3] = math.inf
    check(arguments)


@pytest.mark.backend
def test_views(device):
    arguments = inputs(device=device)
    for name in ("keys", "ids"):
        tensor = arguments[name]
        arguments[name] = torch.stack((tensor, tensor + 1), -1)[..., 0].transpose(0, 2)
        arguments[name] = arguments[name].contiguous().transpose(0, 2)
    arguments["logsumexp"] = arguments["logsumexp"].T.contiguous().T
    check(arguments)


@pytest.mark.backend
def test_shards_merge_to_the_whole(device):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 16, generator=g).to(device), torch.randn(90, 16, generator=g)
    weight = weight.to(device)
    whole = dspark_kernels.linear_topk(x, weight, 6)
    shards = [
        dspark_kernels.linear_topk(x, part, 6, vocab_offset=30 * i)
        for i, part in enumerate(weight.split(30))
    ]
    merged = dspark_kernels.merge_topk(
        *(torch.stack(part) for part in zip(*shards, strict=True)), 6
    )
    assert torch.equal(merged[1], whole[1])
    torch.testing.assert_close(merged[0], whole[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged[2], whole[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"keys": torch.zeros(3, 4)}, ValueError, r"keys must have shape \[S, M, K\]"),
        ({"keys": torch.zeros(3, 4, 5).half()}, TypeError, "keys must have dtype float32"),
        ({"ids": torch.zeros(3, 4, 6).long()}, ValueError, "ids must have shape .* with K=5"),
        ({"ids": torch.zeros(3, 4, 5).int()}, TypeError, "ids must have dtype int64"),
        ({"logsumexp": torch.zeros(3, 5)}, ValueError, "logsumexp must have shape .* with M=4"),
        ({"logsumexp": torch.zeros(3, 4).half()}, TypeError, "logsumexp must have dtype float32"),
        ({"k": 0}, ValueError, "k must be from 1 to 64, got 0"),
        ({"k": 65}, ValueError, "k must be from 1 to 64, got 65"),
        ({"k": 16}, ValueError, "k must be at most S·K=15, got 16"),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=f"merge_topk: {message}"):
        dspark_kernels.merge_topk(**inputs() | change)


def test_opcheck(device):
    arguments = tuple(inputs(device=device).values())
    torch.library.opcheck(torch.ops.dspark.merge_topk.default, arguments)
