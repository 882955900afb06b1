"""The KV cache: slots, and paged layouts against contiguous ones."""

import pytest
import torch
from tiny import tiny_model

from dspark_kernels import accept_tree
from dspark_kernels.cache import KVCache
from dspark_kernels.integrations.transformers import TransformersTarget
from dspark_kernels.tree import DraftTree

SIZES = {"kv_heads": 2, "head_dim": 8, "dtype": torch.float32, "device": "cpu"}


def paged_cache(batch, capacity, block_size):
    """A paged cache whose blocks are shuffled over the pool."""
    blocks = -(-capacity // block_size)
    order = torch.randperm(batch * blocks + 3, generator=torch.Generator().manual_seed(0))
    table = order[: batch * blocks].view(batch, blocks).int()
    return KVCache.paged(2, batch * blocks + 3, block_size, block_table=table, **SIZES)


def test_slots_follow_each_request():
    cache = KVCache.contiguous(2, 3, 20, **SIZES)
    cache.seqlens += torch.tensor([0, 5, 2], dtype=torch.int32)
    request, slot = cache.slots(2)
    assert request.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert slot.tolist() == [[0, 1], [5, 6], [2, 3]]
    assert cache.capacity == 20
    assert [list(tensor.shape) for tensor in cache.tensors] == [[3, 20, 2, 2, 2, 8]]


def test_paged_slots_follow_the_block_table():
    cache = KVCache.paged(
        1, 6, 4, block_table=torch.tensor([[5, 0], [2, 3]], dtype=torch.int32), **SIZES
    )
    cache.seqlens += torch.tensor([3, 4], dtype=torch.int32)
    block, place = cache.slots(2)
    assert block.tolist() == [[5, 0], [3, 3]]
    assert place.tolist() == [[3, 0], [0, 1]]
    assert cache.capacity == 8


@pytest.mark.parametrize("paged", [False, True])
def test_selected_requests_keep_their_tokens(paged):
    cache = paged_cache(5, 8, 4) if paged else KVCache.contiguous(2, 5, 8, **SIZES)
    cache.storage.normal_()
    cache.seqlens += torch.arange(5, dtype=torch.int32)

    def entries(of):
        request, slot = of.slots(4)
        return torch.stack([keys[request, slot] for keys in of.keys + of.values], 1)

    kept = torch.tensor([0, 4, 2])
    before, place = entries(cache)[kept], cache.storage.data_ptr()
    selected = cache.select(kept)
    assert torch.equal(entries(selected), before)
    assert selected.seqlens.tolist() == [0, 4, 2]
    assert selected.storage.data_ptr() == place  # no second cache


@torch.inference_mode()
def test_a_paged_cache_gives_what_a_contiguous_one_gives():
    target = TransformersTarget(tiny_model())
    tree = DraftTree.from_parents([[3, 4, 5, 6]] * 2, [[-1, 0, 0, 1]] * 2)
    prompts = torch.arange(14).view(2, 7)
    outputs, lengths = [], torch.tensor([7, 4], dtype=torch.int32)
    for cache in (target.new_cache(2, 24), paged_cache(2, 24, 4)):
        target.forward(prompts, torch.arange(7).expand(2, -1), cache)
        cache.seqlens.copy_(lengths)
        steps = []
        for _ in range(2):
            positions = cache.seqlens[:, None] + tree.depths
            hidden, _ = target.forward(tree.tokens, positions.long(), cache, tree.ancestors)
            drawn = torch.tensor([[5, 0, 9, 0], [4, 6, 0, 8]])
            path, tokens, counts, _ = accept_tree(
                tree, drawn, cache.tensors, cache.seqlens, block_table=cache.block_table
            )
            cache.seqlens += counts
            steps.append((hidden, path, tokens, counts))
        outputs.append(steps)
    for contiguous, paged in zip(*outputs, strict=True):
        torch.testing.assert_close(contiguous[0], paged[0])
        assert all(map(torch.equal, contiguous[1:], paged[1:]))
    assert outputs[0][0][3].tolist() == [2, 3]


@pytest.mark.parametrize(
    "table, message",
    [
        ([[0, 9]], "blocks below 6, got 9"),
        ([[1, 1]], "one block to two places"),
        ([[0, 0]], "two places"),
    ],
)
def test_paged_errors(table, message):
    with pytest.raises(ValueError, match=message):
        KVCache.paged(1, 6, 4, block_table=torch.tensor(table, dtype=torch.int32), **SIZES)


def test_contiguous_errors():
    with pytest.raises(ValueError, match="sizes must be positive"):
        KVCache.contiguous(2, 0, 20, **SIZES)
