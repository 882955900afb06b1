"""sample_logits against sorting, softmax, cumsum and multinomial."""

import torch

import dspark_kernels
from dspark_kernels.reference.sample_logits import sample_logits as reference

from .common import Case, compiled, installed


def plain(logits, temperature, seed, position, top_k, top_p):
    """What generation libraries do: sort the logits, cut the tail, draw from what is left."""
    scaled = logits.float() / temperature[:, None]
    values, columns = scaled.sort(dim=1, descending=True)
    rank = torch.arange(values.shape[1], device=values.device)
    values = values.masked_fill(rank >= top_k[:, None], float("-inf"))
    probability = values.softmax(dim=1)
    above = probability.cumsum(dim=1) - probability
    probability = probability.masked_fill(above >= top_p[:, None], 0.0)
    return columns.gather(1, probability.multinomial(1))[:, 0]


def flashinfer_draw(logits, temperature, seed, position, top_k, top_p):
    """The same cut by FlashInfer, from its own random stream."""
    import flashinfer

    scaled = logits.float() / temperature[:, None]
    return flashinfer.sampling.top_k_top_p_sampling_from_logits(scaled, top_k, top_p)


def cases(device, dtype):
    others = {"FlashInfer": flashinfer_draw} if installed("flashinfer", device) else {}
    for M, V in ((1, 49152), (32, 49152), (8, 151936)):

        def make(seed, M=M, V=V):
            g = torch.Generator(device).manual_seed(seed)
            rows = torch.arange(M, device=device)
            return (
                (torch.randn(M, V, generator=g, device=device) * 3).to(dtype),
                torch.full((M,), 0.8, device=device),
                rows + seed,
                rows,
                torch.full((M,), 50, dtype=torch.int32, device=device),
                torch.full((M,), 0.95, device=device),
            )

        def ours(logits, temperature, seed, position, top_k, top_p):
            return dspark_kernels.sample_logits(
                logits, temperature=temperature, seed=seed, position=position, top_k=top_k,
                top_p=top_p,
            )  # fmt: skip

        yield Case(
            shape=f"M {M} V {V} top-k 50 top-p 0.95",
            make=make,
            ours=ours,
            baselines={
                "sort, softmax, multinomial": plain,
                "the same compiled": compiled(plain),
                **others,
            },
            expected=lambda *tensors: reference(*tensors, None),
            bytes=M * V * dtype.itemsize,
            flops=0,
        )
