"""chain_reject against its reference."""

from functools import partial

import torch
from common import Report, arguments

from dspark_kernels import chain_reject
from dspark_kernels.reference.chain_reject import chain_reject as reference


def main():
    options = arguments(__doc__)
    report = Report("chain_reject", options)
    g = torch.Generator().manual_seed(0)
    for batch, length, vocab in ((1, 4, 49152), (4, 4, 49152), (1, 4, 151936)):
        for dtype in (torch.float32, torch.bfloat16):
            target = torch.randn(batch, length + 1, vocab, generator=g) * 3
            draft = target[:, :length] + 0.3 * torch.randn(batch, length, vocab, generator=g)
            values = [
                part.to(options.device)
                for part in (
                    draft.argmax(dim=2), draft.to(dtype), target.to(dtype), torch.ones(batch),
                    torch.arange(batch), torch.full((batch,), 100),
                )
            ]  # fmt: skip
            kernel = torch.ops.dspark.chain_reject.default
            report.add(
                f"B{batch} K{length} V{vocab}",
                dtype,
                {
                    "op": partial(kernel, *values),
                    "public function": partial(chain_reject, *values),
                    "reference": partial(reference, *values),
                },
                values[1].nbytes + values[2].nbytes,
            )
    report.save()


if __name__ == "__main__":
    main()
