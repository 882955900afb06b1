"""What a CUDA device shows: graphs of the ops; and what only a GPU does: launches, host syncs, and
the errors of its launchers."""

import pytest
import torch
from test_chain_reject import inputs as chain_inputs
from torch.utils._pytree import tree_leaves
from trees import glm_inputs, good_draws, random_tree, to

import dspark_kernels

pytestmark = pytest.mark.cuda


def step_inputs(device, batch=4, seed=0):
    """What the ops between two target passes read, for a small model."""
    glm = glm_inputs(B=batch, H=5, C=32, R=64, V=1000, P=4, Q=10, N=64, seed=seed)
    tree = random_tree(batch, 64, seed=seed)
    g = torch.Generator().manual_seed(seed)
    return to(
        {
            "hidden": torch.randn(batch, 128, generator=g),
            "blocks": (torch.randn(5, 128, 128, generator=g) / 12, torch.zeros(5, 128)),
            "weight": torch.randn(1000, 128, generator=g),
            "history": torch.randint(0, 5, (batch, 300), generator=g),
            "lengths": torch.full((batch,), 250 + seed, dtype=torch.int32),
            "glm": glm,
            "tree": tree,
            "draws": good_draws(tree, seed=seed),
            "caches": [torch.randn(batch, 128, 2, 16, generator=g) for _ in range(8)],
            "seqlens": torch.arange(batch, dtype=torch.int32),
            "state": {
                "stop": torch.tensor([7]),
                "limit": torch.full((batch,), 290, dtype=torch.int32),
                "history": torch.randint(0, 5, (batch, 300), generator=g),
                "lengths": torch.full((batch,), 250 + seed, dtype=torch.int32),
                "cache_seqlens": torch.arange(batch, dtype=torch.int32),
                "root": torch.zeros(batch, dtype=torch.int64),
                "done": torch.zeros(batch, dtype=torch.bool),
                "kept": [torch.zeros(batch, 128)],
            },
            "states": torch.randn(batch * 64, 128, generator=g),
        },
        device,
    )


def step(x):
    """Every op that runs between two passes of the target."""
    blocks = dspark_kernels.draft_blocks(x["hidden"], *x["blocks"])
    keys, ids, logsumexp = dspark_kernels.linear_topk(blocks.flatten(0, 1), x["weight"], 32)
    found = dspark_kernels.context_lookup(x["history"], x["lengths"])
    tree = dspark_kernels.glm_tree(**x["glm"] | {
        "ids": ids.view(-1, 5, 32), "keys": keys.view(-1, 5, 32),
        "logsumexp": logsumexp.view(-1, 5), "paths": found[0],
    })  # fmt: skip
    state = x["state"]
    packing = dspark_kernels.best_slots(
        *tree[4:], state["lengths"], state["limit"], state["done"], nodes=48, total=100
    )
    accepted = dspark_kernels.accept_tree(x["tree"], x["draws"], x["caches"], x["seqlens"])
    counts = dspark_kernels.advance_step(*accepted[1:], [x["states"]], **state)
    return [*found, *tree, *packing, *accepted, counts]


def kernels_of(function):
    """The names of the kernels and copies that a call puts on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]):
        torch.cuda.synchronize()  # the first profile of a process may lose what it sees
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    return [
        event.name
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]


@pytest.mark.gpu
def test_a_step_is_at_most_eight_launches_without_a_sync(device):
    inputs = step_inputs(device)
    for _ in range(3):  # compilation and tuning
        step(inputs)
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(inputs)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    names = kernels_of(lambda: step(inputs))
    assert 5 <= len(names) <= 8, names


def captured(function):
    """A CUDA graph of a call, and its outputs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return graph, outputs


def copy_into(target, source):
    if isinstance(target, torch.Tensor):
        target.copy_(source)
    elif isinstance(target, dict):
        for name in target:
            copy_into(target[name], source[name])
    elif isinstance(target, list | tuple):
        for one, other in zip(target, source, strict=True):
            copy_into(one, other)


def test_a_captured_step_follows_its_inputs(device):
    inputs = step_inputs(device)
    graph, outputs = captured(lambda: step(inputs))
    for seed in (1, 2):
        fresh = step_inputs(device, seed=seed)
        copy_into(inputs, fresh)
        graph.replay()
        for one, other in zip(outputs, step(fresh), strict=True):
            assert torch.equal(one, other)
        for name in ("caches", "state"):
            for one, other in zip(tree_leaves(inputs[name]), tree_leaves(fresh[name]), strict=True):
                assert torch.equal(one, other)


def test_captured_acceptance_rules_follow_their_inputs(device):
    def inputs(seed):
        x = step_inputs(device, seed=seed)
        g = torch.Generator().manual_seed(seed)
        x["logits"] = (torch.randn(4, 64, 8, generator=g) * 1.5).to(device)
        x["chain"] = to(chain_inputs(seed=seed, V=301), device)
        return x

    def rules(x):
        typical = dspark_kernels.typical_accept(
            x["tree"], x["draws"], x["logits"], x["caches"], x["seqlens"]
        )
        return [*typical, *dspark_kernels.chain_reject(*x["chain"])]

    held = inputs(0)
    graph, outputs = captured(lambda: rules(held))
    for seed in (1, 2):
        fresh = inputs(seed)
        copy_into(held, fresh)
        graph.replay()
        for one, other in zip(outputs, rules(fresh), strict=True):
            assert torch.equal(one, other)


@pytest.mark.gpu
def test_errors_of_the_launcher_are_python_errors(device):
    x = step_inputs(device)
    with pytest.raises(RuntimeError, match=r"accept_tree: caches must"):
        torch.ops.dspark.accept_tree(
            x["tree"].tokens, x["tree"].parents, x["tree"].num_nodes, x["draws"],
            [torch.zeros(3, 20, device=device)], x["seqlens"], None, 5,
        )  # fmt: skip
    with pytest.raises(RuntimeError, match="accept_tree: tensors must be on one CUDA device"):
        torch.ops.dspark.accept_tree(
            x["tree"].tokens, x["tree"].parents, x["tree"].num_nodes, x["draws"].cpu(), [],
            x["seqlens"], None, 5,
        )  # fmt: skip
