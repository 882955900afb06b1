"""typical_accept, without caches, against its reference."""

import torch

from dspark_kernels import typical_accept
from dspark_kernels.reference.typical_accept import typical_accept as reference

from .bench_accept_tree import MAX_DEPTH, SEQLEN, example
from .common import Case


def cases(device, dtype):
    for nodes, path, vocab in ((64, 5, 49152), (64, 5, 151936)):
        tree, draws = example(1, nodes, path, device)
        seqlens = torch.tensor([SEQLEN], dtype=torch.int32, device=device)

        def make(seed, nodes=nodes, vocab=vocab, draws=draws):
            g = torch.Generator().manual_seed(seed)
            logits = torch.randn(1, nodes, vocab, generator=g)
            for node, token in enumerate(draws[0].tolist()):  # so that the path is accepted
                logits[0, node, token] += 15
            return (logits.to(device, dtype),)

        def ours(logits, tree=tree, draws=draws, seqlens=seqlens):
            return typical_accept(tree, draws, logits, [], seqlens, max_depth=MAX_DEPTH)

        def expected(logits, tree=tree, draws=draws, seqlens=seqlens):
            return reference(
                tree.tokens, tree.parents, tree.num_nodes, draws, logits, None, 0.09, 0.3, [],
                seqlens, None, MAX_DEPTH,
            )  # fmt: skip

        yield Case(
            shape=f"N {nodes} path {path} V {vocab}",
            make=make,
            ours=ours,
            baselines={"reference in PyTorch": expected},
            expected=expected,
            bytes=(path + 1) * vocab * dtype.itemsize,  # the rows of the accepted nodes
            flops=0,
        )
