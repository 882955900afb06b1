"""What a batch of requests looks like between two steps."""

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch

from .cache import KVCache
from .ops import advance_step, seen_tokens
from .packing import Packing
from .sampling import DrawTensors
from .side import SideStream
from .tree import DraftTree, chain

CAPACITY_UNIT = 256  # tokens; a state serves all calls whose longest request rounds up to it
STOPS_UNIT = 8  # stop tokens, likewise
NO_TOKEN = -1


def stop_places(stops: int) -> int:
    """Places of a state for so many stop tokens."""
    return max(-(-stops // STOPS_UNIT), 1) * STOPS_UNIT


@dataclass
class State:
    """Everything a step reads and updates in place; B requests, all tensors of fixed shape.

    New prompts, finished requests and changed lengths are values in these tensors, so that a step
    captured over them (`graph`) serves them all.
    """

    cache: KVCache
    history: torch.Tensor  # int64 [B, S]: prompt and emitted tokens; the last one is the root
    lengths: torch.Tensor  # int32 [B], used part of history
    root: torch.Tensor  # int64 [B], the last emitted token; its K/V is not in the cache yet
    hidden: torch.Tensor  # [B, D], the target's state which drew the root
    features: torch.Tensor | None  # [B, F], earlier layers' states at the same place
    sampling: DrawTensors
    stop: torch.Tensor  # int64 [K], tokens that end a request, and NO_TOKEN in free places
    limit: torch.Tensor  # int32 [B], length at which a request ends
    done: torch.Tensor  # bool [B]
    side: SideStream
    vocab_size: int

    @classmethod
    def empty(cls, target, batch: int, capacity: int, sampling: DrawTensors, stops: int) -> "State":
        """Buffers for requests of `capacity` tokens which draw like `sampling`, and `stops` stop
        tokens; both rounded up."""
        device, width = target.device, target.lm_head.shape[1]
        capacity = -(-capacity // CAPACITY_UNIT) * CAPACITY_UNIT

        def zeros(*shape, dtype=torch.int32):
            return torch.zeros(*shape, dtype=dtype, device=device)

        layers = len(target.feature_layers)
        return cls(
            cache=target.new_cache(batch, capacity),
            history=zeros(batch, capacity, dtype=torch.int64),
            lengths=zeros(batch),
            root=zeros(batch, dtype=torch.int64),
            hidden=zeros(batch, width, dtype=target.dtype),
            features=zeros(batch, layers * width, dtype=target.dtype) if layers else None,
            sampling=DrawTensors(*(None if part is None else part.clone() for part in sampling)),
            stop=zeros(stop_places(stops), dtype=torch.int64),
            limit=zeros(batch),
            done=zeros(batch, dtype=torch.bool),
            side=SideStream(device),
            vocab_size=target.lm_head.shape[0],
        )

    @property
    def capacity(self) -> int:
        """Tokens of a request."""
        return self.history.shape[1]

    def load(self, prompts, sampling: DrawTensors, stop, max_new_tokens: int) -> None:
        """Take new requests: their prompts become the history, the cache is empty."""
        longest = max(len(prompt) for prompt in prompts)
        rows = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
        self.history[:, :longest].copy_(rows)
        self.lengths.copy_(torch.tensor([len(prompt) for prompt in prompts]))
        self.limit.copy_(self.lengths + max_new_tokens)
        self.stop.fill_(NO_TOKEN)
        self.stop[: len(stop)].copy_(torch.tensor(stop, dtype=torch.int64))
        self.cache.seqlens.zero_()
        self.done.zero_()
        for held, given in zip(self.sampling, sampling, strict=True):
            if held is not None:
                held.copy_(given)

    def advance(self, tokens, counts, node, hidden, features, rows=None) -> torch.Tensor:
        """Take what a step emitted, see `advance_step`: hidden [T, D] and features [T, F] or None.

        Returns how many tokens each request got, int32 [B].
        """
        pairs = [(hidden, self.hidden), (features, self.features)]
        hidden, kept = zip(*(pair for pair in pairs if pair[0] is not None), strict=True)
        return advance_step(
            tokens, counts, node, hidden, rows=rows, stop=self.stop, limit=self.limit,
            history=self.history, lengths=self.lengths, cache_seqlens=self.cache.seqlens,
            root=self.root, done=self.done, kept=kept,
        )  # fmt: skip

    def seen(
        self, tree: DraftTree | None = None, packing: Packing | None = None
    ) -> torch.Tensor | None:
        """The tokens before each draw, of which `seen_tokens` tells; None if no penalty needs them.

        tree, packing: draws at its nodes, or at those slots of it; None: one behind each text.
        """
        if self.sampling.repetition_penalty is None:
            return None
        return seen_tokens(
            self.history, self.lengths, self.vocab_size,
            tokens=None if tree is None else tree.tokens,
            ancestors=None if tree is None else tree.ancestors,
            slots=None if packing is None else packing.slots,
        )  # fmt: skip

    @cached_property
    def roots(self) -> DraftTree:
        """The trees of a step without a draft: views of `root`, and what never changes."""
        return chain(self.root[:, None])

    def select(self, requests: torch.Tensor) -> "State":
        """The state of these requests alone, on this one's cache; see `KVCache.select`."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        own = {
            name: part[requests]
            for name, part in parts.items()
            if isinstance(part, torch.Tensor) and name != "stop"
        }
        options = (None if part is None else part[requests] for part in self.sampling)
        cache = self.cache.select(requests)
        return replace(self, cache=cache, sampling=DrawTensors(*options), **own)
