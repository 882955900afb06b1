"""Random trees, inputs of the tree ops, and what it means for two trees to be the same."""

import math

import torch

from dspark_kernels import DraftTree


def random_tree(batch, nodes, vocab=8, seed=0, ragged=True):
    """A DraftTree of random parents, few enough tokens for walks to go deep, and unused slots."""
    g = torch.Generator().manual_seed(seed)
    tokens, parents = [], []
    for _ in range(batch):
        used = int(torch.randint(1, nodes + 1, (), generator=g)) if ragged else nodes
        row, above, taken = [1], [-1], set()
        while len(row) < used:
            parent = int(torch.randint(max(0, len(row) - 2 * vocab), len(row), (), generator=g))
            token = int(torch.randint(0, vocab, (), generator=g))
            if (parent, token) not in taken:
                taken.add((parent, token))
                row.append(token)
                above.append(parent)
        tokens.append(row + [0] * (nodes - used))
        parents.append(above + [-1] * (nodes - used))
    shape = (batch, nodes)
    return DraftTree.from_parents(
        torch.tensor(tokens, dtype=torch.int64).view(shape),
        torch.tensor(parents, dtype=torch.int32).view(shape),
    )


def good_draws(tree, vocab=8, seed=0):
    """Draws [B, N] which mostly name a child of their node, so that walks go deep."""
    g = torch.Generator().manual_seed(seed)
    draws = torch.randint(0, vocab, tree.tokens.shape, generator=g)
    for b, count in enumerate(tree.num_nodes.tolist()):
        for node in range(1, count):
            if torch.rand((), generator=g) < 0.7:
                draws[b, tree.parents[b, node]] = tree.tokens[b, node]
    return draws


def poisoned_caches(batch, seqlens, nodes, capacity, shapes, block_size=None, seed=0):
    """Caches whose slots are NaN outside the prefix and the tree: (caches, block_table or None)."""
    g = torch.Generator().manual_seed(seed)
    caches, block_table = [], None
    if block_size is not None:
        blocks = math.ceil(capacity / block_size)
        order = torch.randperm(batch * blocks + 3, generator=g)[: batch * blocks]
        block_table = order.view(batch, blocks).int()
    for shape in shapes:
        rows = torch.full((batch, capacity, *shape), math.nan)
        for b, seqlen in enumerate(seqlens):
            live = rows[b, : min(seqlen + nodes, capacity)]
            live.copy_(torch.randn(live.shape, generator=g))
        if block_table is not None:
            paged = torch.full((batch * blocks + 3, block_size, *shape), math.nan)
            for b in range(batch):
                for slot in range(capacity):
                    paged[block_table[b, slot // block_size], slot % block_size] = rows[b, slot]
            rows = paged
        caches.append(rows)
    return caches, block_table


def glm_inputs(
    B=2, H=3, C=4, R=8, V=50, P=0, Q=0, N=16, seed=0, dtype=torch.float32, min_score=0.0
):
    """The arguments of the glm_tree schema, by name."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return torch.randn(shape, generator=g) * scale

    ids = torch.stack(
        [torch.randperm(V, generator=g)[:C] for _ in range(B * H)] or [torch.empty(0)]
    )
    ids = ids.long().view(B, H, C)
    keys = normal(B, H, C, scale=2.0).sort(descending=True).values
    paths = torch.randint(0, V, (B, P, Q), generator=g)
    for p in range(min(P, C)):
        paths[:, p, : min(H, Q)] = ids[:, : min(H, Q), p]  # paths that meet the candidates
    return {
        "ids": ids,
        "keys": keys,
        "logsumexp": keys.logsumexp(dim=-1) + torch.rand((B, H), generator=g),
        "gate": normal(B, H, 2 * R),
        "root": torch.randint(0, V, (B,), generator=g),
        "table_in": normal(V, R).to(dtype),
        "table_out": normal(V, R, scale=0.5).to(dtype),
        "mix": normal(2 * R, R, scale=R**-0.5).to(dtype),
        "depth_scale": normal(H, R),
        "calibration": torch.rand((H, 2), generator=g) + torch.tensor([0.5, -0.5]),
        "temperature": torch.tensor([0.0, 0.7, 1.0, 2.0]).repeat(B)[:B],
        "paths": paths if P else None,
        "path_scores": torch.rand((B, P, Q), generator=g) if P else None,
        "num_nodes": N,
        "min_score": min_score,
    }


def token_path(tree, request, node):
    """The tokens from below the root down to a node."""
    tokens = []
    while node > 0:
        tokens.append(int(tree.tokens[request, node]))
        node = int(tree.parents[request, node])
    return tuple(reversed(tokens))


def assert_valid(tree):
    """Every promise of DraftTree, checked with plain loops."""
    batch, slots = tree.tokens.shape
    for b in range(batch):
        count = int(tree.num_nodes[b])
        assert 1 <= count <= slots
        seen = set()
        for node in range(slots):
            parent = int(tree.parents[b, node])
            bits = {node}
            if node == 0 or node >= count:
                assert parent == -1
                assert tree.depths[b, node] == 0
                assert tree.scores[b, node] == (1.0 if node == 0 else 0.0)
                assert node == 0 or tree.tokens[b, node] == 0
            else:
                assert 0 <= parent < node
                assert tree.depths[b, node] == tree.depths[b, parent] + 1
                assert 0 < tree.scores[b, node] <= tree.scores[b, parent]
                pair = (parent, int(tree.tokens[b, node]))
                assert pair not in seen
                seen.add(pair)
                while parent >= 0:
                    bits.add(parent)
                    parent = int(tree.parents[b, parent])
            words = [int(word) % 2**64 for word in tree.ancestors[b, node]]
            assert {
                64 * w + i for w in range(len(words)) for i in range(64) if words[w] >> i & 1
            } == bits
        keys = [
            (-float(s), int(d), int(t), int(p))
            for d, s, t, p in zip(
                tree.depths[b], tree.scores[b], tree.tokens[b], tree.parents[b], strict=True
            )
        ][:count]
        assert keys == sorted(keys)


def assert_same_tree(actual, expected, min_score=0.0, tolerance=2e-5):
    """The same nodes with the same scores, up to rounding.

    Two float32 evaluations may differ by `tolerance`, relative to the score and per level. A node
    may then be in one tree only if its score is that close to the bar of the other: its lowest
    score if it is full, or min_score times their sum. Both trees are valid, so that order and
    indices follow from scores.
    """
    assert_valid(actual)
    assert torch.equal(actual.tokens[:, 0], expected.tokens[:, 0])
    for b in range(len(expected.num_nodes)):
        one, other = (
            {
                token_path(tree, b, node): float(tree.scores[b, node])
                for node in range(int(tree.num_nodes[b]))
            }
            for tree in (actual, expected)
        )
        for path in one.keys() & other.keys():
            assert math.isclose(
                one[path], other[path], rel_tol=tolerance * (1 + len(path)), abs_tol=1e-30
            )
        for here, there in ((one, other), (other, one)):
            full = len(there) == expected.tokens.shape[1]
            bar = max(min(there.values()) if full else 0.0, min_score * sum(there.values()))
            for path in here.keys() - there.keys():
                assert math.isclose(
                    here[path], bar, rel_tol=tolerance * (1 + len(path)), abs_tol=1e-30
                ), path


def to(value, device):
    """Every tensor in nested containers, on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: to(part, device) for name, part in value.items()}
    if isinstance(value, DraftTree):
        return DraftTree(*(part.to(device) for part in value))
    return [to(part, device) for part in value] if isinstance(value, list | tuple) else value
