"""context_lookup against its reference."""

from functools import partial

import torch
from common import Report, arguments

from dspark_kernels import context_lookup
from dspark_kernels.reference.context_lookup import context_lookup as reference


def main():
    options = arguments(__doc__)
    report = Report("context_lookup", options)
    g = torch.Generator().manual_seed(0)
    for batch, length in ((1, 1024), (1, 16384), (1, 131072), (4, 16384)):
        # token frequencies fall like those of text
        weights = 1.0 / (torch.arange(30000) + 10.0)
        history = torch.multinomial(weights, batch * length, replacement=True, generator=g)
        history = history.view(batch, length).to(options.device)
        lengths = torch.full((batch,), length, dtype=torch.int32, device=options.device)
        kernel = torch.ops.dspark.context_lookup.default
        report.add(
            f"B{batch} S{length}",
            history.dtype,
            {
                "op": partial(kernel, history, lengths, 3, 2, 4, 10),
                "public function": partial(context_lookup, history, lengths),
                "reference": partial(reference, history, lengths, 3, 2, 4, 10),
            },
            history.nbytes,
        )
    report.save()


if __name__ == "__main__":
    main()
