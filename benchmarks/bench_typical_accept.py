"""typical_accept without caches, against its reference."""

from functools import partial

import torch
from bench_accept_tree import example
from common import Report, arguments

from dspark_kernels import typical_accept
from dspark_kernels.reference.typical_accept import typical_accept as reference


def main():
    options = arguments(__doc__)
    report = Report("typical_accept", options)
    for nodes, path, vocab in ((64, 5, 49152), (64, 5, 151936)):
        for dtype in (torch.float32, torch.bfloat16):
            tree, draws = example(nodes, path, options.device)
            logits = torch.randn(1, nodes, vocab)
            for node in range(nodes):  # so that the path is accepted
                logits[0, node, draws[0, node]] += 15
            logits = logits.to(options.device, dtype)
            seqlens = torch.tensor([500], dtype=torch.int32, device=options.device)
            raw = (tree.tokens, tree.parents, tree.num_nodes, draws, logits, None, 0.3, 0.09, [],
                   seqlens, None, 15)  # fmt: skip
            kernel = torch.ops.dspark.typical_accept.default
            assert kernel(*raw)[2].item() == path + 1
            report.add(
                f"N{nodes} path {path} V{vocab}",
                dtype,
                {
                    "op": partial(kernel, *raw),
                    "public function": partial(
                        typical_accept, tree, draws, logits, [], seqlens, max_depth=15
                    ),
                    "reference": partial(reference, *raw),
                },
                (path + 1) * vocab * dtype.itemsize,  # the rows of the accepted nodes
            )
    report.save()


if __name__ == "__main__":
    main()
