"""Definition of `typical_accept`."""

import torch

from .accept_tree import finish


def typical_accept(
    tokens, parents, num_nodes, target_tokens, logits, temperature, epsilon, delta, caches,
    cache_seqlens, block_table, max_depth,
):  # fmt: skip
    """The deepest node whose whole path is typical; compaction, see `ops.typical_accept`."""
    batch, nodes = tokens.shape
    rows = torch.arange(batch, device=tokens.device)[:, None]
    index = torch.arange(nodes, device=tokens.device)
    probs, threshold = typical_threshold(logits, temperature, epsilon, delta)
    in_tree = (parents >= 0) & (parents < nodes) & (index < num_nodes[:, None])
    in_vocab = (tokens >= 0) & (tokens < logits.shape[2])
    parent = torch.where(in_tree, parents, 0).long()
    prob = probs[rows, parent, torch.where(in_vocab, tokens, 0)]
    typical = in_tree & in_vocab & (prob > threshold[rows, parent])  # [B, N], given its parent

    depth = torch.where(index == 0, 0, -1).expand(batch, nodes)  # of the accepted nodes, else -1
    for level in range(max_depth):
        child = typical & (depth.gather(1, parent) == level) & (index > 0)
        depth = torch.where(child, level + 1, depth)
    node = depth.argmax(dim=1, keepdim=True)
    path = []
    for level in range(max_depth, -1, -1):  # from the last node up to the root
        on_path = depth.gather(1, node) == level
        path.append(torch.where(on_path, node, -1))
        node = torch.where(on_path, parent.gather(1, node), node)
    path = torch.cat(path[::-1], 1)
    return finish(path, tokens, target_tokens, caches, cache_seqlens, block_table)


def typical_threshold(logits, temperature, epsilon, delta):
    """softmax(logits / τ) [B, N, V], and min(epsilon, delta · exp(-entropy)) [B, N]."""
    logits = torch.where(logits.isnan(), float("-inf"), logits.float())
    if temperature is not None:
        logits = logits / torch.where(temperature > 0, temperature, 1.0)[:, None, None]
    probs = logits.softmax(dim=-1)
    entropy = torch.special.entr(probs).sum(dim=-1)
    return probs, (delta * torch.exp(-entropy)).clamp(max=epsilon)
