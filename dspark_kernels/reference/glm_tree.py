"""Definition of `glm_tree`."""

import torch


def glm_state(parent_state, token_in, gate, mix):
    """State of a node from its parent's: a ⊙ s_parent + b ⊙ w, (a, b) = sigmoid(gate + mix·w).

    parent_state and token_in (w, the token's row of table_in): [..., R];
    gate [..., 2R]; mix [2R, R].
    """
    a, b = torch.sigmoid(gate + token_in @ mix.T).chunk(2, dim=-1)
    return a * parent_state + b * token_in


def glm_log_probs(state, token_out, keys, logsumexp, depth_scale, temperature=1.0):
    """log q of C candidates under each of F parents, before calibration: [..., F, C].

    state [..., F, R]; token_out [..., C, R], the candidates' rows of table_out; keys [..., C];
    logsumexp [...], of the whole vocabulary: what the candidates leave of it keeps its base mass;
    depth_scale [R]; temperature: a number, or [..., 1, 1]. A NaN key is one of -inf.
    """
    keys = torch.where(keys.isnan(), float("-inf"), keys)
    scores = keys[..., None, :] + (state * depth_scale) @ token_out.mT / temperature
    scores = torch.where(scores.isnan(), float("-inf"), scores)
    share = torch.exp(keys - logsumexp[..., None]).sum(dim=-1)  # of the candidates in the base mass
    tail = logsumexp + torch.log((1 - share).clamp(min=0))
    tail = torch.where(tail.isnan(), float("-inf"), tail)[..., None]  # [..., 1]
    return scores - torch.logaddexp(scores.logsumexp(dim=-1), tail)[..., None]


def glm_tree(
    ids, keys, logsumexp, gate, root, table_in, table_out, mix, depth_scale, calibration,
    temperature, paths, path_scores, num_nodes, min_score,
):  # fmt: skip
    """The N best nodes of the tree of head candidates and paths, see `ops.glm_tree`.

    Level by level: a node outside the N best of its level is outside the N best of all, and so are
    its descendants, which never score higher. A level is sorted by (score desc, token asc, parent
    asc).
    """
    batch, heads, candidates = ids.shape
    vocab, rank = table_in.shape
    mix = mix.float()
    ids = known_tokens(ids, vocab)
    keys = torch.where(ids >= 0, keys, float("-inf"))
    if paths is None or paths.shape[1] == 0:
        paths, path_scores = ids.new_zeros(batch, 0, 0), keys.new_zeros(batch, 0, 0)
    paths = known_tokens(paths, vocab)
    tau = 1.0
    if temperature is not None:
        tau = torch.where(temperature > 0, temperature, 1.0)[:, None, None]

    root = root[:, None]
    levels = [(root, torch.zeros_like(root), torch.ones_like(root, dtype=torch.float32))]
    state = keys.new_zeros(batch, 1, rank)  # of the parents of the last level, here of none
    path_node = root.new_zeros(batch, paths.shape[1])  # of each path in the last level, -1 if none
    for depth in range(max(heads, paths.shape[2])):
        tokens, parents, scores = levels[-1]  # [B, F]
        width = tokens.shape[1]
        child_tokens, child_scores = ids.new_zeros(batch, width, 0), keys.new_zeros(batch, width, 0)
        if depth < heads:
            state = glm_state(
                rows(state, parents), table_rows(table_in, tokens), gate[:, depth, None], mix
            )
            token_out = table_rows(table_out, ids[:, depth])
            log_probs = glm_log_probs(
                state, token_out, keys[:, depth], logsumexp[:, depth], depth_scale[depth], tau
            )
            if calibration is not None:
                slope, shift = calibration[depth]
                log_probs = slope * log_probs + shift
            probs = log_probs.exp().clamp(max=1.0).nan_to_num(0.0)
            child_scores = scores[..., None] * probs * (ids[:, depth, None] >= 0)  # [B, F, C]
            child_tokens = ids[:, depth, None].expand(child_scores.shape)
        child_parents = torch.arange(width, device=ids.device)[:, None].expand(child_tokens.shape)
        children = (child_tokens.flatten(1), child_parents.flatten(1), child_scores.flatten(1))
        if depth < paths.shape[2]:
            token, parent = paths[:, :, depth], path_node.clamp(min=0)
            alive = (path_node >= 0) & (token >= 0)
            score = torch.minimum(path_scores[:, :, depth], rows(scores, parent)).nan_to_num(0.0)
            children, child = add_paths(*children, token, parent, torch.where(alive, score, 0.0))
        child_tokens, child_parents, child_scores = children
        child_scores = torch.where(child_scores < min_score, 0.0, child_scores)
        order = sort_level(child_tokens, child_parents, child_scores)
        if depth < paths.shape[2]:
            place = order.argsort(dim=1).gather(1, child)
            alive &= (place < num_nodes) & (child_scores.gather(1, child) > 0)
            path_node = torch.where(alive, place, -1)
        order = order[:, :num_nodes]
        levels.append(
            [part.gather(1, order) for part in (child_tokens, child_parents, child_scores)]
        )
    return best_nodes(levels, num_nodes, min_score)


def known_tokens(tokens, vocab):
    """Tokens outside [0, vocab) replaced by -1."""
    return torch.where((tokens >= 0) & (tokens < vocab), tokens, -1)


def add_paths(tokens, parents, scores, path_token, path_parent, path_score):
    """Children [B, K] and one more per path [B, P]; of equal ones only the first gets a score.

    Returns the children, and the child [B, P] that stands for each path.
    """
    tokens = torch.cat((tokens, path_token), 1)
    parents = torch.cat((parents, path_parent), 1)
    scores = torch.cat((scores, torch.zeros_like(path_score)), 1)
    equal = (tokens[:, None] == path_token[..., None]) & (
        parents[:, None] == path_parent[..., None]
    )
    child = equal.int().argmax(dim=2)
    return (tokens, parents, scores.scatter_reduce(1, child, path_score, "amax")), child


def sort_level(tokens, parents, scores):
    """The order of children by (score desc, token asc, parent asc)."""
    order = torch.argsort(parents, dim=1, stable=True)
    order = order.gather(1, tokens.gather(1, order).argsort(dim=1, stable=True))
    return order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))


def best_nodes(levels, num_nodes, min_score):
    """The N best of sorted levels [(tokens, parents in the level above, scores)] as a tree.

    Nodes which score less than min_score times the sum of all better ones are left out.
    """
    starts = [0]
    for tokens, _, _ in levels[:-1]:
        starts.append(starts[-1] + tokens.shape[1])
    spare = levels[0][0].new_zeros(
        len(levels[0][0]), num_nodes
    )  # so that there are at least N slots
    depth_of = [torch.full_like(level[0], depth) for depth, level in enumerate(levels)]
    parent_of = [level[1] + start for level, start in zip(levels, [0, *starts[:-1]], strict=True)]
    tokens = torch.cat([level[0] for level in levels] + [spare], 1)
    parents = torch.cat([*parent_of, spare], 1)
    depths = torch.cat([*depth_of, spare], 1)
    scores = torch.cat([level[2] for level in levels] + [spare.float()], 1)

    best = scores.argsort(dim=1, descending=True, stable=True)[:, :num_nodes]
    ranked = scores.gather(1, best)
    better = ranked.cumsum(dim=1) - ranked  # what the better nodes sum up to
    used = (ranked > 0) & (ranked >= min_score * better)
    index = torch.arange(num_nodes, device=scores.device).expand(best.shape)
    new_index = torch.zeros_like(tokens).scatter(1, best, index)
    parents = new_index.gather(1, parents.gather(1, best))
    parents = torch.where(used & (index > 0), parents, -1).int()
    return (
        torch.where(used, tokens.gather(1, best), 0),
        parents,
        torch.where(used, depths.gather(1, best), 0).int(),
        ancestor_words(parents, len(levels) - 1),
        torch.where(used, ranked, 0.0),
        used.sum(dim=1).int(),
    )


def rows(values, index):
    """values [B, F, ...] at index [B, K] -> [B, K, ...]."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]


def table_rows(table, tokens):
    """Rows of table [V, R] in float32, zeros for tokens outside [0, V)."""
    known = (tokens >= 0) & (tokens < table.shape[0])
    return torch.where(known[..., None], table[torch.where(known, tokens, 0)].float(), 0.0)


def ancestor_words(parents, max_depth):
    """Ancestor bits of parents [B, N] (-1: none): int64 [B, N, ceil(N / 64)], own bit included."""
    batch, nodes = parents.shape
    parents = parents.long()
    column = torch.arange(nodes, device=parents.device)
    words = torch.zeros(batch, nodes, (nodes + 63) // 64, dtype=torch.int64, device=parents.device)
    ancestor = column.expand(batch, -1)
    for _ in range(max_depth + 1):
        bit = torch.where(ancestor >= 0, torch.ones_like(ancestor) << (ancestor % 64), 0)
        word = (ancestor.clamp(min=0) // 64)[..., None]
        words.scatter_add_(2, word, bit[..., None])
        ancestor = torch.where(ancestor >= 0, parents.gather(1, ancestor.clamp(min=0)), -1)
    return words
