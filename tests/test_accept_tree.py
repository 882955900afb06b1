import pytest
import torch
from trees import good_draws, poisoned_caches, random_tree

import dspark_kernels
from dspark_kernels import DraftTree
from dspark_kernels.ops import values_on_trust
from dspark_kernels.reference.accept_tree import accept_tree as reference


def walk(tree, draws, b, max_depth):
    """The accepted path of request b in plain loops."""
    path = [0]
    while len(path) <= max_depth:
        children = [
            node
            for node in range(int(tree.num_nodes[b]))
            if tree.parents[b, node] == path[-1] and tree.tokens[b, node] == draws[b, path[-1]]
        ]
        if not children:
            break
        path.append(children[0])
    return path


def assert_outputs(outputs, paths, tree, draws, max_depth):
    path, tokens, num_accepted, last_node = (part.cpu() for part in outputs)
    for b, nodes in enumerate(paths):
        padding = [-1] * (max_depth + 1 - len(nodes))
        emitted = [int(tree.tokens[b, node]) for node in nodes[1:]] + [int(draws[b, nodes[-1]])]
        assert path[b].tolist() == nodes + padding
        assert tokens[b].tolist() == emitted + padding
        assert num_accepted[b] == len(nodes)
        assert last_node[b] == nodes[-1]


def compacted(cache, paths, seqlens, block_table):
    """The cache that compaction should leave, moved slot by slot."""
    out = cache.clone()
    for b, nodes in enumerate(paths):
        for i, node in enumerate(nodes):
            source, target = (locate(cache, b, seqlens[b] + j, block_table) for j in (node, i))
            if source is not None and target is not None:
                out[target] = cache[source]
    return out


def locate(cache, b, slot, block_table):
    if block_table is None:
        return (b, slot) if slot < cache.shape[1] else None
    entry, offset = divmod(slot, cache.shape[1])
    if entry >= block_table.shape[1] or not 0 <= block_table[b, entry] < len(cache):
        return None
    return int(block_table[b, entry]), offset


def same_bits(one, other):
    return torch.equal(one.cpu().view(torch.uint8), other.cpu().view(torch.uint8))


def check(function, nodes, batch=4, block_size=None, max_depth=None, slack=0, dtype=torch.float32,
          shapes=((2, 4), (3,), ()), seed=0, device="cpu"):  # fmt: skip
    tree = random_tree(batch, nodes, seed=seed)
    draws = good_draws(tree, seed=seed)
    seqlens = [3 * b for b in range(batch)]
    capacity = max([*seqlens, 0]) + nodes + slack
    caches, block_table = poisoned_caches(batch, seqlens, nodes, capacity, shapes, block_size, seed)
    caches = [cache.to(dtype) for cache in caches]
    if block_table is not None and batch > 1:
        block_table[1, -1], block_table[0, -1] = -1, 10**6  # neither is ever followed
    max_depth = nodes - 1 if max_depth is None else max_depth
    paths = [walk(tree, draws, b, max_depth) for b in range(batch)]
    expected = [compacted(cache, paths, seqlens, block_table) for cache in caches]

    caches = [cache.to(device) for cache in caches]
    outputs = function(
        DraftTree(*(part.to(device) for part in tree)), draws.to(device), caches,
        torch.tensor(seqlens, dtype=torch.int32, device=device),
        None if block_table is None else block_table.to(device), max_depth,
    )  # fmt: skip
    assert_outputs(outputs, paths, tree, draws, max_depth)
    assert all(same_bits(*pair) for pair in zip(caches, expected, strict=True))
    return paths


def definition(tree, draws, caches, seqlens, block_table, max_depth):
    return reference(
        tree.tokens, tree.parents, tree.num_nodes, draws, caches, seqlens, block_table, max_depth
    )


def public(tree, draws, caches, seqlens, block_table, max_depth):
    return dspark_kernels.accept_tree(
        tree, draws, caches, seqlens, block_table=block_table, max_depth=max_depth
    )


SIZES = [1, 2, 17, 64, 65, 128, 256]


@pytest.mark.parametrize("nodes", SIZES)
@pytest.mark.parametrize("block_size", [None, 8])
def test_definition_is_plain_loops(nodes, block_size):
    paths = check(definition, nodes, block_size=block_size)
    assert nodes < 64 or max(map(len, paths)) > 3  # the draws are good enough to test anything


@pytest.mark.parametrize("slack", [-1, -5, -30])
def test_definition_leaves_slots_beyond_the_capacity_alone(slack):
    check(definition, 40, slack=slack)


def test_definition_first_child_by_index_wins():
    tree = DraftTree.from_parents([1, 5, 6, 7], [-1, 0, 0, 1])
    tree.tokens[0, 2] = 5  # equal siblings, which from_parents refuses
    path, tokens, count, last = definition(
        tree, torch.tensor([[5, 7, 0, 9]]), [], torch.zeros(1).int(), None, 3
    )
    assert path.tolist() == [[0, 1, 3, -1]]
    assert tokens.tolist() == [[5, 7, 9, -1]]
    assert (count.item(), last.item()) == (3, 3)


def test_definition_unused_slots_never_match():
    tree = DraftTree.from_parents([1, 5, 0], [-1, 0, -1])
    tree.parents[0, 2] = 1
    path, *_ = definition(tree, torch.tensor([[5, 0, 0]]), [], torch.zeros(1).int(), None, 2)
    assert path.tolist() == [[0, 1, -1]]


@pytest.mark.backend
@pytest.mark.parametrize("nodes", SIZES)
@pytest.mark.parametrize("block_size", [None, 1, 8])
def test_backend(nodes, block_size, device):
    for seed in range(3):
        check(public, nodes, block_size=block_size, seed=seed, device=device)


@pytest.mark.backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8])
def test_backend_dtypes(dtype, device):
    check(public, 33, dtype=dtype, shapes=((3, 64), (1, 5)), device=device)


@pytest.mark.backend
@pytest.mark.parametrize("options", [
    {"max_depth": 0}, {"max_depth": 2}, {"max_depth": 300}, {"slack": -1}, {"slack": -30},
    {"slack": 100}, {"shapes": ()}, {"shapes": ((4, 64),) * 60}, {"batch": 0}, {"batch": 1},
    {"batch": 33}, {"slack": -7, "block_size": 8},
])  # fmt: skip
def test_backend_options(options, device):
    check(public, 40, device=device, **options)


@pytest.mark.backend
def test_backend_caches_that_are_views(device):
    tree = DraftTree.from_parents([1, 5, 6, 7, 8], [-1, 0, 0, 2, 3])
    draws = torch.tensor([[6, 0, 7, 8, 4]])
    joint = torch.randn(1, 20, 2, 3, 4)  # keys and values in one tensor
    expected = joint.clone()
    expected[:, 6:9] = joint[:, 7:10]
    joint = joint.to(device)
    views = [joint[:, :, 0], joint[:, :, 1].transpose(2, 3)]
    tree = DraftTree(*(part.to(device) for part in tree))
    seqlens = torch.tensor([5], dtype=torch.int32, device=device)
    public(tree, draws.to(device), views, seqlens, None, 4)
    assert torch.equal(joint.cpu(), expected)


def arguments():
    tree = random_tree(2, 6, ragged=False)
    return {
        "tree": tree,
        "target_tokens": good_draws(tree),
        "caches": [torch.zeros(2, 20, 3), torch.zeros(2, 20, 3)],
        "cache_seqlens": torch.tensor([3, 9], dtype=torch.int32),
    }


def with_tree(**fields):
    return {"tree": random_tree(2, 6, ragged=False)._replace(**fields)}


ERRORS = [
    ({"tree": (1, 2)}, TypeError, "tree must be a DraftTree"),
    (with_tree(tokens=torch.zeros(2, 6)), TypeError, "tree.tokens must have dtype int64"),
    (with_tree(parents=torch.zeros(2, 7).int()), ValueError, "tree.parents must have shape"),
    (with_tree(parents=torch.ones(2, 6).int()), ValueError, "tree.parents must come before"),
    (
        with_tree(num_nodes=torch.tensor([0, 3]).int()),
        ValueError,
        "tree.num_nodes must hold values",
    ),
    (
        with_tree(num_nodes=torch.tensor([7, 3]).int()),
        ValueError,
        "tree.num_nodes must hold values",
    ),
    ({"target_tokens": torch.zeros(2, 5).long()}, ValueError, "target_tokens must have shape"),
    ({"caches": torch.zeros(2, 20, 3)}, TypeError, "caches must be a list"),
    ({"caches": [3]}, TypeError, r"caches\[0\] must be a tensor"),
    ({"caches": [torch.zeros(3, 20)]}, ValueError, r"caches\[0\] must have shape"),
    (
        {"caches": [torch.zeros(2, 20), torch.zeros(2, 21)]},
        ValueError,
        r"caches\[1\] must have shape",
    ),
    ({"cache_seqlens": torch.zeros(2).long()}, TypeError, "cache_seqlens must have dtype int32"),
    ({"cache_seqlens": torch.tensor([-1, 2]).int()}, ValueError, "cache_seqlens must hold values"),
    ({"block_table": torch.zeros(3, 2).int()}, ValueError, "block_table must have shape"),
    ({"max_depth": -1}, ValueError, "max_depth must be >= 0"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_errors(change, error, message):
    with pytest.raises(error, match=f"accept_tree: {message}"):
        dspark_kernels.accept_tree(**arguments() | change)


@pytest.mark.parametrize("count", [0, 2])
def test_opcheck(count, device):
    tree = DraftTree(*(part.to(device) for part in random_tree(2, 6)))
    caches = [torch.randn(2, 20, 3, device=device) for _ in range(count)]
    seqlens = torch.tensor([3, 9], dtype=torch.int32, device=device)
    torch.library.opcheck(
        torch.ops.dspark.accept_tree.default,
        (tree.tokens, tree.parents, tree.num_nodes, tree.tokens, caches, seqlens, None, 5),
    )


def test_values_may_be_taken_on_trust():
    tree = DraftTree.from_parents([5, 6], [-1, 0])._replace(num_nodes=torch.tensor([3]).int())
    arguments = tree, torch.tensor([[6, 9]]), [], torch.zeros(1).int()
    with values_on_trust():
        assert dspark_kernels.accept_tree(*arguments)[1].tolist() == [[6, 9]]
    with pytest.raises(ValueError, match=r"tree\.num_nodes must hold values from 1 to 2"):
        dspark_kernels.accept_tree(*arguments)
