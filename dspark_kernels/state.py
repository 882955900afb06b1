"""What a batch of requests looks like between two steps."""

from dataclasses import dataclass

import torch

from .cache import KVCache
from .ops.tree_attention import MAX_NODES
from .sampling import DrawTensors


@dataclass
class State:
    """Everything a step reads and updates; B requests, all tensors of fixed shape."""

    cache: KVCache
    history: torch.Tensor  # int64 [B, S]: prompt and emitted tokens; the last one is the root
    lengths: torch.Tensor  # int32 [B], used part of history
    hidden: torch.Tensor  # [B, D], the target's state which drew the root
    features: torch.Tensor | None  # [B, F], earlier layers' states at the same place
    sampling: DrawTensors
    stop: torch.Tensor  # int64 [K], tokens that end a request
    limit: torch.Tensor  # int32 [B], length at which a request ends
    done: torch.Tensor  # bool [B]

    @property
    def root(self) -> torch.Tensor:
        """The last emitted token of each request, int64 [B]; its K/V is not in the cache yet."""
        return self.history.gather(1, self.lengths.long()[:, None] - 1)[:, 0]

    def append(self, tokens: torch.Tensor, counts: torch.Tensor) -> None:
        """Append the first counts[b] tokens of each row; -1 beyond them is overwritten later."""
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        self.history.scatter_(1, self.lengths.long()[:, None] + columns, tokens)
        self.lengths += counts
        ended = (torch.isin(tokens, self.stop) & (columns < counts[:, None])).any(dim=1)
        self.done |= ended | (self.lengths >= self.limit)


def check_arguments(target, prompts, max_new_tokens, num_nodes, sync_every) -> None:
    """Raise a ValueError that names the first unusable argument of `generate`."""
    if not prompts:
        raise ValueError("generate: prompts must hold at least one prompt, got none")
    for name, value in (
        ("max_new_tokens", max_new_tokens), ("num_nodes", num_nodes), ("sync_every", sync_every),
    ):  # fmt: skip
        if value < 1:
            raise ValueError(f"generate: {name} must be at least 1, got {value}")
    if num_nodes > MAX_NODES:
        raise ValueError(f"generate: num_nodes must be at most {MAX_NODES}, got {num_nodes}")
    vocab_size = target.lm_head.shape[0]
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"generate: prompt {number} must hold at least one token, got none")
        if len(prompt) + max_new_tokens > target.max_length:
            raise ValueError(
                f"generate: prompt {number} and its continuation must fit into the model's context "
                f"of {target.max_length} tokens, got {len(prompt)} + {max_new_tokens}"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ValueError(
                f"generate: prompt {number} must hold ids from 0 to {vocab_size - 1}, "
                f"got {min(prompt)} to {max(prompt)}"
            )
