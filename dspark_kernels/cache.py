"""The KV cache of a target model: every layer's keys and values, contiguous or paged."""

from dataclasses import dataclass

import torch


@dataclass
class KVCache:
    """Keys and values of all layers with one length per request.

    keys, values: one tensor per layer, [B, S, Hkv, E]; paged: [num_blocks, block_size, Hkv, E].
    seqlens: int32 [B], tokens kept; what lies beyond is scratch space of the current tree.
    block_table: int32 [B, max_blocks] of a paged cache, else None.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    seqlens: torch.Tensor
    block_table: torch.Tensor | None = None

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

        def layers():
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]

        return cls(layers(), layers(), torch.zeros(batch, dtype=torch.int32, device=device))

    @property
    def capacity(self) -> int:
        """Slots per request."""
        slots = self.keys[0].shape[1]
        return slots if self.block_table is None else slots * self.block_table.shape[1]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The keys and values of all layers, as `accept_tree` takes them."""
        return [*self.keys, *self.values]

    def slots(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Index of the `count` slots behind each request's tokens: two int64 [B, count] tensors.

        They index the first two dimensions of a layer: (request, slot), or (block, place in it).
        """
        slot = self.seqlens.long()[:, None] + torch.arange(count, device=self.seqlens.device)
        if self.block_table is None:
            return torch.arange(len(slot), device=slot.device)[:, None].expand_as(slot), slot
        block_size = self.keys[0].shape[1]
        return self.block_table.long().gather(1, slot // block_size), slot % block_size
