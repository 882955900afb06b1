"""accept_tree with compaction, against a walk on the host and index_select per layer."""

from itertools import pairwise

import torch

import dspark_kernels
from dspark_kernels import DraftTree
from dspark_kernels.reference.accept_tree import accept_tree as reference

from .common import Case

MAX_DEPTH = 15
SLOTS = 1024
SEQLEN = 500


def example(nodes, path, device):
    """A tree of `nodes` nodes, and draws that lead down `path` of them, far apart."""
    step = nodes // (path + 1)
    on_path = [0, *(step * (i + 1) for i in range(path))]
    parents = [-1] + [max(p for p in on_path if p < node) for node in range(1, nodes)]
    tree = DraftTree.from_parents(list(range(nodes)), parents)
    draws = torch.full((1, nodes), nodes, dtype=torch.int64)
    for node, child in pairwise(on_path):
        draws[0, node] = child
    return DraftTree(*(part.to(device) for part in tree)), draws.to(device)


def by_hand(tree, draws, caches, seqlen):
    """What a user would write: a walk over lists, then index_select and a copy for every tensor."""
    tokens, parents, wanted = tree.tokens[0].tolist(), tree.parents[0].tolist(), draws[0].tolist()
    path, node = [0], 0
    while node is not None:
        above = path[-1]
        matches = (i for i, p in enumerate(parents) if p == above and tokens[i] == wanted[above])
        node = next(matches, None)
        if node is not None:
            path.append(node)
    source = torch.tensor(path, device=draws.device) + seqlen
    for cache in caches:
        cache[:, seqlen : seqlen + len(path)] = cache.index_select(1, source)
    return torch.tensor([path])


def cases(device, dtype):
    for layers, heads, head_dim, nodes, path, joint in (
        (30, 3, 64, 64, 5, True),
        (30, 3, 64, 64, 5, False),
        (32, 8, 128, 64, 5, True),
        (32, 8, 128, 256, 10, True),
    ):
        tree, draws = example(nodes, path, device)
        seqlens = torch.tensor([SEQLEN], dtype=torch.int32, device=device)

        def make(seed, shape=(layers, 2, 1, SLOTS, heads, head_dim)):
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
        yield Case(
            shape=f"layers {layers} Hkv {heads} E {head_dim} N {nodes} path {path}, {layout}",
            make=make,
            ours=ours,
            baselines={"walk on the host, index_select": baseline},
            expected=expected,
            bytes=2 * layers * 2 * path * heads * head_dim * dtype.itemsize,
            flops=0,
            cold=True,
        )
