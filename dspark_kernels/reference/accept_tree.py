"""Definition of `accept_tree`."""

import torch


def accept_tree(
    tokens, parents, num_nodes, target_tokens, caches, cache_seqlens, block_table, max_depth
):
    """The walk along the target's draws, and the compaction, see `ops.accept_tree`."""
    nodes = tokens.shape[1]
    index = torch.arange(nodes, device=tokens.device)
    node = torch.zeros_like(num_nodes, dtype=torch.int64)[:, None]  # [B, 1], -1 once the walk ended
    path = [node]
    for _ in range(max_depth):
        wanted = target_tokens.gather(1, node.clamp(min=0))
        child = (parents == node) & (node >= 0) & (tokens == wanted) & (index < num_nodes[:, None])
        first = torch.where(child, index, nodes).amin(dim=1, keepdim=True)
        node = torch.where(first < nodes, first, -1)
        path.append(node)
    return finish(torch.cat(path, 1), tokens, target_tokens, caches, cache_seqlens, block_table)


def finish(path, tokens, target_tokens, caches, cache_seqlens, block_table):
    """From the accepted path int64 [B, P + 1]: compact the caches; the four outputs of the op."""
    accepted = path >= 0
    count = accepted.sum(dim=1, keepdim=True)  # [B, 1]
    last = path.gather(1, count - 1)
    drafted = tokens.gather(1, path.clamp(min=0))
    emitted = torch.where(accepted, drafted, -1).roll(-1, dims=1)
    emitted[:, -1] = -1  # the root was emitted before
    emitted.scatter_(1, count - 1, target_tokens.gather(1, last))
    compact(caches, cache_seqlens, path, block_table)
    return path.int(), emitted, count[:, 0].int(), last[:, 0].int()


def compact(caches, cache_seqlens, path, block_table):
    """Move slot seqlen + path[i] to seqlen + i in every cache, all loads before the stores."""
    if not caches:
        return
    first = cache_seqlens.long()[:, None]  # [B, 1]
    index = torch.arange(path.shape[1], device=path.device)
    source, source_exists = locate(first + path, caches[0].shape, block_table)
    target, target_exists = locate(first + index, caches[0].shape, block_table)
    moved = (path > index) & source_exists & target_exists
    source, target = (tuple(part[moved] for part in slots) for slots in (source, target))
    for cache in caches:
        cache[target] = cache[source]


def locate(slots, cache_shape, block_table):
    """The index of slots [B, K] in a cache (contiguous or paged), and which of them exist."""
    if block_table is None:
        rows = torch.arange(len(slots), device=slots.device)[:, None].expand(slots.shape)
        return (rows, slots), (slots >= 0) & (slots < cache_shape[1])
    entry = slots // cache_shape[1]
    exists = (entry >= 0) & (entry < block_table.shape[1])
    blocks = block_table.long().gather(1, torch.where(exists, entry, 0))
    return (blocks, slots % cache_shape[1]), exists & (blocks >= 0) & (blocks < cache_shape[0])
