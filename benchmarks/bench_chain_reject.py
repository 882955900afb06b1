"""chain_reject against its reference."""

import torch

from dspark_kernels import chain_reject
from dspark_kernels.reference.chain_reject import chain_reject as reference

from .common import Case


def cases(device, dtype):
    for batch, length, vocab in ((1, 4, 49152), (4, 4, 49152), (1, 4, 151936)):

        def make(seed, batch=batch, length=length, vocab=vocab):
            g = torch.Generator().manual_seed(seed)
            target = torch.randn(batch, length + 1, vocab, generator=g) * 3
            draft = target[:, :length] + 0.3 * torch.randn(batch, length, vocab, generator=g)
            values = (
                draft.argmax(dim=2), draft.to(dtype), target.to(dtype), torch.ones(batch),
                torch.arange(batch), torch.full((batch,), 100),
            )  # fmt: skip
            return tuple(value.to(device) for value in values)

        yield Case(
            shape=f"B {batch} K {length} V {vocab}",
            make=make,
            ours=chain_reject,
            baselines={"reference in PyTorch": reference},
            expected=reference,
            bytes=batch * (2 * length + 1) * vocab * dtype.itemsize,
            flops=0,
        )
