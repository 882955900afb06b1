"""advance_step against its reference."""

import torch

from dspark_kernels.reference.advance_step import advance_step as reference

from .common import Case

NODES, EMITTED, CAPACITY = 16, 65, 8192  # every call appends four tokens


def cases(device, dtype):
    for batch, widths in ((1, (576, 1728)), (8, (576, 1728)), (1, (4096, 12288)), (64, (4096,))):

        def make(seed, batch=batch, widths=widths):
            g = torch.Generator().manual_seed(seed)

            def column(value, dtype=torch.int32):
                return torch.full((batch,), value, dtype=dtype, device=device)

            tokens = torch.randint(0, 30000, (batch, EMITTED), generator=g).to(device)
            return (
                tokens, column(4), column(3), None,
                [torch.randn(batch * NODES, width, device=device).to(dtype) for width in widths],
                torch.tensor([30001], device=device), column(CAPACITY),
                torch.zeros(batch, CAPACITY, dtype=torch.int64, device=device),
                column(200), column(199), column(0, torch.int64), column(False, torch.bool),
                [torch.zeros(batch, width, dtype=dtype, device=device) for width in widths],
            )  # fmt: skip

        yield Case(
            shape=f"B {batch} D {' + '.join(map(str, widths))}",
            make=make,
            ours=torch.ops.dspark.advance_step.default,
            baselines={"reference in PyTorch": reference},
            expected=reference,
            bytes=2 * batch * sum(widths) * dtype.itemsize,
            flops=0,
            cold=True,
        )
