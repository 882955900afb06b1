"""Prompts that go on from what an earlier call left in the cache are continued the same way."""

import pytest
import torch
from tiny import KINDS, PROMPTS, tiny_draft, tiny_model

from dspark_kernels import prefix
from dspark_kernels.cache import KVCache
from dspark_kernels.integrations.decoder import SpeculativeDecoder
from dspark_kernels.integrations.kinds import MODEL_TYPES

TURNS = [[20, 21, 22], [30], list(range(40, 50))]


def decoder_of(**options):
    return SpeculativeDecoder(tiny_model(**options), None, tiny_draft())


@pytest.fixture(scope="module")
def decoder():
    return decoder_of(max_position_embeddings=1024)


@pytest.fixture
def anew(decoder):
    """Called with prompts and options: what a decoder without a past continues them with."""
    other = SpeculativeDecoder(decoder.model, None, decoder.draft_model)

    def tokens(prompts, **options):
        return other.generate(prompts, **({"max_new_tokens": 20} | options)).tokens

    return tokens


def continued(decoder, prompts, **options):
    """The continuations, and how many tokens of the prompts were not run."""
    out = decoder.generate(prompts, **({"max_new_tokens": 20} | options), prefix_caching=True)
    return out.tokens, out.statistics.cached_tokens


def chat(decoder, anew, prompt, **options):
    """Three turns; returns how many tokens of the last one's prompt were cached."""
    held = 0
    for turn in TURNS:
        tokens, cached = continued(decoder, [prompt], **options)
        assert tokens == anew([prompt], **options)
        assert cached == held
        held = len(prompt) + len(tokens[0]) - 1  # of the last token nothing is known yet
        prompt = prompt + tokens[0] + turn
    return cached


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_chat_with_every_kind_of_model(model_type):
    decoder = decoder_of(model_type=model_type, **KINDS[model_type])

    def theirs(prompts, max_new_tokens):
        ids = torch.tensor(prompts)
        out = decoder.model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)
        return [out[0, ids.shape[1] :].tolist()]

    assert chat(decoder, theirs, PROMPTS[2], max_new_tokens=16) == 64


@pytest.mark.cuda
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}])
def test_a_chat_on_a_gpu(options, device):
    model = tiny_model().to(device)
    decoder, plain = (SpeculativeDecoder(model, None, draft) for draft in (tiny_draft(), None))
    options = options | {"max_new_tokens": 40, "num_nodes": 8}
    chat(decoder, lambda *given, **kw: plain.generate(*given, **kw).tokens, PROMPTS[2], **options)


@pytest.mark.parametrize("options", [{"temperature": 0.9, "seed": 5}, {"repetition_penalty": 1.3}])
def test_options_of_the_draw(decoder, anew, options):
    assert chat(decoder, anew, PROMPTS[0], **options) > 0


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
def test_more_tokens_than_a_tree_has(decoder, anew, count, monkeypatch):
    """They are run in several passes. With one token, the prompt is that of the call before."""
    monkeypatch.setattr(prefix, "WORTH", 1.0)
    prompt = torch.randint(64, (800,), generator=torch.Generator().manual_seed(count)).tolist()
    other = prompt[:-count] + [(token + 1) % 64 for token in prompt[-count:]]
    continued(decoder, [prompt if count == 1 else other])
    assert continued(decoder, [prompt]) == (anew([prompt]), 800 - count)


def test_a_cache_that_grows(decoder, anew):
    decoder = SpeculativeDecoder(decoder.model, None, decoder.draft_model)
    prompt, cached, capacities = list(range(60)) * 2, [], []
    for turn in ([1] * 200, [2] * 200, []):
        (tokens,), count = continued(decoder, [prompt])
        assert [tokens] == anew([prompt])
        cached.append((count, len(prompt)))
        capacities.append(next(reversed(decoder._session._held.values()))[0].capacity)
        prompt = prompt + tokens + turn
    assert cached == [(0, 120), (139, 340), (359, 560)]
    assert capacities == sorted(capacities) and capacities[0] < capacities[-1]


def test_little_in_common_is_run_as_one_prompt(decoder, anew):
    continued(decoder, [PROMPTS[2]])
    prompt = PROMPTS[2][:5] + [60] * 20
    assert continued(decoder, [prompt]) == (anew([prompt]), 0)


def test_requests_find_their_rows(decoder, anew):
    """Some ended early and left the batch, then they come in another order, or one comes twice."""

    def stop_when(request, tokens):
        return len(tokens) == (3, 20, 9, 14)[request]

    texts, cached = continued(decoder, PROMPTS, stop_when=stop_when)
    assert list(map(len, texts)) == [3, 20, 9, 14] and cached == 0
    texts = [prompt + text for prompt, text in zip(PROMPTS, texts, strict=True)]
    prompts = [texts[row] + [50, 51] for row in (2, 0, 3, 1)]
    tokens, cached = continued(decoder, prompts)
    # row by row, or all but as many tokens as the one with the fewest left has to run
    assert tokens == anew(prompts) and cached > 40
    prompts = [prompts[0] + tokens[0] + [count] for count in range(4)]
    tokens, cached = continued(decoder, prompts)
    assert tokens == anew(prompts) and cached == 4 * (len(prompts[0]) - 2)


def test_one_request_with_less_to_go_on_from(decoder, anew):
    """The others run as many tokens as it does; a short one all of its own."""
    first, _ = continued(decoder, PROMPTS[:3])
    prompts = [prompt + tokens for prompt, tokens in zip(PROMPTS, first, strict=False)]
    prompts[2][-6:] = [(token + 1) % 64 for token in prompts[2][-6:]] + [60] * 14
    prompts[1] = [7, 8]
    tokens, cached = continued(decoder, prompts)
    assert tokens == anew(prompts)
    assert cached == sum(max(0, len(prompt) - 20) for prompt in prompts)


def test_what_a_call_left_unfinished_is_not_gone_on_from(decoder, anew):
    def stop_when(request, tokens):
        if len(tokens) == 10:
            raise RuntimeError("enough")

    (tokens,), _ = continued(decoder, [PROMPTS[2]])
    prompt = PROMPTS[2] + tokens + [3]
    with pytest.raises(RuntimeError, match="enough"):
        continued(decoder, [PROMPTS[2] + [5, 6]], stop_when=stop_when)
    assert continued(decoder, [prompt]) == (anew([prompt]), 0)
    # what is refused comes before
    with pytest.raises(ValueError, match="prompt 0 must hold ids"):
        continued(decoder, [[64]])
    assert continued(decoder, [prompt])[1] == len(prompt) - 1


def test_a_call_that_ended_while_rows_were_moved_left_nothing(decoder, anew, monkeypatch):
    prompts = [list(range(20)), list(range(40, 60))]
    tokens, _ = continued(decoder, prompts)
    prompts = [prompt + new + [1] for prompt, new in zip(prompts, tokens, strict=True)][::-1]

    def interrupted(*given):
        hold(*given)
        raise KeyboardInterrupt

    hold = KVCache.hold
    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "hold", interrupted)
        with pytest.raises(KeyboardInterrupt):
            continued(decoder, prompts)
    assert continued(decoder, prompts) == (anew(prompts), 0)


def test_transformers_generate_passes_it_on(decoder, anew, monkeypatch):
    outputs, generate = [], decoder.generate

    def noted(*given, **options):
        outputs.append(generate(*given, **options))
        return outputs[-1]

    monkeypatch.setattr(decoder, "generate", noted)
    prompt = PROMPTS[2]
    for turn in TURNS:
        out = decoder.model.generate(
            torch.tensor([prompt]), max_new_tokens=20, custom_generate=decoder.custom_generate,
            prefix_caching=True, num_nodes=8,
        )  # fmt: skip
        assert out[0, len(prompt) :].tolist() == anew([prompt])[0]
        prompt = out[0].tolist() + turn
    assert [out.statistics.cached_tokens for out in outputs[1:]] == [49, 72]


def test_without_it_all_is_run(decoder):
    for _ in range(2):
        out = decoder.generate([PROMPTS[2]], max_new_tokens=5)
        assert out.statistics.cached_tokens == 0 == out.statistics.as_dict()["cached_tokens"]
