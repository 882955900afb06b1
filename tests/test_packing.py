"""The nodes a batch shares: which are kept, and that a pass over them alone changes no result."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model

from dspark_kernels import best_slots
from dspark_kernels.decode import generate, verify
from dspark_kernels.integrations.transformers import TransformersTarget
from dspark_kernels.prefill import prefill
from dspark_kernels.sampling import Sampling
from dspark_kernels.statistics import no_clock
from dspark_kernels.tree import DraftTree


def packed(scores, remaining, total):
    """The packing of trees whose slots are all in use."""
    batch, nodes = scores.shape
    used, start = torch.full((batch,), nodes).int(), torch.zeros(batch).int()
    return best_slots(
        scores, used, start, remaining.int(), remaining == 0, nodes=nodes, total=total
    )


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_best_nodes_are_kept_with_their_ancestors(data):
    batch, nodes = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    total = data.draw(st.integers(batch, batch * nodes))
    levels = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    parents, scores = torch.zeros(batch, nodes, dtype=torch.long), torch.ones(batch, nodes)
    for row in range(batch):
        for node in range(1, nodes):
            parent = data.draw(st.integers(0, node - 1))
            parents[row, node] = parent
            scores[row, node] = min(scores[row, parent], data.draw(levels))
    remaining = torch.tensor(data.draw(st.lists(st.integers(1, 9), min_size=batch, max_size=batch)))
    packing = packed(scores, remaining, total)
    kept = packing.rows >= 0
    assert kept.sum() == packing.counts.sum() == total == len(packing.slots) and kept[:, 0].all()
    assert torch.equal(kept.flatten().nonzero()[:, 0], packing.slots)
    assert torch.equal(packing.rows[kept], torch.arange(total))
    assert (kept.gather(1, parents) | ~kept).all()
    priority = (scores * remaining[:, None] ** 0.5)[:, 1:]
    inside, outside = priority[kept[:, 1:]], priority[~kept[:, 1:]]
    assert not len(inside) or not len(outside) or inside.min() >= outside.max()
    falling = packed(scores.sort(dim=1, descending=True).values, remaining, total)
    assert torch.equal(falling.rows >= 0, torch.arange(nodes) < falling.counts[:, None])


def test_finished_requests_take_part_only_where_there_is_room():
    scores, remaining = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.9, 0.9]]), torch.tensor([4, 0])
    assert packed(scores, remaining, 2).slots.tolist() == [0, 1]
    assert len(packed(scores, remaining, 6).slots) == 6


@torch.inference_mode()
def test_a_node_left_out_ends_the_walk_and_changes_nothing_else():
    """Trees that hold the true continuation beside others: what is verified draws the same, and
    the path goes on as far as its nodes are verified."""
    target = TransformersTarget(tiny_model())
    prompts, sampling, depth = [[1, 2, 3], [7, 8] * 9], Sampling(temperature=0.5, seed=[1, 2]), 6
    plain = generate(target, None, prompts, num_nodes=1, max_new_tokens=20, sampling=sampling)
    true = torch.tensor(plain.tokens)[:, : depth + 1]  # [B, 1 + depth], the root first
    parents = torch.tensor([-1, *(2 * (i // 2) for i in range(2 * depth))]).expand(2, -1)
    tokens = torch.cat((true[:, :1], torch.stack((true + 1, true), 2)[:, 1:].flatten(1)), 1) % 64
    level = torch.arange(2 * depth + 1).expand(2, -1)
    tree = DraftTree.from_parents(tokens, parents, torch.tensor([[0.9], [0.8]]) ** level)

    def run(total):
        state, _ = prefill(target, prompts, sampling, [], 20, room=40)
        assert torch.equal(state.root, true[:, 0])
        packing = packed(tree.scores, state.limit - state.lengths, total) if total else None
        outcome, drawn = verify(target, state, tree, depth, no_clock, packing)
        return state, packing, outcome, drawn

    full, _, outcome, drawn = run(None)
    assert outcome.counts.tolist() == [depth + 1] * 2
    for total in range(2, tree.tokens.numel() + 1):
        state, packing, part, some = run(total)
        kept = packing.rows >= 0
        assert torch.equal(some[kept], drawn[kept])
        assert part.nodes.sum() == total
        assert torch.equal(part.counts, 1 + kept[:, 2::2].sum(1))
        for request, count in enumerate(part.counts.tolist()):
            assert torch.equal(part.tokens[request, :count], outcome.tokens[request, :count])
            length = int(state.lengths[request])
            assert torch.equal(state.history[request, :length], full.history[request, :length])
            kept, whole = state.cache.storage[:, :, request], full.cache.storage[:, :, request]
            torch.testing.assert_close(kept[:, :, : length - 1], whole[:, :, : length - 1])
    assert part.counts.tolist() == [depth + 1] * 2
