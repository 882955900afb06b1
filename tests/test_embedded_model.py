"""The main job: SmolLM2-135M-Instruct with the shipped draft, in float32."""

import pytest
import torch

from dspark_kernels.integrations.decoder import SpeculativeDecoder

PROMPTS = [
    "Translate German to English: Die Katze schläft auf dem Sofa, weil es draußen regnet.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "List three facts about honey bees.",
]


@pytest.fixture(scope="module")
def decoder():
    return SpeculativeDecoder.from_pretrained(dtype=torch.float32)


def test_greedy_tokens_are_those_of_transformers(decoder):
    ours = decoder.generate(PROMPTS, max_new_tokens=40)
    for prompt, tokens in zip(PROMPTS, ours.tokens, strict=True):
        ids = torch.tensor([decoder.encode(prompt)])
        expected = decoder.model.generate(ids, max_new_tokens=40, do_sample=False)
        assert tokens == expected[0, ids.shape[1] :].tolist()
    assert ours.statistics.tokens_per_step > 1.5


def test_sampled_tokens_are_those_of_plain_sampling(decoder):
    options = {"max_new_tokens": 40, "temperature": 0.8, "seed": [1, 2, 3]}
    plain = decoder.generate(PROMPTS, speculative=False, **options)
    ours = decoder.generate(PROMPTS, **options)
    assert ours.tokens == plain.tokens
    assert ours.statistics.tokens_per_step > 1.2


def test_the_draft_is_small(decoder):
    assert decoder.draft_share < 0.02
