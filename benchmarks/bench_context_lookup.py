"""context_lookup against its reference."""

import torch

import dspark_kernels
from dspark_kernels.reference.context_lookup import context_lookup as reference

from .common import Case

OPTIONS = {"max_ngram": 3, "min_ngram": 2, "num_paths": 4, "path_length": 10}


def by_reference(history, lengths):
    return reference(history, lengths, *OPTIONS.values())


def cases(device, dtype):
    for batch, length in ((1, 1024), (1, 16384), (1, 131072), (4, 16384)):

        def make(seed, batch=batch, length=length):
            g = torch.Generator().manual_seed(seed)
            weights = 1.0 / (
                torch.arange(30000) + 10.0
            )  # token frequencies fall like those of text
            history = torch.multinomial(weights, batch * length, replacement=True, generator=g)
            lengths = torch.full((batch,), length, dtype=torch.int32, device=device)
            return history.view(batch, length).to(device), lengths

        yield Case(
            shape=f"B {batch} S {length}",
            make=make,
            ours=lambda history, lengths: dspark_kernels.context_lookup(
                history, lengths, **OPTIONS
            ),
            baselines={"reference in PyTorch": by_reference},
            expected=by_reference,
            bytes=8 * batch * length,
            flops=0,
        )
