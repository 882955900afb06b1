import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import assert_valid, random_tree

from dspark_kernels import DraftTree, chain, format_tree, static_tree

EXAMPLE = ([5, 8, 6, 7, 9, 3], [-1, 0, 0, 1, 1, -1], [1.0, 0.5, 0.25, 0.4, 0.125, 0.0])


def test_from_parents():
    tree = DraftTree.from_parents(*EXAMPLE)
    assert tree.tokens.tolist() == [[5, 8, 6, 7, 9, 0]]
    assert tree.depths.tolist() == [[0, 1, 1, 2, 2, 0]]
    assert tree.ancestors.tolist() == [[[0b1], [0b11], [0b101], [0b1011], [0b10011], [0b100000]]]
    assert tree.num_nodes.tolist() == [5]
    dtypes = [part.dtype for part in tree]
    assert dtypes == [
        torch.int64,
        torch.int32,
        torch.int32,
        torch.int64,
        torch.float32,
        torch.int32,
    ]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 150))
def test_from_parents_keeps_its_promises(seed, nodes):
    tree = random_tree(2, nodes, seed=seed)
    related = torch.zeros(2, nodes, nodes, dtype=torch.bool)
    for b in range(2):
        for node in range(nodes):
            above = node
            while above >= 0:
                related[b, node, above] = True
                above = int(tree.parents[b, above])
    column = torch.arange(nodes)
    bits = (tree.ancestors[..., column // 64] >> (column % 64)) & 1
    assert torch.equal(bits.bool(), related)
    assert torch.equal(tree.depths, (related.sum(dim=2) - 1).int())


def test_chain():
    tree = chain(torch.tensor([[4, 5, 6], [1, 1, 1]]))
    assert tree.parents.tolist() == [[-1, 0, 1]] * 2
    assert tree.ancestors[..., 0].tolist() == [[1, 3, 7]] * 2
    assert_valid(tree)
    assert chain([7]).num_nodes.tolist() == [1]


@pytest.mark.parametrize("nodes", [1, 63, 64, 65, 128, 130])
def test_a_chain_is_the_tree_of_its_parents(nodes):
    tokens = list(range(nodes))
    expected = DraftTree.from_parents(tokens, [i - 1 for i in range(nodes)], [1.0] * nodes)
    for part, other in zip(chain(tokens), expected, strict=True):
        assert torch.equal(part, other)


def test_static_tree():
    ids = torch.arange(12).view(2, 2, 3) + 100
    tree = static_tree([(1,), (0, 2), (0,), (0, 0)], ids, torch.tensor([1, 2]))
    assert tree.tokens.tolist() == [[1, 100, 101, 103, 105], [2, 106, 107, 109, 111]]
    assert tree.parents.tolist() == [[-1, 0, 0, 1, 1]] * 2
    assert static_tree([], ids, torch.tensor([1, 2])).tokens.tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([(0,), (0,)], "distinct"),
        ([()], "not empty"),
        ([(0, 1)], r"choice \(0, 1\) needs its parent \(0,\)"),
        ([(3,)], r"choice \(3,\) is outside the 3 candidates of 2 heads"),
        ([(0,), (0, 0), (0, 0, 0)], "outside the 3 candidates of 2 heads"),
    ],
)
def test_static_tree_errors(choices, message):
    with pytest.raises(ValueError, match=message):
        static_tree(choices, torch.arange(6).view(1, 2, 3), torch.tensor([1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [-1]), "must have one shape"),
        (([], []), "N >= 1"),
        (([1, 2], [0, 0]), "the parent of node 0, the root, must be -1, got 0"),
        (([1, 2, 3], [-1, 2, 0]), "the parent of node 1 must be from 0 to 0, got 2"),
        (([1, 2, 3], [-1, -1, 0]), "the parent of node 1 must be from 0 to 0, got -1"),
        (([1, 2, 2], [-1, 0, 0]), "node 2 repeats token 2 under parent 0"),
        (([1, 2], [-1, 0], [1.0, 1.5]), "scores must be from 0 to 1, got 1.5"),
        (([1, 2], [-1, 0], [1.0, float("nan")]), "scores must be from 0 to 1, got nan"),
        (([1, 2, 3], [-1, 0, 1], [1.0, 0.25, 0.5]), "node 2 has a score above its parent's"),
    ],
)
def test_from_parents_errors(arguments, message):
    with pytest.raises(ValueError, match=f"DraftTree: .*{message}"):
        DraftTree.from_parents(*arguments)


def test_print():
    tree = DraftTree.from_parents(*EXAMPLE)
    assert str(tree).splitlines() == [
        "5  1.00",
        "├─ 8  0.50",
        "│  ├─ 7  0.40",
        "│  └─ 9  0.12",
        "└─ 6  0.25",
    ]


def test_print_with_token_text_and_several_requests():
    class Tokenizer:
        def decode(self, ids):
            return "".join(chr(96 + token) for token in ids)

    tree = chain([[1, 2], [3, 4]])
    assert format_tree(tree, Tokenizer(), request=1) == "3 'c'  1.00\n└─ 4 'd'  1.00"
    assert str(tree) == "request 0\n1  1.00\n└─ 2  1.00\nrequest 1\n3  1.00\n└─ 4  1.00"


def test_print_a_deep_chain():
    assert len(str(chain(range(256))).splitlines()) == 256
