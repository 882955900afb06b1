"""Draft trees: the tensors of a step's drafted tokens, static trees, and trees drawn as text."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .reference.glm_tree import ancestor_words


class DraftTree(NamedTuple):
    """The drafted tokens of one step: B trees of at most N nodes, in tensors of fixed shape.

    Node 0 is the root, the last emitted token, whose keys and values are not in the cache yet. A
    node of request b belongs at position cache_seqlens[b] + depth and cache slot cache_seqlens[b] +
    index. Siblings are distinct. Nodes made by `glm_tree` are ordered by (score descending, depth,
    token).

    Attributes:
        tokens: int64 [B, N]; 0 in unused slots.
        parents: int32 [B, N], index of the parent, smaller than the node's own; -1 for the root and
            unused slots.
        depths: int32 [B, N], root 0; 0 in unused slots.
        ancestors: int64 [B, N, ceil(N / 64)]; bit j % 64 of word j // 64 is set iff node j is the
            node itself or an ancestor; unused slots have only their own bit.
        scores: float32 [B, N], estimated probability that the node survives verification: 1 for the
            root, never above the parent's; 0 in unused slots.
        num_nodes: int32 [B], used slots, 1 to N.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    depths: torch.Tensor
    ancestors: torch.Tensor
    scores: torch.Tensor
    num_nodes: torch.Tensor

    @classmethod
    def from_parents(cls, tokens, parents, scores=None) -> "DraftTree":
        """The tree with the given tokens and parents, tensors or lists of shape [B, N] or [N].

        Parents come before their children. The parent of node 0 is -1, and so are those of unused
        slots, which come last. scores are ones if None.

        Raises:
            ValueError: shapes differ, parents are out of order, siblings are equal, or a score is
                outside [0, 1] or above the parent's.
        """
        tokens = torch.atleast_2d(torch.as_tensor(tokens, dtype=torch.int64))
        parents = torch.atleast_2d(torch.as_tensor(parents, dtype=torch.int32)).to(tokens.device)
        scores = torch.ones(tokens.shape) if scores is None else scores
        scores = torch.atleast_2d(torch.as_tensor(scores, dtype=torch.float32)).to(tokens.device)
        if not tokens.shape == parents.shape == scores.shape or tokens.shape[1] == 0:
            shapes = ", ".join(str(list(part.shape)) for part in (tokens, parents, scores))
            raise ValueError(
                "DraftTree: tokens, parents and scores must have one shape [B, N] with N >= 1, "
                f"got {shapes}"
            )
        num_nodes = 1 + (parents[:, 1:] >= 0).sum(dim=1)
        used = torch.arange(tokens.shape[1], device=tokens.device) < num_nodes[:, None]
        rows = zip(
            tokens.tolist(), parents.tolist(), scores.tolist(), num_nodes.tolist(), strict=True
        )
        depths = [_check_tree(b, *row) for b, row in enumerate(rows)]
        return cls(
            tokens=torch.where(used, tokens, 0),
            parents=parents,
            depths=torch.tensor(depths, dtype=torch.int32, device=tokens.device).view(tokens.shape),
            ancestors=ancestor_words(parents, max(map(max, depths), default=0)),
            scores=torch.where(used, scores, 0.0),
            num_nodes=num_nodes.int(),
        )

    def best(self, num_nodes: int) -> "DraftTree":
        """The first `num_nodes` slots: of trees made by `glm_tree`, those of their best nodes."""
        first = [part[:, :num_nodes] for part in self[:5]]
        words = (first[0].shape[1] + 63) // 64  # no ancestor comes after its node
        first[3] = first[3][..., :words]
        for part in (0, 1, 3):  # once here, not in every op
            first[part] = first[part].contiguous()
        return DraftTree(*first, self.num_nodes.clamp(max=num_nodes))

    def __str__(self) -> str:
        requests = range(len(self.num_nodes))
        if len(requests) == 1:
            return format_tree(self)
        return "\n".join(f"request {b}\n{format_tree(self, request=b)}" for b in requests)


def chain(tokens) -> DraftTree:
    """The tree without branches: tokens [B, N] or [N], the root first. Does not stop the host."""
    tokens = torch.atleast_2d(torch.as_tensor(tokens, dtype=torch.int64))
    batch, nodes = tokens.shape
    depths = torch.arange(nodes, dtype=torch.int32, device=tokens.device).expand(batch, -1)
    word = torch.arange((nodes + 63) // 64, device=tokens.device)
    last = depths[..., None] - 64 * word  # the highest bit of each word, if it has any
    return DraftTree(
        tokens=tokens,
        parents=depths - 1,
        depths=depths.contiguous(),
        ancestors=torch.where(last < 0, 0, (2 << last.clamp(0, 63)) - 1),
        scores=tokens.new_ones(batch, nodes, dtype=torch.float32),
        num_nodes=tokens.new_full((batch,), nodes, dtype=torch.int32),
    )


def static_tree(
    choices: Sequence[Sequence[int]], ids: torch.Tensor, root: torch.Tensor
) -> DraftTree:
    """The tree whose nodes are fixed ranks among the candidates of the heads, as in Medusa.

    Args:
        choices: one tuple per node below the root: (2, 0) is the best candidate of head 1 below the
            third best of head 0. The choice without its last rank must be there too, unless empty.
        ids: int64 [B, H, C], the candidates of each head, best first.
        root: int64 [B].

    Raises:
        ValueError: a choice is repeated, lacks its parent, or is outside the candidates.
    """
    nodes = sorted({tuple(choice) for choice in choices}, key=lambda choice: (len(choice), choice))
    if len(nodes) != len(choices) or () in nodes:
        raise ValueError("static_tree: choices must be distinct and not empty")
    index = {choice: i for i, choice in enumerate([(), *nodes])}
    heads, candidates = ids.shape[1:]
    for choice in nodes:
        if choice[:-1] not in index:
            raise ValueError(f"static_tree: choice {choice} needs its parent {choice[:-1]}")
        if len(choice) > heads or not 0 <= choice[-1] < candidates:
            raise ValueError(
                f"static_tree: choice {choice} is outside the {candidates} candidates of "
                f"{heads} heads"
            )
    picked = [ids[:, len(choice) - 1, choice[-1]] for choice in nodes]
    tokens = torch.stack([root, *picked], 1)
    parents = torch.tensor([-1, *(index[choice[:-1]] for choice in nodes)], dtype=torch.int32)
    return DraftTree.from_parents(tokens, parents.expand(tokens.shape))


def format_tree(tree: DraftTree, tokenizer=None, request: int = 0) -> str:
    """One tree of the batch as text: a line per node with its token id, text and score.

    tokenizer: anything with `decode(list of ids) -> str`; without it the text is left out.
    """
    count = int(tree.num_nodes[request])
    tokens, parents = tree.tokens[request].tolist(), tree.parents[request].tolist()
    scores = tree.scores[request].tolist()
    children = [[] for _ in range(count)]
    for node in range(1, count):
        children[parents[node]].append(node)

    lines = []

    def draw(node, lead, branch, below):
        text = "" if tokenizer is None else f" {tokenizer.decode([tokens[node]])!r}"
        lines.append(f"{lead}{branch}{tokens[node]}{text}  {scores[node]:.2f}")
        for child in children[node]:
            last = child == children[node][-1]
            draw(child, lead + below, "└─ " if last else "├─ ", "   " if last else "│  ")

    draw(0, "", "", "")
    return "\n".join(lines)


def _check_tree(request, tokens, parents, scores, count):
    """Raise a ValueError unless one request's lists are a tree; returns the depths."""

    def fail(message):
        raise ValueError(f"DraftTree: request {request}: {message}")

    if parents[0] != -1:
        fail(f"the parent of node 0, the root, must be -1, got {parents[0]}")
    depths, seen = [0] * len(parents), set()
    for node in range(len(parents)):
        parent = parents[node]
        if not 0 <= scores[node] <= 1:
            fail(f"scores must be from 0 to 1, got {scores[node]} at node {node}")
        if node >= count:
            continue
        if node and not 0 <= parent < node:
            fail(f"the parent of node {node} must be from 0 to {node - 1}, got {parent}")
        if node and scores[node] > scores[parent]:
            fail(f"node {node} has a score above its parent's: {scores[node]} > {scores[parent]}")
        if (parent, tokens[node]) in seen:
            fail(f"node {node} repeats token {tokens[node]} under parent {parent}")
        seen.add((parent, tokens[node]))
        depths[node] = depths[parent] + 1 if node else 0
    return depths
