"""linear_topk against F.linear, logsumexp and topk in the same dtype, without noise.

The target's draw, one id per row from the noisy logits, is against softmax and multinomial; the
best token under a repetition penalty, what precedes it found out, against gather and scatter.
"""

import torch

import dspark_kernels
from dspark_kernels.reference.linear_topk import linear_topk as reference
from dspark_kernels.reference.seen_tokens import seen_tokens as seen_reference

from .common import Case, compiled, installed

K = 8
# V, D, M, k, whether there is noise
CPU = (
    (49152, 576, 5, K, False),
    (49152, 576, 16, K, False),
    (49152, 576, 64, K, False),
    (49152, 576, 5, K, True),
    (49152, 576, 64, K, True),
    (49152, 576, 16, 1, True),
    (12288, 576, 5, 64, False),  # the heads of the shipped draft
    (102400, 4096, 5, K, False),
    (102400, 4096, 64, K, False),
)
GPU = (
    *((151936, 4096, M, K, False) for M in (4, 16, 64, 128, 256)),
    *((151936, 4096, M, 1, True) for M in (1, 64)),
    (151936, 4096, 16, K, True),
    *((151936, 4096, M, 48, False) for M in (5, 40)),
    *((12288, 4096, M, 64, False) for M in (5, 40)),  # the heads of a draft
    (49152, 576, 16, K, False),
)
PENALIZED = {"cpu": ((49152, 576, 16),), "cuda": ((151936, 4096, 16), (151936, 4096, 64))}
HISTORY = 1024  # tokens before the draw, the same for all rows


def plain(k):
    def call(x, weight, *noise):
        logits = torch.nn.functional.linear(x, weight)
        return *logits.topk(k, dim=1), logits.logsumexp(dim=1)

    return call


def drawn(x, weight, temperature, *_):
    logits = torch.nn.functional.linear(x, weight).float() / temperature[:, None]
    return logits.softmax(dim=1).multinomial(1)


def best_penalized(x, weight, history, lengths, penalty):
    logits = torch.nn.functional.linear(x, weight).float()
    tokens = history.expand(len(x), -1)
    values = logits.gather(1, tokens)
    values = torch.where(values > 0, values / penalty, values * penalty)
    return logits.scatter(1, tokens, values).argmax(dim=1)


def flash_sampling(x, weight, temperature, *_):
    """FlashSampling's fused kernel (package fused_mm_sampling), from its own random stream."""
    from fused_mm_sampling.core import get_sampler

    sampler = get_sampler("fused-triton", weights=weight).prepare()
    return sampler.sample(
        weights=weight, hidden_states=x, num_samples=1, temperature=temperature[0]
    )


def tops(k):
    """The alternatives to ranking."""
    return {"F.linear, logsumexp, topk": plain(k), "the same compiled": compiled(plain(k))}


def draws(device):
    """The alternatives to drawing one id per row."""
    others = {"FlashSampling": flash_sampling} if installed("fused_mm_sampling", device) else {}
    return {"F.linear, softmax, multinomial": drawn, "the same compiled": compiled(drawn), **others}


def operands(g, V, D, M, dtype):
    """x [M, D] and a weight [V, D] on the device of a generator."""
    x = torch.randn(M, D, generator=g, device=g.device).to(dtype)
    weight = torch.empty(V, D, dtype=dtype, device=g.device).normal_(generator=g)
    weight *= D**-0.5
    return x, weight


def cases(device, dtype):
    for V, D, M, k, noisy in GPU if device == "cuda" else CPU:

        def make(seed, V=V, D=D, M=M, noisy=noisy):
            x, weight = operands(torch.Generator(device).manual_seed(seed), V, D, M, dtype)
            rows = torch.arange(M, device=device)
            return (x, weight, torch.ones(M, device=device), rows, rows) if noisy else (x, weight)

        def expected(x, weight, *noise, k=k):
            return reference(x, weight, k, None, *(noise or (None,) * 3), None, 0, None, None)

        def ours(x, weight, *noise, k=k):
            names = ("temperature", "seed", "position")[: len(noise)]
            return dspark_kernels.linear_topk(x, weight, k, **dict(zip(names, noise, strict=True)))

        yield Case(
            shape=f"V {V} D {D} M {M}{' noise' if noisy else ''}{f' k {k}' if k != K else ''}",
            make=make,
            ours=ours,
            baselines=draws(device) if k == 1 else tops(k),
            expected=expected,
            bytes=V * D * dtype.itemsize,
            flops=2 * M * V * D,
        )
    for V, D, M in PENALIZED[device]:

        def make(seed, V=V, D=D, M=M):
            g = torch.Generator(device).manual_seed(seed)
            x, weight = operands(g, V, D, M, dtype)
            history = torch.randint(V, (1, HISTORY), generator=g, device=device)
            lengths = torch.full((1,), HISTORY, dtype=torch.int32, device=device)
            return x, weight, history, lengths, torch.full((1,), 1.1, device=device)

        def ours(x, weight, history, lengths, penalty):
            seen = dspark_kernels.seen_tokens(history, lengths, len(weight))
            return dspark_kernels.linear_topk(x, weight, 1, seen=seen, repetition_penalty=penalty)

        def expected(x, weight, history, lengths, penalty):
            seen = seen_reference(history, lengths, len(weight), None, None, None)
            return reference(x, weight, 1, *(None,) * 5, 0, seen, penalty)

        yield Case(
            shape=f"V {V} D {D} M {M} penalty k 1",
            make=make,
            ours=ours,
            baselines={
                "F.linear, gather, scatter, argmax": best_penalized,
                "the same compiled": compiled(best_penalized),
            },
            expected=expected,
            bytes=V * D * dtype.itemsize,
            flops=2 * M * V * D,
        )
