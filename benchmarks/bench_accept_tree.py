"""accept_tree with compaction, against a walk on the host and index_select per layer."""

from itertools import pairwise

import torch

import dspark_kernels
from dspark_kernels import DraftTree
from dspark_kernels.reference.accept_tree import accept_tree as reference

from .common import Case

MAX_DEPTH = 15
SLOTS = 512
SEQLEN = 200


def example(batch, nodes, path, device):
    """Trees of `nodes` nodes, and draws that lead down `path` of them, far apart."""
    step = nodes // (path + 1)
    on_path = [0, *(step * (i + 1) for i in range(path))]
    parents = [-1] + [max(p for p in on_path if p < node) for node in range(1, nodes)]
    tree = DraftTree.from_parents(list(range(nodes)), parents)
    draws = torch.full((1, nodes), nodes, dtype=torch.int64)
    for node, child in pairwise(on_path):
        draws[0, node] = child
    trees = DraftTree(*(torch.cat([part] * batch).to(device) for part in tree))
    return trees, draws.repeat(batch, 1).to(device)


def walk_by_hand(tokens, parents, wanted):
    """The accepted nodes of one request, from lists."""
    path, node = [0], 0
    while node is not None:
        above = path[-1]
        matches = (i for i, p in enumerate(parents) if p == above and tokens[i] == wanted[above])
        node = next(matches, None)
        if node is not None:
            path.append(node)
    return path


def by_hand(tree, draws, caches, seqlen):
    """What a user would write: a walk over lists, then index_select and a copy for every tensor."""
    rows = zip(tree.tokens.tolist(), tree.parents.tolist(), draws.tolist(), strict=True)
    paths = [walk_by_hand(*row) for row in rows]
    for request, path in enumerate(paths):
        source = torch.tensor(path, device=draws.device) + seqlen
        for cache in caches:
            row = cache[request]
            row[seqlen : seqlen + len(path)] = row.index_select(0, source)
    return torch.tensor(paths)


def cases(device, dtype):
    shapes = [
        (1, 30, 3, 64, 64, 5, True),
        (1, 30, 3, 64, 64, 5, False),
        (1, 32, 8, 128, 64, 5, True),
        (1, 32, 8, 128, 256, 10, True),
    ]
    if device == "cuda":  # gigabytes
        shapes += [(64, 32, 8, 128, 64, 5, True), (256, 32, 8, 128, 64, 5, True)]
    for batch, layers, heads, head_dim, nodes, path, joint in shapes:
        tree, draws = example(batch, nodes, path, device)
        seqlens = torch.full((batch,), SEQLEN, dtype=torch.int32, device=device)

        def make(seed, shape=(layers, 2, batch, SLOTS, heads, head_dim)):
            return (torch.randn(shape, device=device).to(dtype),)

        def caches(storage, joint=joint):
            """All layers as one cache [B, S, L, 2, Hkv, E] as in `KVCache`, or one by one."""
            if joint:
                return [storage.permute(2, 3, 0, 1, 4, 5)]
            return list(storage.flatten(0, 1).unbind())

        def ours(storage, tree=tree, draws=draws, seqlens=seqlens, caches=caches):
            return dspark_kernels.accept_tree(
                tree, draws, caches(storage), seqlens, max_depth=MAX_DEPTH
            )

        def expected(storage, tree=tree, draws=draws, seqlens=seqlens):
            return reference(
                tree.tokens, tree.parents, tree.num_nodes, draws, [], seqlens, None, MAX_DEPTH
            )

        def baseline(storage, tree=tree, draws=draws):
            return by_hand(tree, draws, list(storage.flatten(0, 1).unbind()), SEQLEN)

        layout = "one storage" if joint else "a tensor per layer"
        model = f"layers {layers} Hkv {heads} E {head_dim}"
        yield Case(
            shape=f"B {batch} {model} N {nodes} path {path}, {layout}",
            make=make,
            ours=ours,
            baselines={"walk on the host, index_select": baseline},
            expected=expected,
            bytes=2 * batch * layers * 2 * path * heads * head_dim * dtype.itemsize,
            flops=0,
            cold=True,
        )
