"""glm_tree against its reference: the whole gate, from the heads' candidates to the tree."""

import torch

from dspark_kernels.reference.glm_tree import glm_tree as reference

from .common import Case

VOCAB = 49152
SCORES = 4  # of the outputs


def cases(device, dtype):
    for B, H, C, R, N, P in (
        (1, 5, 32, 64, 64, 0),
        (1, 5, 32, 64, 64, 4),
        (4, 5, 32, 64, 64, 4),
        (1, 5, 48, 128, 64, 4),
        (1, 8, 64, 256, 256, 4),
    ):
        g = torch.Generator(device).manual_seed(0)
        tables = torch.randn(2, VOCAB, R, generator=g, device=device).to(dtype)

        def make(seed, B=B, H=H, C=C, R=R, N=N, P=P, tables=tables):
            g = torch.Generator(device).manual_seed(seed)

            def normal(*shape, scale=1.0):
                return torch.randn(shape, generator=g, device=device) * scale

            def tokens(*shape):
                return torch.randint(0, VOCAB, shape, generator=g, device=device)

            keys = normal(B, H, C, scale=2.0).sort(descending=True).values
            ids = torch.rand(B, H, VOCAB, generator=g, device=device).topk(C).indices
            return (
                ids, keys, keys.logsumexp(dim=-1) + 0.5, normal(B, H, 2 * R), tokens(B),
                tables[0], tables[1] * 0.5, normal(2 * R, R, scale=R**-0.5).to(dtype),
                normal(H, R), torch.ones(H, device=device), torch.ones(B, device=device),
                tokens(B, P, 10), torch.rand(B, P, 10, generator=g, device=device), N, 0.0,
            )  # fmt: skip

        # the rows of the tables that must be read at least, and mix
        rows = B * (N + H * C) + 2 * R
        yield Case(
            shape=f"B {B} H {H} C {C} R {R} N {N} P {P}",
            make=make,
            ours=torch.ops.dspark.glm_tree.default,
            baseline=reference,
            baseline_name="the PyTorch reference",
            expected=reference,
            bytes=rows * R * dtype.itemsize,
            flops=2 * B * (N * 2 * R * R + N * C * R),
            output=SCORES,
        )
