"""sample_logits against sorting, softmax, cumsum and multinomial: of logits that exist, and, "from
states", with the LM head before it, of which linear_topk lists 64 logits per row."""

import torch
import torch.nn.functional as F

import dspark_kernels
from dspark_kernels.reference.sample_logits import sample_logits as reference

from .common import Case, compiled, installed

NAMES = "temperature", "seed", "position", "top_k", "top_p"
SHAPES = (1, 49152), (32, 49152), (8, 151936)  # M, V
FROM_STATES = {
    "cpu": ((16, 49152, 576),),
    "cuda": ((16, 49152, 576), (16, 151936, 4096)),
}  # M, V, D


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


def ours(logits, *options, ids=None):
    options = dict(zip(NAMES, options, strict=True))
    return dspark_kernels.sample_logits(logits, ids=ids, **options)


def listed(x, weight, *options):
    logits, ids, _ = dspark_kernels.linear_topk(x, weight, 64)
    return ours(logits, *options, ids=ids)


def expected(logits, *options):
    return reference(logits.float(), None, *options, *(None,) * 3)


def after_the_head(draw):
    """A draw from logits, with their product before it."""
    return lambda x, weight, *options: draw(F.linear(x, weight), *options)


def options_of(seed, M, device):
    rows = torch.arange(M, device=device)
    return (
        torch.full((M,), 0.8, device=device), rows + seed, rows,
        torch.full((M,), 50, dtype=torch.int32, device=device),
        torch.full((M,), 0.95, device=device),
    )  # fmt: skip


def cases(device, dtype):
    others = {"FlashInfer": flashinfer_draw} if installed("flashinfer", device) else {}
    draws = {"sort, softmax, multinomial": plain, **others}
    for M, V in SHAPES:

        def make(seed, M=M, V=V):
            g = torch.Generator(device).manual_seed(seed)
            logits = (torch.randn(M, V, generator=g, device=device) * 3).to(dtype)
            return logits, *options_of(seed, M, device)

        yield Case(
            shape=f"M {M} V {V} top-k 50 top-p 0.95",
            make=make,
            ours=ours,
            baselines=draws | {"the same compiled": compiled(plain)},
            expected=expected,
            bytes=M * V * dtype.itemsize,
            flops=0,
        )
    for M, V, D in FROM_STATES[device]:

        def make(seed, M=M, V=V, D=D):
            g = torch.Generator(device).manual_seed(seed)
            x = torch.randn(M, D, generator=g, device=device).to(dtype)
            weight = torch.empty(V, D, dtype=dtype, device=device).normal_(generator=g)
            return x, weight * (3 * D**-0.5), *options_of(seed, M, device)

        yield Case(
            shape=f"M {M} V {V} D {D} from states, top-k 50 top-p 0.95",
            make=make,
            ours=listed,
            baselines={
                **{f"F.linear, {name}": after_the_head(draw) for name, draw in draws.items()},
                "the same compiled": compiled(after_the_head(plain)),
                "F.linear, sample_logits": after_the_head(ours),
            },
            expected=lambda x, weight, *options: expected(x.float() @ weight.float().T, *options),
            bytes=V * D * dtype.itemsize,
            flops=2 * M * V * D,
        )
