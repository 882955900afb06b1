"""The draft model: saving and loading, errors, size, and agreement with the ops' definitions."""

import pytest
import torch
from tiny import tiny_draft, tiny_model

from dspark_kernels.heads import DraftConfig, DraftModel


@pytest.fixture
def weights():
    model = tiny_model()
    return model.get_input_embeddings().weight.detach(), model.lm_head.weight.detach()


def test_save_and_load(tmp_path):
    draft = tiny_draft(draft_vocab_size=16)
    draft.draft_vocab.copy_(torch.arange(0, 64, 4))
    draft.calibration.copy_(torch.tensor([[0.9, 0.1], [1.1, -0.2], [1.234567, 0.0]]))
    draft.save_pretrained(tmp_path)
    loaded = DraftModel.from_pretrained(tmp_path)
    assert loaded.config == draft.config
    for (name, expected), actual in zip(
        draft.state_dict().items(), loaded.state_dict().values(), strict=True
    ):
        tolerance = {"atol": 0, "rtol": 0} if expected.numel() <= 2**14 else {}
        torch.testing.assert_close(actual, expected, msg=name, **tolerance)


def test_large_matrices_are_saved_in_bfloat16(tmp_path):
    draft = DraftModel(DraftConfig(hidden_size=128, vocab_size=64, num_layers=2, rank=8))
    draft.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 2.2 * draft.num_parameters
    loaded = DraftModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.heads.weight, draft.heads.weight.bfloat16().float())


def test_parameter_count_and_summary():
    config = DraftConfig(
        hidden_size=576, vocab_size=49152, num_layers=30, target_name="SmolLM2-135M-Instruct",
        target_parameters=134_515_008, num_heads=5, feature_layers=[20], feature_size=128,
    )  # fmt: skip
    draft = DraftModel(config)
    heads = 5 * 576 * (576 + 128) + 2 * 5 * 576 + 3 * 576 * 128 + 128
    glm = 256 * 576 + 5 * 256 + 256 * 128 + 5 * 128 + 2 * 128 * 576
    assert draft.num_parameters == heads + glm
    assert "SmolLM2-135M-Instruct" in draft.summary()
    assert f"({(heads + glm) / 134_515_008:.2%} of the target's)" in draft.summary()


def test_head_states_are_the_differentiable_ones(weights):
    embedding, lm_head = weights
    draft = tiny_draft()
    hidden, layers, root = torch.randn(5, 32), torch.randn(5, 32), torch.randint(64, (5,))
    expected = draft.heads(hidden, layers, embedding[root])
    assert expected.requires_grad
    bound = draft.bind(embedding, lm_head)
    torch.testing.assert_close(bound.head_states(hidden, layers, root), expected.detach())
    assert bound.gates(expected).shape == (5, 3, 16)


def test_bind_gathers_the_draft_vocabulary(weights):
    embedding, lm_head = weights
    draft = tiny_draft(draft_vocab_size=16)
    draft.draft_vocab.copy_(torch.arange(1, 64, 4))
    bound = draft.bind(embedding.bfloat16(), lm_head.bfloat16(), num_layers=2)
    assert torch.equal(bound.vocab_weight, lm_head.bfloat16()[1::4])
    assert bound.id_map.dtype == torch.int64 and bound.max_depth == 64
    for tensor in (bound.table_in, bound.table_out, bound.mix):
        assert tensor.dtype == torch.bfloat16
    for tensor in (
        bound.depth_scale,
        bound.calibration,
        bound.gates(torch.zeros(1, 3, 32).bfloat16()),
    ):
        assert tensor.dtype == torch.float32
    assert draft.heads.weight.dtype == torch.float32  # the model itself is untouched


def test_lookup_scores_by_rank_and_match_length():
    lookup = tiny_draft(lookup_paths=2).lookup
    lookup.table.copy_(torch.rand_like(lookup.table))
    lookup.table[:, 0] = 0
    scores = lookup.scores(torch.tensor([[3, 0], [8, 1]], dtype=torch.int32))
    assert torch.equal(scores[0, 0], lookup.table[0, 3]) and (scores[0, 1] == 0).all()
    assert torch.equal(scores[1, 1], lookup.table[1, 1])


@pytest.mark.parametrize(
    ("vocab", "width", "layers", "message"),
    [
        (65, 32, 2, "vocabulary size 64, got a target with vocabulary size 65"),
        (64, 33, 2, "hidden size 32, got a target with hidden size 33"),
        (64, 32, 3, "number of layers 2, got a target with number of layers 3"),
    ],
)
def test_another_target_is_refused(vocab, width, layers, message):
    weight = torch.zeros(vocab, width)
    with pytest.raises(ValueError, match=message):
        tiny_draft().bind(weight, weight, num_layers=layers)
