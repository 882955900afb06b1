"""typical_accept without caches, against its reference."""

import torch

from dspark_kernels import typical_accept
from dspark_kernels.reference.typical_accept import typical_accept as reference

from .bench_accept_tree import example
from .common import Case


def cases(device, dtype):
    for nodes, path, vocab in ((64, 5, 49152), (64, 5, 151936)):
        tree, draws = example(nodes, path, device)
        seqlens = torch.tensor([500], dtype=torch.int32, device=device)

        def make(seed, nodes=nodes, vocab=vocab, draws=draws):
            g = torch.Generator(device).manual_seed(seed)
            logits = torch.randn(1, nodes, vocab, generator=g, device=device)
            logits.scatter_add_(2, draws[..., None], torch.full_like(logits[..., :1], 15.0))
            return (logits.to(dtype),)  # the path is accepted

        def ours(logits, tree=tree, draws=draws, seqlens=seqlens):
            return typical_accept(tree, draws, logits, [], seqlens, max_depth=15)

        def plain(logits, tree=tree, draws=draws, seqlens=seqlens):
            fields = (tree.tokens, tree.parents, tree.num_nodes)
            return reference(*fields, draws, logits, None, 0.3, 0.09, [], seqlens, None, 15)

        yield Case(
            shape=f"N {nodes} path {path} V {vocab}",
            make=make,
            ours=ours,
            baseline=plain,
            baseline_name="the PyTorch reference",
            expected=plain,
            bytes=(path + 1) * vocab * dtype.itemsize,  # the rows of the accepted nodes
            flops=0,
        )
