"""seen_tokens against a matrix of booleans by PyTorch, a token of the history or path at a time."""

import torch

import dspark_kernels
from dspark_kernels.reference.seen_tokens import seen_tokens as reference

from .common import Case

NODES = 16


def as_booleans(history, lengths, vocab_size, tokens, ancestors, slots):
    """bool [B · N, V]: what a penalty is given otherwise."""
    node = torch.arange(NODES, device=history.device)
    known = torch.arange(history.shape[1], device=history.device) < lengths[:, None]
    history = torch.where(known, history, history[:, :1])
    path = torch.where(ancestors >> node & 1 == 1, tokens[:, None], tokens[:, :, None])
    text = torch.cat((history[:, None].expand(-1, NODES, -1), path), dim=2).flatten(0, 1)
    seen = torch.zeros(len(text), vocab_size, dtype=torch.bool, device=history.device)
    return seen.scatter_(1, text, True)


def cases(device, dtype):
    shapes = ((1, 1024, 49152), (1, 16384, 151936), (8, 4096, 151936))
    for batch, length, vocab_size in shapes:

        def make(seed, batch=batch, length=length, vocab_size=vocab_size):
            g = torch.Generator().manual_seed(seed)
            history = torch.randint(0, vocab_size, (batch, length), generator=g)
            tree = dspark_kernels.chain(torch.randint(0, vocab_size, (batch, NODES), generator=g))
            lengths = torch.full((batch,), length, dtype=torch.int32)
            tensors = (history, lengths, tree.tokens, tree.ancestors)
            history, lengths, *tree = (part.to(device) for part in tensors)
            return history, lengths, vocab_size, *tree, None

        yield Case(
            shape=f"B {batch} N {NODES} S {length} V {vocab_size}",
            make=make,
            ours=torch.ops.dspark.seen_tokens.default,
            baselines={"scatter of booleans": as_booleans},
            expected=reference,
            bytes=8 * batch * (length + NODES * vocab_size // 64),
            flops=0,
        )
