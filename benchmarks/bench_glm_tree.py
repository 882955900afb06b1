"""glm_tree against its reference: the whole gate, from the heads' candidates to the tree."""

from functools import partial

import torch
from common import Report, arguments

from dspark_kernels import glm_tree
from dspark_kernels.reference.glm_tree import glm_tree as reference


def inputs(batch, heads, candidates, rank, nodes, paths, dtype, device, vocab=49152):
    """Random arguments in the order of the schema, by name."""
    g = torch.Generator().manual_seed(0)

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
        "calibration": torch.ones(heads, device=device),
        "temperature": torch.ones(batch, device=device),
        "paths": torch.randint(0, vocab, (batch, paths, 10), generator=g).to(device),
        "path_scores": torch.rand((batch, paths, 10), generator=g).to(device),
        "num_nodes": nodes,
        "min_score": 0.0,
    }


def main():
    options = arguments(__doc__)
    report = Report("glm_tree", options)
    for batch, heads, candidates, rank, nodes, paths in (
        (1, 5, 32, 64, 64, 0),
        (1, 5, 32, 64, 64, 4),
        (4, 5, 32, 64, 64, 4),
        (1, 5, 48, 128, 64, 4),
        (1, 8, 64, 256, 256, 4),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            named = inputs(batch, heads, candidates, rank, nodes, paths, dtype, options.device)
            values = tuple(named.values())
            kernel = torch.ops.dspark.glm_tree.default
            # rows of the tables that must be read at least, and mix
            rows = batch * (nodes + heads * candidates) + 2 * rank
            report.add(
                f"B{batch} H{heads} C{candidates} R{rank} N{nodes} P{paths}",
                dtype,
                {
                    "op": partial(kernel, *values),
                    "public function": partial(glm_tree, **named),
                    "reference": partial(reference, *values),
                },
                rows * rank * dtype.itemsize,
            )
    report.save()


if __name__ == "__main__":
    main()
