"""How tokens are drawn: options for one request or each request of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .checks import integer, number, plain
from .ops import linear_topk, sample_logits
from .packing import Packing, pack

LEAST_TEMPERATURE = 1e-6  # logits over less are no float32 numbers


class DrawTensors(NamedTuple):
    """Sampling options on the device, one entry per request; None where no request uses one."""

    temperature: torch.Tensor | None  # float32 [B]
    seed: torch.Tensor  # int64 [B]
    top_k: torch.Tensor | None  # int32 [B]
    top_p: torch.Tensor | None  # float32 [B]
    min_p: torch.Tensor | None  # float32 [B]

    @property
    def truncated(self) -> bool:
        """Whether the draw looks at more than the largest perturbed logit."""
        return self.top_k is not None or self.top_p is not None or self.min_p is not None


@dataclass(frozen=True)
class Sampling:
    """Options of the draw; each is one number for all requests or a sequence with one per request.

    temperature: 0 for greedy decoding, or 1e-6 and more. seed: of the noise; the same seed gives
    the same text. top_k: 0 for off. top_p: in (0, 1], 1 for off. min_p: in [0, 1], 0 for off.
    """

    temperature: float | Sequence[float] = 0.0
    seed: int | Sequence[int] = 0
    top_k: int | Sequence[int] = 0
    top_p: float | Sequence[float] = 1.0
    min_p: float | Sequence[float] = 0.0

    def tensors(self, batch: int, device: torch.device) -> DrawTensors:
        """Checked tensors for `batch` requests."""

        def column(name, low, high, dtype, off, least=0.0):
            value = plain(getattr(self, name))
            check = number if dtype.is_floating_point else integer
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
            if all(value == off for value in values):
                return None
            return torch.tensor(values, dtype=dtype, device=device)

        seed = column("seed", -(2**63), 2**63 - 1, torch.int64, None)
        smallest = torch.finfo(torch.float32).tiny
        return DrawTensors(
            temperature=column("temperature", 0, None, torch.float32, 0, LEAST_TEMPERATURE),
            seed=seed,
            top_k=column("top_k", 0, 2**31 - 1, torch.int32, 0),
            top_p=column("top_p", smallest, 1, torch.float32, 1),
            min_p=column("min_p", 0, 1, torch.float32, 0),
        )


def draw(
    target, hidden: torch.Tensor, positions: torch.Tensor, sampling: DrawTensors,
    packing: Packing | None = None,
) -> torch.Tensor:  # fmt: skip
    """The target's own draws: hidden [T, D], positions int64 [B, N] of the nodes -> ids int64 [T].

    packing: the slots which the T rows are, None for all. A draw's noise is that of the position
    behind its node.
    """

    def per_row(option):
        return None if option is None else pack(option[:, None].expand(positions.shape), packing)

    noise = {}
    if sampling.temperature is not None:
        noise = {
            "temperature": per_row(sampling.temperature),
            "seed": per_row(sampling.seed),
            "position": pack(positions, packing) + 1,
        }
    if noise and sampling.truncated:
        logits = torch.nn.functional.linear(hidden, target.lm_head, target.lm_head_bias)
        return sample_logits(
            logits,
            **noise,
            top_k=per_row(sampling.top_k),
            top_p=per_row(sampling.top_p),
            min_p=per_row(sampling.min_p),
        )
    _, ids, _ = linear_topk(hidden, target.lm_head, 1, bias=target.lm_head_bias, **noise)
    return ids[:, 0]
