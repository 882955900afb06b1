"""accept_tree with compaction, against a walk on the host and index_select per layer."""

from functools import partial
from itertools import pairwise

import torch
from common import Report, arguments

from dspark_kernels import DraftTree, accept_tree

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
    return path


def main():
    options = arguments(__doc__)
    report = Report("accept_tree", options)
    dtype = torch.bfloat16
    for layers, heads, head_dim, nodes, path in (
        (30, 3, 64, 64, 5),
        (32, 8, 128, 64, 5),
        (32, 8, 128, 256, 10),
    ):
        tree, draws = example(nodes, path, options.device)
        storage = torch.randn(layers, 2, 1, SLOTS, heads, head_dim).to(options.device, dtype)
        separate = [part.clone() for layer in storage for part in layer]
        joint = [storage.permute(2, 3, 0, 1, 4, 5)]  # all layers as one cache [B, S, ...]
        seqlens = torch.tensor([SEQLEN], dtype=torch.int32, device=options.device)
        assert accept_tree(tree, draws, joint, seqlens)[2].item() == path + 1
        kernel = torch.ops.dspark.accept_tree.default
        raw = (tree.tokens, tree.parents, tree.num_nodes, draws)
        report.add(
            f"L{layers} Hkv{heads} E{head_dim} N{nodes} path {path}",
            dtype,
            {
                "op, one storage": partial(kernel, *raw, joint, seqlens, None, 15),
                "op, a tensor per layer": partial(kernel, *raw, separate, seqlens, None, 15),
                "public function": partial(accept_tree, tree, draws, joint, seqlens, max_depth=15),
                "index_select per layer": partial(by_hand, tree, draws, separate, SEQLEN),
            },
            2 * layers * 2 * path * heads * head_dim * dtype.itemsize,
        )
    report.save()


if __name__ == "__main__":
    main()
