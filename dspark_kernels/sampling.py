"""How tokens are drawn: options for one request or each request of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .checks import integer, number, plain
from .ops import fused_linear, linear_topk, sample_logits
from .ops.linear_topk import MAX_K
from .packing import Packing, pack

LEAST_TEMPERATURE = 1e-6  # logits over less are no float32 numbers


class DrawTensors(NamedTuple):
    """Sampling options on the device, one entry per request; None where no request uses one."""

    temperature: torch.Tensor | None  # float32 [B]
    seed: torch.Tensor  # int64 [B]
    top_k: torch.Tensor | None  # int32 [B]
    top_few: torch.Tensor | None  # int32 [B], instead, if every request keeps 1 to MAX_K tokens
    top_p: torch.Tensor | None  # float32 [B]
    min_p: torch.Tensor | None  # float32 [B]
    repetition_penalty: torch.Tensor | None  # float32 [B]

    @property
    def truncation(self) -> dict[str, torch.Tensor | None]:
        """What keeps some tokens from being drawn, as `sample_logits` takes it; {} if nothing."""
        top_k = self.top_k if self.top_few is None else self.top_few
        options = {"top_k": top_k, "top_p": self.top_p, "min_p": self.min_p}
        return {} if all(option is None for option in options.values()) else options


@dataclass(frozen=True)
class Sampling:
    """Options of the draw; each is one number for all requests or a sequence with one per request.

    temperature: 0 for greedy decoding, or 1e-6 and more. seed: of the noise; the same seed gives
    the same text. top_k: 0 for off. top_p: in (0, 1], 1 for off. min_p: in [0, 1], 0 for off.
    repetition_penalty: above 0, 1 for off; logits of tokens that stand in the prompt or behind it
    are divided by it where they are above 0, else multiplied (Keskar et al. 2019). Drafts foresee
    it for tokens of the text, not for those that they propose themselves.
    """

    temperature: float | Sequence[float] = 0.0
    seed: int | Sequence[int] = 0
    top_k: int | Sequence[int] = 0
    top_p: float | Sequence[float] = 1.0
    min_p: float | Sequence[float] = 0.0
    repetition_penalty: float | Sequence[float] = 1.0

    def tensors(self, batch: int, device: torch.device, logit_scale: float = 1.0) -> DrawTensors:
        """Checked tensors for `batch` requests; the temperature is that of logits / logit_scale."""

        def checked(name, check, low, high, off, least=0.0):
            value = plain(getattr(self, name))
            several = isinstance(value, Sequence) and not isinstance(value, str)
            values = list(value) if several else [value] * batch
            if len(values) != batch:
                raise ValueError(
                    f"generate: {name} must be one number or {batch}, one per request, got "
                    f"{len(values)}"
                )
            values = [check(name, value, low, high) for value in values]
            for value in values:
                if least and off < value < least:
                    raise ValueError(
                        f"generate: {name} must be {off} or at least {least}, got {value}"
                    )
            return None if all(value == off for value in values) else values

        def tensor(values, dtype=torch.float32):
            return None if values is None else torch.tensor(values, dtype=dtype, device=device)

        seed = checked("seed", integer, -(2**63), 2**63 - 1, None)
        temperature = tensor(checked("temperature", number, 0, None, 0, LEAST_TEMPERATURE))
        top_k, few = checked("top_k", integer, 0, 2**31 - 1, 0), None
        if top_k is not None and all(0 < k <= MAX_K for k in top_k):
            top_k, few = None, top_k
        smallest = torch.finfo(torch.float32).tiny
        return DrawTensors(
            temperature=None if temperature is None else temperature / logit_scale,
            seed=tensor(seed, torch.int64),
            top_k=tensor(top_k, torch.int32),
            top_few=tensor(few, torch.int32),
            top_p=tensor(checked("top_p", number, smallest, 1, 1)),
            min_p=tensor(checked("min_p", number, 0, 1, 0)),
            repetition_penalty=tensor(checked("repetition_penalty", number, smallest, None, 1)),
        )


def draw(
    target, hidden: torch.Tensor, positions: torch.Tensor, sampling: DrawTensors,
    seen: torch.Tensor | None, packing: Packing | None = None,
) -> torch.Tensor:  # fmt: skip
    """The target's own draws: hidden [T, D], positions int64 [B, N] of the nodes -> ids int64 [T].

    seen: the tokens before each draw, see `seen_tokens`; None without a penalty. packing: the slots
    which the T rows are, None for all. A draw's noise is that of the position behind its node.
    Logits of the whole vocabulary exist only where more than MAX_K of them may matter; of more than
    MAX_K that are equal at the end of a shorter top-k, the first are kept. A list is rounded to the
    model's dtype behind a penalty, all logits are before it.
    """
    noise, truncation, penalty = {}, {}, {}
    altered = sampling.temperature is not None or sampling.repetition_penalty is not None
    if altered and packing is not None:  # the requests' numbers of rows differ
        requests = packing.slots // positions.shape[1]
        sampling = DrawTensors(*(None if t is None else t[requests] for t in sampling))
    if sampling.temperature is not None:
        noise = {
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            "position": pack(positions, packing) + 1,
        }
        truncation = sampling.truncation
    if sampling.repetition_penalty is not None:
        penalty = {"seen": seen, "repetition_penalty": sampling.repetition_penalty}
    weight, bias = target.lm_head, target.lm_head_bias
    capped = target.logit_cap is not None and altered  # the largest logit does not see a cap
    if not truncation and not capped:
        _, ids, _ = linear_topk(hidden, weight, 1, bias=bias, **noise, **penalty)
        return ids[:, 0]
    ids = None
    if truncation and sampling.top_few is not None and not (capped and penalty):
        logits, ids, _ = linear_topk(hidden, weight, min(MAX_K, len(weight)), bias=bias, **penalty)
        logits = logits.to(hidden.dtype)  # as all are: without a penalty, both ways draw the same
        penalty = {}
    elif hidden.is_cuda:
        logits = torch.nn.functional.linear(hidden, weight, bias)
    else:  # of which the logits of a row do not depend on the number of rows
        logits = fused_linear(hidden, [weight], biases=[] if bias is None else [bias])
    if capped:
        logits = target.logit_cap * torch.tanh(logits / target.logit_cap)
    return sample_logits(logits, ids=ids, **noise, **truncation, **penalty)
