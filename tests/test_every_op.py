"""One small call of every op, chained like a step: for compute-sanitizer and CUDA graphs."""

import inspect
import re

import pytest
import torch

import dspark_kernels as dk
from dspark_kernels._library import NATIVE_CUDA_OPS, TRITON_OPS

B, H, D, V, C, R, N, K = 2, 3, 64, 300, 8, 16, 12, 4
HQ, HKV, E, CAPACITY = 4, 2, 32, 64
WIDE = 1536  # of a gated MLP: its second half is summed in parts
Q = 9  # tokens of a path, many of them below the heads


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def inputs(request, device):
    """The tensors of one step, and two KV caches."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape, dtype=request.param):
        return torch.randn(*shape, generator=g).mul(0.3).to(device, dtype)

    def integers(high, *shape, dtype=torch.int64):
        return torch.randint(0, high, shape, generator=g).to(device, dtype)

    return {
        "hidden": normal(B, D), "blocks": normal(H, D, D), "block_bias": normal(H, D),
        "lm_head": normal(V, D), "gate": normal(B, H, 2 * R, dtype=torch.float32),
        "table_in": normal(V, R), "table_out": normal(V, R), "mix": normal(2 * R, R),
        "depth_scale": normal(H, R, dtype=torch.float32), "root": integers(V, B),
        "history": integers(3, B, 40), "lengths": integers(20, B, dtype=torch.int32) + 20,
        "done": torch.zeros(B, dtype=torch.bool, device=device),
        "path_scores": torch.full((B, 2, Q), 0.5, device=device),
        "k_cache": normal(B, CAPACITY, HKV, E), "v_cache": normal(B, CAPACITY, HKV, E),
        "cache_seqlens": integers(CAPACITY - N, B, dtype=torch.int32),
        "norm": normal(D), "qkv": normal((HQ + 2 * HKV) * E, D), "angle": normal(B, N, E),
        "gate_up": normal(2, WIDE, D), "down": normal(D, WIDE),
        "node_hidden": normal(B * N, D), "temperature": torch.full((B,), 0.8, device=device),
        "seed": integers(2**60, B), "position": integers(2**30, B),
    }  # fmt: skip


def every_op(i):
    """The outputs of all ops as one flat list."""
    noise = {name: i[name] for name in ("temperature", "seed")}
    node_noise = noise | {"position": i["position"].repeat_interleave(N)}
    noise["position"] = i["position"].repeat_interleave(H)
    heads = dk.draft_blocks(i["hidden"], i["blocks"], i["block_bias"])
    keys, ids, lse = dk.linear_topk(heads.flatten(0, 1), i["lm_head"], C, **noise)
    shards = [tensor.unsqueeze(0) for tensor in (keys, ids, lse)]
    merged = dk.merge_topk(*shards, 3)
    paths, matched = dk.context_lookup(i["history"], i["lengths"], num_paths=2, path_length=Q)
    tree = dk.glm_tree(
        ids.view(B, H, C), keys.view(B, H, C), lse.view(B, H), i["gate"], i["root"],
        i["table_in"], i["table_out"], i["mix"], i["depth_scale"], num_nodes=N,
        temperature=i["temperature"], paths=paths, path_scores=i["path_scores"],
    )  # fmt: skip
    packing = dk.best_slots(
        tree.scores, tree.num_nodes, i["lengths"], i["lengths"] + 9, i["done"], nodes=N - 2,
        total=N,
    )  # fmt: skip
    caches, lengths = [i["k_cache"], i["v_cache"]], i["cache_seqlens"]
    x, angle = i["node_hidden"], i["angle"]
    qkv = dk.fused_linear(x, [i["qkv"]]).view(B, N, -1, E)
    q = dk.rotary_append(qkv, angle.cos(), angle.sin(), *caches, lengths)
    wide = dk.fused_linear(x, [*i["gate_up"]], gated=True)
    mlp = dk.fused_linear(wide, [i["down"]], residual=x, norm_weight=i["norm"])
    out, out_lse = dk.tree_attention(
        q, *caches, lengths, tree.ancestors, window=30, softcap=20.0, return_lse=True
    )
    seen = dk.seen_tokens(
        i["history"], i["lengths"], V, tokens=tree.tokens, ancestors=tree.ancestors
    )
    penalty = {"seen": seen, "repetition_penalty": i["temperature"] + 0.5}
    drawn = dk.linear_topk(i["node_hidden"], i["lm_head"], 1, **penalty, **node_noise)
    targets = drawn[1].view(B, N)
    walk = dk.accept_tree(tree, targets, caches, lengths)
    logits = (i["node_hidden"] @ i["lm_head"].T).view(B, N, V)
    emitted = dk.advance_step(
        *walk[1:], [i["node_hidden"]], stop=i["root"][:1].clone(), limit=i["lengths"] + 9,
        history=i["history"], lengths=i["lengths"], cache_seqlens=lengths, root=i["root"],
        done=i["done"], kept=[i["hidden"]],
    )  # fmt: skip
    typical = dk.typical_accept(tree, targets, logits, caches, lengths)
    top_k = torch.full((B,), 20, dtype=torch.int32, device=logits.device)
    top_p = torch.full((B,), 0.9, device=logits.device)
    cuts = {"top_k": top_k, "top_p": top_p}
    sampled = dk.sample_logits(logits.flatten(0, 1), **cuts, **penalty, **node_noise)
    sampled_few = dk.sample_logits(keys, ids=ids, **cuts, **noise)
    chain = dk.chain_reject(
        targets[:, :K], logits[:, :K], logits[:, : K + 1], i["temperature"], i["seed"],
        i["position"],
    )  # fmt: skip
    return [
        heads, keys, ids, lse, *merged, paths, matched, *tree, *packing, qkv, *mlp, out,
        out_lse, seen, *drawn, *walk, emitted, *typical, sampled, sampled_few, *chain, *caches,
        i["history"], i["lengths"], i["hidden"],
    ]  # fmt: skip


def test_runs(inputs):
    for tensor in every_op(inputs):
        assert not tensor.isnan().any()


@pytest.mark.cuda
def test_cuda_graph(inputs):
    """A captured step gives what the same step gives call by call: no host sync, fixed shapes."""
    fresh = {name: tensor.clone() for name, tensor in inputs.items()}
    expected = [tensor.clone() for tensor in every_op(inputs)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = every_op(inputs)
    for name, tensor in inputs.items():  # some of which the step changed
        tensor.copy_(fresh[name])
    graph.replay()
    torch.cuda.synchronize()
    for output, value in zip(outputs, expected, strict=True):
        assert torch.equal(output, value)


def wrong(name, value):
    """(tensor in the place of `value`, what the error names) for each way it may be unusable."""
    name = re.escape(name)
    if not name.startswith("caches"):  # they are moved, whatever they hold
        yield value.to(torch.complex64), name
    yield value[None], name
    yield value.to("meta"), ".*"  # the first tensor says where all of them are


def wrong_arguments(function, arguments):
    """(arguments, what the error names): one tensor is wrong, or one more than `arguments` has."""
    for name, parameter in inspect.signature(function).parameters.items():
        value = arguments.get(name)
        if isinstance(value, torch.Tensor):
            for changed, named in wrong(name, value):
                yield arguments | {name: changed}, named
        elif isinstance(value, list):
            for changed, named in wrong(f"{name}[{len(value) - 1}]", value[-1]):
                yield arguments | {name: [*value[:-1], changed]}, named
        elif isinstance(value, dk.DraftTree):
            for field in ("tokens", "parents", "num_nodes"):
                for changed, named in wrong(f"{name}.{field}", getattr(value, field)):
                    yield arguments | {name: value._replace(**{field: changed})}, named
        elif parameter.annotation == torch.Tensor | None:  # it may change the others' shapes
            yield arguments | {name: torch.zeros(1, dtype=torch.complex64)}, ".*"


def test_every_tensor_is_checked(inputs, monkeypatch):
    """No op takes a tensor of another kind than it says, and the error names it."""
    calls = {}

    def recorded(name, function):
        def call(*args, **options):
            calls[name] = inspect.signature(function).bind(*args, **options).arguments
            return function(*args, **options)

        return call

    functions = {name: getattr(dk, name) for name in (*NATIVE_CUDA_OPS, *TRITON_OPS)}
    for name, function in functions.items():
        monkeypatch.setattr(dk, name, recorded(name, function))
    every_op(inputs)
    assert calls.keys() == functions.keys()
    for op, arguments in calls.items():
        for changed, named in wrong_arguments(functions[op], arguments):
            with pytest.raises((TypeError, ValueError), match=f"^{op}: {named} must"):
                functions[op](**changed)
