import math

import pytest
import torch
from test_accept_tree import ERRORS as TREE_ERRORS
from test_accept_tree import arguments as tree_arguments
from test_accept_tree import assert_outputs, compacted, same_bits
from trees import poisoned_caches, random_tree

import dspark_kernels
from dspark_kernels import DraftTree
from dspark_kernels.reference.typical_accept import typical_accept as reference

VOCAB = 8


def typical_nodes(tree, logits, temperature, epsilon, delta, b):
    """For each node of request b whether it is typical given its parent, in float64 loops."""
    tau = 1.0 if temperature is None else float(temperature[b]) or 1.0
    typical, margin = [], math.inf
    for node in range(int(tree.num_nodes[b])):
        row = logits[b, max(int(tree.parents[b, node]), 0)].double()
        p = (torch.where(row.isnan(), -math.inf, row) / tau).softmax(0).tolist()
        entropy = -sum(x * math.log(x) for x in p if x > 0)
        threshold = min(epsilon, delta * math.exp(-entropy))
        token = int(tree.tokens[b, node])
        prob = p[token] if 0 <= token < len(p) else 0.0
        typical.append(prob > threshold)
        if not math.isnan(prob):
            margin = min(margin, abs(prob / threshold - 1))
    return typical, margin


def walk(tree, typical, b, max_depth):
    """The path of request b to its deepest accepted node, in plain loops."""
    paths = {0: [0]}
    for node in range(1, len(typical)):
        above = paths.get(int(tree.parents[b, node]))
        if typical[node] and above is not None and len(above) <= max_depth:
            paths[node] = [*above, node]
    return max(
        paths.values(), key=len
    )  # the first of the longest: dicts keep the order of the nodes


def check(function, nodes, batch=4, temperature=None, epsilon=0.3, delta=0.09, max_depth=None,
          block_size=None, spoil=None, dtype=torch.float32, vocab=VOCAB, seed=0,
          device="cpu"):  # fmt: skip
    tree = random_tree(batch, nodes, vocab=VOCAB, seed=seed)
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(batch, nodes, vocab, generator=g) * 1.5).to(dtype)
    if spoil is not None:
        spoil(logits, tree)
    draws = torch.randint(0, vocab, (batch, nodes), generator=g)
    max_depth = nodes - 1 if max_depth is None else max_depth
    seqlens = [2 * b + 1 for b in range(batch)]
    caches, block_table = poisoned_caches(
        batch, seqlens, nodes, 2 * batch + nodes, [(2, 3), (5,)], block_size
    )
    paths = []
    for b in range(batch):
        typical, margin = typical_nodes(tree, logits, temperature, epsilon, delta, b)
        assert margin > 1e-5, "the case decides nothing: choose another seed"
        paths.append(walk(tree, typical, b, max_depth))
    expected = [compacted(cache, paths, seqlens, block_table) for cache in caches]

    caches = [cache.to(device) for cache in caches]
    outputs = function(
        DraftTree(*(part.to(device) for part in tree)), draws.to(device), logits.to(device), caches,
        torch.tensor(seqlens, dtype=torch.int32, device=device),
        temperature=None if temperature is None else temperature.to(device), epsilon=epsilon,
        delta=delta, block_table=None if block_table is None else block_table.to(device),
        max_depth=max_depth,
    )  # fmt: skip
    assert_outputs(outputs, paths, tree, draws, max_depth)
    assert all(same_bits(*pair) for pair in zip(caches, expected, strict=True))
    return paths


def definition(tree, draws, logits, caches, seqlens, *, temperature, epsilon, delta, block_table,
               max_depth):  # fmt: skip
    return reference(
        tree.tokens, tree.parents, tree.num_nodes, draws, logits, temperature, epsilon, delta,
        caches, seqlens, block_table, max_depth,
    )  # fmt: skip


def nan_and_infinite(logits, tree):
    logits[0, 0, ::2] = math.nan
    logits[1, 0] = math.nan
    logits[2, 0] = -math.inf
    logits[3, 0, 1] = math.inf


def half_masked(logits, tree):
    """With the lowest number, many of which add up to an infinite one."""
    logits[..., VOCAB // 2 :] = torch.finfo(logits.dtype).min


def foreign_tokens(logits, tree):
    tree.tokens[:, 1::3] = 10**12
    tree.tokens[:, 2::3] = -1


OPTIONS = {
    "medusa": {},
    "loose": {"epsilon": 0.05, "delta": 0.5},
    "strict": {"epsilon": 0.9, "delta": 5.0},
    "temperature": {"temperature": torch.tensor([0.0, 0.3, 1.0, 2.5])},
    "shallow": {"max_depth": 2},
    "root": {"max_depth": 0},
    "paged": {"block_size": 4},
    "spoilt": {"spoil": nan_and_infinite},
    "foreign": {"spoil": foreign_tokens},
    "masked": {"spoil": half_masked, "epsilon": 0.9, "delta": 0.5},
}


@pytest.mark.parametrize("nodes", [1, 2, 64, 65])
@pytest.mark.parametrize("name", OPTIONS)
def test_definition_is_plain_loops(nodes, name):
    check(definition, nodes, **OPTIONS[name])


@pytest.mark.backend
@pytest.mark.parametrize("nodes", [1, 33, 64, 65, 256])
@pytest.mark.parametrize("name", OPTIONS)
def test_backend(nodes, name, device):
    check(dspark_kernels.typical_accept, nodes, **OPTIONS[name], device=device)


@pytest.mark.backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [8, 1003, 5001])
def test_backend_dtypes(dtype, vocab, device):
    options = {"epsilon": 0.01, "delta": 0.2, "dtype": dtype, "vocab": vocab}
    check(dspark_kernels.typical_accept, 40, **options, device=device)


@pytest.mark.backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backend_masked_tokens(dtype, device):
    """As many of the lowest number as fill a slice of a row."""

    def mask(logits, tree):
        logits[..., 2048:4096] = torch.finfo(dtype).min

    options = {"epsilon": 0.9, "delta": 5.0, "dtype": dtype, "vocab": 4101}
    check(dspark_kernels.typical_accept, 9, **options, spoil=mask, device=device)


@pytest.mark.backend
def test_backend_empty_batch(device):
    check(dspark_kernels.typical_accept, 40, batch=0, device=device)


def arguments():
    return tree_arguments() | {"logits": torch.randn(2, 6, VOCAB)}


ERRORS = [
    *TREE_ERRORS,
    ({"logits": torch.zeros(2, 5, VOCAB)}, ValueError, "logits must have shape"),
    ({"logits": torch.zeros(2, 6, 0)}, ValueError, "logits must have at least one column"),
    ({"temperature": torch.tensor([-1.0, 0.0])}, ValueError, "temperature must hold values"),
    ({"epsilon": 0.0}, ValueError, "epsilon must be a number > 0"),
    ({"delta": -1.0}, ValueError, "delta must be a number > 0"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_errors(change, error, message):
    with pytest.raises(error, match=f"typical_accept: {message}"):
        dspark_kernels.typical_accept(**arguments() | change)


def test_opcheck(device):
    tree = DraftTree(*(part.to(device) for part in random_tree(2, 6)))
    caches = [torch.randn(2, 20, 3, device=device) for _ in range(2)]
    seqlens = torch.tensor([3, 9], dtype=torch.int32, device=device)
    logits = torch.randn(2, 6, VOCAB, device=device)
    torch.library.opcheck(
        torch.ops.dspark.typical_accept.default,
        (tree.tokens, tree.parents, tree.num_nodes, tree.tokens, logits, None, 0.3, 0.09, caches,
         seqlens, None, 5),
    )  # fmt: skip
