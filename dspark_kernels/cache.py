"""The KV cache of a target model: every layer's keys and values, contiguous or paged."""

from dataclasses import dataclass

import torch


@dataclass
class KVCache:
    """Keys and values of all layers with one length per request.

    storage: [L, 2, B, S, Hkv, E], keys and values of L layers; paged: [L, 2, num_blocks,
        block_size, Hkv, E]. One tensor, so that `accept_tree` moves all layers' entries as one.
    seqlens: int32 [B], tokens kept; what lies beyond is scratch space of the current tree.
    block_table: int32 [B, max_blocks] of a paged cache, else None.
    """

    storage: torch.Tensor
    seqlens: torch.Tensor
    block_table: torch.Tensor | None = None

    def __post_init__(self):
        self.keys, self.values = (list(part) for part in self.storage.unbind(1))

    @classmethod
    def contiguous(cls, num_layers, batch, capacity, kv_heads, head_dim, dtype, device):
        """An empty cache of `capacity` slots per request."""
        shape = (batch, capacity, kv_heads, head_dim)
        return cls._empty(num_layers, shape, batch, dtype, device)

    @classmethod
    def paged(
        cls, num_layers, num_blocks, block_size, kv_heads, head_dim, dtype, device, block_table
    ):
        """An empty cache of blocks; `block_table` int32 [B, max_blocks] says whose they are."""
        used = block_table[block_table >= 0]
        if used.numel() and int(used.max()) >= num_blocks:
            raise ValueError(
                f"KVCache: block_table must hold blocks below {num_blocks}, got {int(used.max())}"
            )
        if used.unique().numel() != used.numel():
            raise ValueError("KVCache: block_table must not give one block to two places")
        shape = (num_blocks, block_size, kv_heads, head_dim)
        cache = cls._empty(num_layers, shape, block_table.shape[0], dtype, device)
        cache.block_table = block_table
        return cache

    @classmethod
    def _empty(cls, num_layers, shape, batch, dtype, device):
        if min(num_layers, *shape) < 1:
            raise ValueError(f"KVCache: sizes must be positive, got {num_layers} layers of {shape}")
        storage = torch.zeros(num_layers, 2, *shape, dtype=dtype, device=device)
        return cls(storage, torch.zeros(batch, dtype=torch.int32, device=device))

    @property
    def capacity(self) -> int:
        """Slots per request."""
        slots = self.keys[0].shape[1]
        return slots if self.block_table is None else slots * self.block_table.shape[1]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Keys and values as `accept_tree` takes them: one cache [B, S, L, 2, Hkv, E]."""
        return [self.storage.permute(2, 3, 0, 1, 4, 5)]

    def select(self, requests: torch.Tensor) -> "KVCache":
        """The cache of these requests alone, in the same storage, where the others are lost.

        requests: int64 [K] on the host, distinct; the i-th is i, or K or more and moves to i.
        """
        storage, table = self.storage, self.block_table
        if table is None:
            for place, request in enumerate(requests.tolist()):
                if request != place:
                    storage[:, :, place] = storage[:, :, request]
            storage = storage[:, :, : len(requests)]
        else:
            table = table[requests]
        return KVCache(storage, self.seqlens[requests], table)

    def hold(self, other: "KVCache", requests: list[int], count: int) -> None:
        """Hold, in order, the first `count` tokens of these requests of a contiguous cache, this
        one or another, which may hold fewer: what follows is scratch."""
        if other is self and requests == list(range(len(requests))):
            return
        count = min(count, other.capacity)
        for own, given in zip(self.storage, other.storage, strict=True):  # a layer at a time
            own[:, :, :count] = given[:, requests, :count]

    def slots(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Index of the `count` slots behind each request's tokens: two int64 [B, count] tensors.

        They index the first two dimensions of a layer: (request, slot), or (block, place in it).
        """
        slot = self.seqlens.long()[:, None] + torch.arange(count, device=self.seqlens.device)
        if self.block_table is None:
            return torch.arange(len(slot), device=slot.device)[:, None].expand_as(slot), slot
        block_size = self.keys[0].shape[1]
        return self.block_table.long().gather(1, slot // block_size), slot % block_size
