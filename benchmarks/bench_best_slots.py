"""best_slots against its reference."""

import torch

from dspark_kernels.reference.best_slots import best_slots as reference

from .common import Case


def cases(device, dtype):
    for batch, nodes, total in ((8, 64, 128), (32, 64, 512), (64, 32, 512), (16, 256, 1024)):

        def make(seed, batch=batch, nodes=nodes, total=total):
            g = torch.Generator().manual_seed(seed)
            scores = torch.rand(batch, nodes, generator=g).sort(descending=True).values
            used = torch.randint(nodes // 2, nodes + 1, (batch,), generator=g)
            scores = scores.masked_fill(torch.arange(nodes) >= used[:, None], 0.0)
            lengths = torch.randint(100, 900, (batch,), generator=g)
            vectors = (used.int(), lengths.int(), torch.full((batch,), 1000).int())
            done = torch.arange(batch) % 8 == 7
            return *(part.to(device) for part in (scores, *vectors, done)), nodes, total

        yield Case(
            shape=f"B {batch} N {nodes} T {total}",
            make=make,
            ours=torch.ops.dspark.best_slots.default,
            baselines={"reference in PyTorch": reference},
            expected=reference,
            bytes=batch * (4 * nodes + 13),
            flops=0,
        )
