"""Random trees, thousands on a GPU: what is compiled for it, against the reference."""

import pytest
import test_best_slots as slots_cases
import torch
from test_accept_tree import compacted, same_bits
from trees import assert_same_tree, glm_inputs, good_draws, poisoned_caches, random_tree, to

import dspark_kernels
from dspark_kernels import DraftTree, reference

pytestmark = pytest.mark.compiled


@pytest.fixture
def batch(fitting):
    return fitting(12, 256)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_glm_tree(seed, dtype, device, batch):
    rank = 16 * (seed + 1)  # for tensor cores
    if dtype == torch.float32:
        rank -= 3
    inputs = glm_inputs(
        B=batch, H=4, C=8 + 5 * seed, R=rank, V=200, P=seed, Q=6, N=20 + 25 * seed,
        seed=seed, dtype=dtype,
    )  # fmt: skip
    expected = DraftTree(*reference.glm_tree(*inputs.values()))
    tree = to(dspark_kernels.glm_tree(**to(inputs, device)), "cpu")
    assert_same_tree(tree, expected, inputs["min_score"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rank, nodes", [(128, 64), (256, 256)])  # the shipped draft; too large
def test_glm_tree_where_shared_memory_is_short(rank, nodes, dtype, device):
    inputs = glm_inputs(B=2, H=5, C=64, R=rank, V=900, P=4, Q=7, N=nodes, seed=9, dtype=dtype)
    expected = DraftTree(*reference.glm_tree(*inputs.values()))
    tree = to(dspark_kernels.glm_tree(**to(inputs, device)), "cpu")
    assert_same_tree(tree, expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block_size", [None, 16])
def test_accept_tree(seed, block_size, device, batch):
    batch, nodes = 2 * batch, 17 + 40 * seed
    tree = random_tree(batch, nodes, seed=seed)
    draws = good_draws(tree, seed=seed)
    seqlens = [b % 37 for b in range(batch)]
    caches, block_table = poisoned_caches(batch, seqlens, nodes, 36 + nodes, [(8,)], block_size)
    arguments = (
        tree.tokens, tree.parents, tree.num_nodes, draws, [cache.clone() for cache in caches],
        torch.tensor(seqlens, dtype=torch.int32), block_table, nodes - 1,
    )  # fmt: skip
    expected = reference.accept_tree(*arguments)
    paths = [[node for node in path if node >= 0] for path in expected[0].tolist()]
    moved = [compacted(cache, paths, seqlens, block_table) for cache in caches]
    caches = to(caches, device)
    outputs = dspark_kernels.accept_tree(
        to(tree, device), draws.to(device), caches, to(arguments[5], device),
        block_table=to(block_table, device), max_depth=nodes - 1,
    )  # fmt: skip
    for one, other in zip(outputs, expected, strict=True):
        assert torch.equal(one.cpu(), other)
    assert all(same_bits(*pair) for pair in zip(caches, moved, strict=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [0, 1, 20])
def test_best_slots(seed, levels, device, batch):
    shape = {"B": 2 * batch, "M": 17 + 40 * seed, "levels": levels}
    slots_cases.check(torch.ops.dspark.best_slots, slots_cases.inputs(**shape, seed=seed), device)
