"""Behind `generate` of transformers: the same tokens, or a clear refusal."""

import pytest
import torch
from chi_square import chi_square
from tiny import PROMPTS, tiny_draft, tiny_model, tiny_tokenizer
from transformers import (
    DynamicCache,
    MaxLengthCriteria,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    pipeline,
)

from dspark_kernels.integrations.decoder import SpeculativeDecoder

VOCAB, PAD = 300, 63
SAMPLED = {"do_sample": True, "temperature": 1.5}
WIDTH = max(map(len, PROMPTS))


@pytest.fixture(scope="module")
def decoder():
    return SpeculativeDecoder(
        tiny_model(vocab_size=VOCAB), tiny_tokenizer(VOCAB), tiny_draft(vocab_size=VOCAB)
    )


@pytest.fixture
def inputs():
    """The prompts, padded at the left."""
    rows = [[PAD] * (WIDTH - len(prompt)) + prompt for prompt in PROMPTS]
    mask = [[0] * (WIDTH - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def both(decoder, inputs, **options):
    """What `generate` gives with our loop, and without it."""
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": PAD, **options}
    custom = {"custom_generate": decoder.custom_generate, "num_nodes": 12}
    return (
        decoder.model.generate(**inputs, **options, **custom),
        decoder.model.generate(**inputs, **options),
    )


def padding_is_no_text():
    """Whether transformers' own repetition penalty leaves padding out; that of 5.17 does not."""
    try:
        RepetitionPenaltyLogitsProcessor(1.5, prompt_ignore_length=torch.tensor([1]))
    except ValueError:
        return False
    return True


def until_text(tokenizer, tokens, text):
    """The tokens up to the one which completes a text."""
    counts = range(1, len(tokens) + 1)
    end = next((n for n in counts if text in tokenizer.decode(tokens[:n])), len(tokens))
    return tokens[:end]


@pytest.mark.parametrize("penalty", [1.0, 1.5, 0.7])
def test_greedy_tokens_are_those_of_generate(decoder, inputs, penalty):
    options = {"repetition_penalty": penalty}
    ours, theirs = both(decoder, inputs, **options)
    assert ours.shape == (len(PROMPTS), WIDTH + 24)
    if penalty == 1.0 or padding_is_no_text():
        assert torch.equal(ours, theirs)
    for row, prompt in zip(ours, PROMPTS, strict=True):
        alone = {"input_ids": torch.tensor([prompt])}  # without a mask
        one, theirs = both(decoder, alone, return_dict_in_generate=True, **options)
        assert torch.equal(one.sequences, theirs.sequences)
        assert torch.equal(row[WIDTH:], theirs.sequences[0, len(prompt) :])


@pytest.mark.parametrize("place", [1, 7, 23])
def test_ended_rows_are_padded(decoder, inputs, place):
    tokens, _ = both(decoder, inputs)
    ends = sorted({int(row[place]) for row in tokens[:2, WIDTH:]})
    ours, theirs = both(decoder, inputs, eos_token_id=ends)
    assert torch.equal(ours, theirs) and (ours[:, -1] == PAD).any()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder.model.generation_config, "eos_token_id", ends)
        ours, theirs = both(decoder, inputs, pad_token_id=None)
    assert torch.equal(ours, theirs)


class Repeated(StoppingCriteria):
    """Met by sequences whose last token stands in them before, the prompt included."""

    def __call__(self, input_ids, scores, **_):
        return (input_ids[:, :-1] == input_ids[:, -1:]).any(dim=1)


def test_stopping_criteria(decoder):
    for prompt in PROMPTS:
        inputs = {"input_ids": torch.tensor([prompt])}
        free, _ = both(decoder, inputs)
        ours, theirs = both(decoder, inputs, stopping_criteria=[Repeated()])
        assert torch.equal(ours, theirs) and ours.shape[1] < free.shape[1]
        longest = [MaxLengthCriteria(len(prompt) + 5)]
        ours, theirs = both(decoder, inputs, stopping_criteria=longest)
        assert torch.equal(ours, theirs) and ours.shape[1] == len(prompt) + 5


class Late(StoppingCriteria):
    """Met behind so many columns, of padding as well."""

    def __init__(self, columns):
        self.columns = columns

    def __call__(self, input_ids, scores, **_):
        assert not torch.is_grad_enabled()  # as within generate
        done = input_ids.shape[1] >= self.columns
        return torch.full((len(input_ids),), done)


def test_criteria_see_rows_as_they_are_padded(decoder, inputs):
    ours, theirs = both(decoder, inputs, stopping_criteria=[Late(WIDTH + 7)])
    assert torch.equal(ours, theirs) and ours.shape[1] == WIDTH + 7


def test_lengths_and_ends_that_are_not_usual(decoder, inputs):
    lengths = [MaxLengthCriteria(WIDTH + 3), MaxLengthCriteria(WIDTH + 7)]
    for options in ({"stopping_criteria": lengths}, {"eos_token_id": -1}):
        ours, theirs = both(decoder, inputs, **options)
        assert torch.equal(ours, theirs)
    ours, theirs = both(decoder, inputs, stopping_criteria=[MaxLengthCriteria(WIDTH)])
    assert torch.equal(ours, theirs) and ours.shape[1] == WIDTH + 1
    narrow = {"input_ids": torch.tensor([PROMPTS[0]], dtype=torch.int32)}
    ours, theirs = both(decoder, narrow)
    assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype


def test_a_stop_string_that_begins_in_the_prompt(decoder):
    tokenizer, text = decoder.tokenizer, "\ufffd"
    last = iter(tokenizer(" !,.0123456789ABCDEFGHabcdefgh").input_ids)
    while not text.isascii():
        inputs = {"input_ids": torch.tensor([[120, 40, next(last)]])}
        free, _ = both(decoder, inputs)
        text = tokenizer.decode(free[0, 2:4])
    options = {"max_new_tokens": 24, "do_sample": False, "stop_strings": text}
    ours = decoder.model.generate(**inputs, **options, custom_generate=decoder.custom_generate)
    theirs = decoder.model.generate(**inputs, **options, tokenizer=tokenizer)
    assert torch.equal(ours, theirs) and ours.shape[1] == 4


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0}, {"top_k": 7}, {"top_k": 20, "top_p": 0.8}, {"min_p": 0.1},
        {"repetition_penalty": 3.0},
    ],
)  # fmt: skip
def test_samples_have_the_distribution_of_transformers(decoder, options):
    prompt, draws = torch.tensor([PROMPTS[0]]), 2000
    options = {"temperature": 1.5, "top_k": 50, **options}
    torch.manual_seed(3)
    ours = decoder.model.generate(
        prompt, do_sample=True, max_new_tokens=1, num_return_sequences=draws, **options,
        custom_generate=decoder.custom_generate, num_nodes=2,
    )  # fmt: skip
    processors = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper,
    }  # fmt: skip
    with torch.no_grad():
        logits = decoder.model(prompt).logits[:, -1]
    for name, processor in processors.items():
        if options.get(name):
            logits = processor(options[name])(prompt, logits)
    expected = logits[0].double().softmax(0)
    counts = torch.bincount(ours[:, -1], minlength=VOCAB).double()
    assert counts[expected == 0].sum() == 0
    statistic, limit = chi_square(counts[expected > 0], expected[expected > 0])
    assert statistic < limit


def test_samples_are_those_of_the_decoder(decoder, inputs):
    options = {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.02}
    torch.manual_seed(5)
    seeds = torch.randint(2**63 - 1, (len(PROMPTS),)).tolist()
    expected = decoder.generate(PROMPTS, max_new_tokens=24, seed=seeds, stop=[], **options).tokens
    torch.manual_seed(5)
    ours, _ = both(decoder, inputs, do_sample=True, **options)
    assert ours[:, WIDTH:].tolist() == expected
    again, _ = both(decoder, inputs, do_sample=True, **options)
    assert not torch.equal(again, ours)
    several, _ = both(
        decoder, {"input_ids": inputs["input_ids"][2:3]}, do_sample=True, num_return_sequences=3,
        temperature=1.5,
    )  # fmt: skip
    assert len({tuple(row) for row in several.tolist()}) == 3


def test_options_of_ours(decoder, inputs):
    free, seen = decoder.generate(PROMPTS, max_new_tokens=24, stop=[]).tokens, [[] for _ in PROMPTS]
    text = next(text for text in map(decoder.tokenizer.decode, free[0][1:]) if text.isascii())
    ours = decoder.model.generate(
        **inputs, max_new_tokens=24, do_sample=False, pad_token_id=PAD, num_nodes=4, max_nodes=8,
        custom_generate=decoder.custom_generate, stop_strings=text, min_score=0.01,
        on_tokens=lambda request, tokens: seen[request].extend(tokens),
    )  # fmt: skip
    assert seen == [until_text(decoder.tokenizer, tokens, text) for tokens in free]
    assert 1 < len(seen[0]) < 24
    assert [
        row[: len(new)] for row, new in zip(ours[:, WIDTH:].tolist(), seen, strict=True)
    ] == seen


def test_stop_strings_across_tokens(decoder):
    decode = decoder.tokenizer.decode
    free = decoder.generate(PROMPTS, max_new_tokens=40, stop=[]).tokens
    pairs = [decode(row[i : i + 2]) for row in free for i in range(1, 38)]
    pairs = [pair[1:] for pair in pairs if pair.isascii() and len(pair) > 3]
    for strings in (pairs[0], pairs[1:4], pairs[::3]):
        out = decoder.generate(PROMPTS, max_new_tokens=40, stop=[], stop_strings=strings)
        ends = [strings] if isinstance(strings, str) else strings
        cut = [
            min((until_text(decoder.tokenizer, row, end) for end in ends), key=len) for row in free
        ]
        assert out.tokens == cut != free
        assert out.texts == [decode(row, skip_special_tokens=True) for row in cut]


def test_in_a_pipeline(decoder):
    run = pipeline("text-generation", model=decoder.model, tokenizer=decoder.tokenizer)
    options = {"max_new_tokens": 12, "do_sample": False, "return_tensors": True}
    (ours,) = run("What?", custom_generate=decoder.custom_generate, num_nodes=8, **options)
    (theirs,) = run("What?", **options)
    assert ours == theirs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "generation_config must ask for greedy search or sampling, got beam_"),
        ({"no_repeat_ngram_size": 2}, r"got \['NoRepeatNGramLogitsProcessor'\]"),
        ({"do_sample": True, "typical_p": 0.9}, r"min_p in this order, .*TypicalLogitsWarper'\]"),
        ({"logits_processor": [TopPLogitsWarper(0.5)], **SAMPLED}, r"TopP.*, 'Temperature"),
        ({"logits_processor": [MinPLogitsWarper(0.5), TopPLogitsWarper(0.5)]}, "once at most, got"),
        (
            {"logits_processor": [TopPLogitsWarper(0.5, min_tokens_to_keep=2)]},
            "keep of .* must be 1",
        ),
        ({"position_ids": torch.tensor([[0, 1, 3]])}, "position_ids must count the tokens"),
        ({"attention_mask": torch.tensor([[0, 1]])}, r"must be of shape \[1, 3\], got \[1, 2\]"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores must be False"),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "attention_mask must pad .* at the left"),
        ({"max_new_tokens": 500}, "prompt 0 and its continuation must fit"),
    ],
)
def test_what_is_refused(decoder, options, message):
    inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "pad_token_id": PAD}
    with pytest.raises(ValueError, match=message):
        decoder.model.generate(
            **inputs, **({"max_new_tokens": 4} | options), custom_generate=decoder.custom_generate
        )


def test_inputs_that_are_refused(decoder):
    model, custom = decoder.model, {"custom_generate": decoder.custom_generate}
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match="model must be the one which the decoder was made of"):
        tiny_model(vocab_size=VOCAB).generate(ids, max_new_tokens=4, **custom)
    with pytest.raises(ValueError, match="inputs_embeds must be None"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 32), max_new_tokens=4, **custom)
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8), 0)
    # transformers 5.24 calls it cache
    with pytest.raises(
        ValueError, match=r"^custom_generate: (past_key_values|cache) must be empty, got 2 tokens"
    ):
        model.generate(ids, past_key_values=cache, max_new_tokens=4, **custom)
    assert cache.get_seq_length() == 2


@pytest.mark.cuda
def test_on_a_gpu(device):
    model = tiny_model(vocab_size=VOCAB).to(device)
    decoder = SpeculativeDecoder(model, tiny_tokenizer(VOCAB), tiny_draft(vocab_size=VOCAB))
    inputs = {"input_ids": torch.tensor([PROMPTS[2]], device=device)}
    for options in ({}, {"repetition_penalty": 1.3}, {"stopping_criteria": [Repeated()]}):
        ours, theirs = both(decoder, inputs, **options)
        assert torch.equal(ours, theirs) and ours.device == inputs["input_ids"].device
