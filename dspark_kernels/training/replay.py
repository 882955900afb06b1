"""Tokens per step without the target: replays its greedy continuations through the drafter.

At temperature 0 the target's draws along a continuation are its tokens, so a step from position j
accepts as many of them as form a path from the root in the tree drafted there.
"""

from dataclasses import dataclass

import torch

from ..heads import BoundDraft
from ..ops import context_lookup, glm_tree, linear_topk
from .store import Continuation


@dataclass
class Replay:
    """Accepted draft tokens at every position of one continuation."""

    category: str
    accepted: dict[str, torch.Tensor]  # budget -> int64 [tokens - 1]
    nodes: dict[str, torch.Tensor]  # budget -> int64 [tokens - 1], nodes of the tree, root included

    def steps(self, budget: str) -> list[int]:
        """The positions at which the steps of a run start."""
        accepted = self.accepted[budget].tolist()
        positions, position = [], 0
        while position < len(accepted):
            positions.append(position)
            position += accepted[position] + 1
        return positions

    def tokens_and_steps(self, budget: str) -> tuple[int, int]:
        """Tokens emitted after the first one, and the steps that took."""
        return len(self.accepted[budget]), len(self.steps(budget))


def propose(draft: BoundDraft, item: Continuation, positions, num_nodes: int, lookup: bool):
    """The DraftTree drafted behind the tokens at `positions` (int64 [B])."""
    tokens = torch.tensor(item.tokens)
    states = item.states[positions].to(draft.vocab_weight.dtype)
    layers = states[:, 1:].flatten(1) if states.shape[1] > 1 else None
    root = tokens[positions]
    head_states = draft.head_states(states[:, 0], layers, root)
    batch, heads, _ = head_states.shape
    keys, ids, logsumexp = linear_topk(
        head_states.flatten(0, 1), draft.vocab_weight, draft.num_candidates, id_map=draft.id_map
    )
    paths = path_scores = None
    if lookup and draft.lookup is not None:
        paths, match_length = lookup_paths(draft.lookup.window, item, positions)
        path_scores = draft.lookup.scores(match_length)
    return glm_tree(
        ids.view(batch, heads, -1), keys.view(batch, heads, -1), logsumexp.view(batch, heads),
        draft.gates(head_states), root, draft.table_in, draft.table_out, draft.mix,
        draft.depth_scale, num_nodes, calibration=draft.calibration, paths=paths,
        path_scores=path_scores,
    )  # fmt: skip


def lookup_paths(window: dict, item: Continuation, positions):
    """(paths, match_length) of `context_lookup` when the tokens at `positions` are the roots."""
    history = torch.tensor(item.prompt + item.tokens)
    lengths = (len(item.prompt) + positions + 1).int()
    return context_lookup(history.expand(len(positions), -1), lengths, **window)


def future_tokens(item: Continuation, positions, depths: int):
    """The true tokens at 1..depths behind `positions`: int64 [B, depths], -1 behind the end."""
    padded = torch.tensor(item.tokens + [-1] * depths)
    return padded[positions[:, None] + 1 + torch.arange(depths)]


@torch.no_grad()
def replay(
    draft: BoundDraft,
    item: Continuation,
    budgets=(8, 16, 32, 64),
    lookup=True,
    bounds=(),
) -> Replay:
    """Draft behind every token of a continuation, and see how far its future gets in each tree.

    budgets: numbers of nodes, root included. The budget "chain" follows the best child only.
    bounds: a budget "min_score m" for each of these, within the largest number of nodes.
    """
    count, largest = len(item.tokens) - 1, max(budgets)
    positions = torch.arange(count)
    future = future_tokens(item, positions, draft.max_depth)
    tree = propose(draft, item, positions, largest, lookup)
    tokens, parents = tree.tokens, tree.parents
    used = torch.arange(largest) < tree.num_nodes[:, None]
    inside = {"chain": best_chain(tree)}
    inside |= {str(budget): used & (torch.arange(largest) < budget) for budget in budgets}
    better = tree.scores.cumsum(dim=1) - tree.scores
    inside |= {f"min_score {m}": used & (tree.scores >= m * better) for m in bounds}
    alive = {name: torch.ones(count, dtype=torch.bool) for name in inside}
    accepted = {name: torch.zeros(count, dtype=torch.int64) for name in inside}
    rows, current = torch.arange(count), torch.zeros(count, dtype=torch.int64)
    for depth in range(draft.max_depth):
        match = (parents == current[:, None]) & used & (tokens == future[:, depth, None])
        node, found = match.int().argmax(dim=1), match.any(dim=1)
        for name, kept in inside.items():
            alive[name] &= found & kept[rows, node]
            accepted[name] += alive[name]
        current = torch.where(found, node, -2)
    return Replay(item.category, accepted, {name: kept.sum(1) for name, kept in inside.items()})


def best_chain(tree) -> torch.Tensor:
    """Which nodes lie on the path from the root along best children: bool [B, N]."""
    parents = tree.parents.long()
    chain = torch.zeros_like(parents, dtype=torch.bool)
    chain[:, 0] = True  # children are sorted, so the first one is the best
    for node in range(1, parents.shape[1]):
        parent = parents[:, node]
        first = ~(parents[:, :node] == parent[:, None]).any(1)
        on_chain = chain.gather(1, parent.clamp(min=0)[:, None])[:, 0]
        chain[:, node] = (parent >= 0) & first & on_chain
    return chain


def tokens_per_step(replays: list[Replay]) -> dict[str, dict[str, float]]:
    """Tokens per step by category and budget, the key "total" for all; tokens and steps pooled."""
    sums: dict = {}
    for item in replays:
        for budget in item.accepted:
            tokens, steps = item.tokens_and_steps(budget)
            for category in ("total", item.category):
                entry = sums.setdefault(category, {}).setdefault(budget, [0, 0])
                entry[0] += tokens
                entry[1] += steps
    return {
        category: {budget: tokens / max(steps, 1) for budget, (tokens, steps) in budgets.items()}
        for category, budgets in sums.items()
    }


def evaluate(draft: BoundDraft, items: list[Continuation], budgets=(8, 16, 32, 64)) -> dict:
    """`tokens_per_step` of greedy continuations: {"with_lookup": ..., "without_lookup": ...}."""
    items = [item for item in items if len(item.tokens) > 1]
    return {
        name: tokens_per_step([replay(draft, item, budgets, lookup) for item in items])
        for name, lookup in (("with_lookup", True), ("without_lookup", False))
    }
