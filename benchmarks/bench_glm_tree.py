"""glm_tree, the whole gate from the heads' candidates to the tree, against its reference."""

import torch

import dspark_kernels
from dspark_kernels.reference.glm_tree import glm_tree as reference

from .common import Case


def inputs(seed, batch, heads, candidates, rank, nodes, paths, dtype, device, vocab=49152):
    """Random arguments in the order of the schema, by name."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=g) * scale).to(device)

    ids = torch.stack(
        [torch.randperm(vocab, generator=g)[:candidates] for _ in range(batch * heads)]
    )
    keys = normal(batch, heads, candidates, scale=2.0).sort(descending=True).values
    return {
        "ids": ids.view(batch, heads, candidates).to(device),
        "keys": keys,
        "logsumexp": keys.logsumexp(dim=-1) + 0.5,
        "gate": normal(batch, heads, 2 * rank),
        "root": torch.randint(0, vocab, (batch,), generator=g).to(device),
        "table_in": normal(vocab, rank).to(dtype),
        "table_out": normal(vocab, rank, scale=0.5).to(dtype),
        "mix": normal(2 * rank, rank, scale=rank**-0.5).to(dtype),
        "depth_scale": normal(heads, rank),
        "calibration": torch.tensor([[1.0, 0.0]], device=device).repeat(heads, 1),
        "temperature": torch.ones(batch, device=device),
        "paths": torch.randint(0, vocab, (batch, paths, 10), generator=g).to(device),
        "path_scores": torch.rand((batch, paths, 10), generator=g).to(device),
        "num_nodes": nodes,
        "min_score": 0.0,
    }


def cases(device, dtype):
    names = tuple(inputs(0, 1, 1, 1, 1, 1, 1, dtype, device))
    for batch, heads, candidates, rank, nodes, paths in (
        (1, 5, 32, 64, 64, 0),
        (1, 5, 32, 64, 64, 4),
        (4, 5, 32, 64, 64, 4),
        (64, 5, 32, 64, 64, 4),
        (1, 5, 64, 128, 64, 4),
        (1, 8, 64, 256, 256, 4),
    ):

        def make(seed, sizes=(batch, heads, candidates, rank, nodes, paths)):
            return tuple(inputs(seed, *sizes, dtype, device).values())

        def ours(*values):
            return dspark_kernels.glm_tree(**dict(zip(names, values, strict=True)))

        rows = batch * (nodes + heads * candidates) + 2 * rank  # of the tables, and of mix
        yield Case(
            shape=f"B {batch} H {heads} C {candidates} R {rank} N {nodes} paths {paths}",
            make=make,
            ours=ours,
            baselines={"reference in PyTorch": reference},
            expected=reference,
            compared=lambda tree: tree[4],  # scores: equal ones may change places
            bytes=rows * rank * dtype.itemsize,
            flops=2 * batch * nodes * rank * (heads * candidates + 2 * rank),
        )
