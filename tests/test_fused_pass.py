"""The target's layers run as fused calls: they give what transformers' layers give."""

import pytest
import torch
from tiny import KINDS, tiny_model

from dspark_kernels.integrations.transformers import TransformersTarget
from dspark_kernels.packing import Packing

# whose layers differ, among those of `kinds.FUSED_TYPES`
DIFFERENT = ("llama", "mistral", "qwen2", "qwen3", "phi3", "qwen3_moe")


def run(target, paged):
    """Prefill of a ragged batch of two, trees, and a part of them: states and the cache."""
    cache = target.new_cache(2, 24)
    if paged:
        table = torch.tensor([[7, 2, 11, 0, 5, 9], [1, 10, 3, 8, 4, 6]]).int()
        sizes = (target.num_layers, 12, 4, target.kv_heads, target.head_dim)
        cache = type(cache).paged(*sizes, target.dtype, target.device, table)
    tokens = torch.arange(18).mul(29).remainder(64).view(2, 9)
    first = target.forward(tokens, torch.arange(9).expand(2, -1), cache)
    cache.seqlens.copy_(torch.tensor([9, 6]))
    ancestors = torch.tensor([1, 3, 5, 11]).view(1, 4, 1).expand(2, -1, -1).contiguous()
    positions = cache.seqlens[:, None].long() + torch.tensor([0, 1, 1, 2])
    second = target.forward(tokens[:, :4], positions, cache, ancestors)
    written, slots = cache.storage.clone(), torch.tensor([0, 1, 3, 4])
    packing = Packing(slots, torch.tensor([[0, 1, -1, 2], [3, -1, -1, -1]]), None)
    packed = target.forward(tokens[:, :4], positions, cache, ancestors, packing)
    torch.testing.assert_close(packed[0], second[0][slots], rtol=1e-4, atol=1e-4)
    return [*first, *second, *packed, written]


@pytest.mark.backend
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("model_type", DIFFERENT)
@torch.inference_mode()
def test_gives_what_the_models_layers_give(model_type, paged, device):
    model = tiny_model(model_type=model_type, **KINDS[model_type]).to(device)
    for index, (name, norm) in enumerate(model.named_modules()):
        if hasattr(norm, "variance_epsilon"):  # those of queries and keys have one
            norm.variance_epsilon = 0.3 if name.endswith(("q_norm", "k_norm")) else 0.01 * index
    target = TransformersTarget(model)
    target.feature_layers = (0, 1, 2)
    assert target.fused is not None
    with device:
        fused = run(target, paged)
        target.fused = None
        for ours, theirs in zip(fused, run(target, paged), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_layers_it_cannot_read_are_left_to_the_model():
    model = tiny_model()
    assert TransformersTarget(tiny_model(hidden_act="gelu")).fused is None
    model.model.norm.half()
    assert TransformersTarget(model).fused is None
    model.model.norm.float()
    assert TransformersTarget(model).fused is not None
    model.model.layers[1].mlp.up_proj = torch.nn.Sequential(model.model.layers[1].mlp.up_proj)
    assert TransformersTarget(model).fused is None
