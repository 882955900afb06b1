"""The loop is lossless, whatever drafts, batches and budgets it is given."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from chi_square import chi_square
from tiny import PROMPTS, tiny_draft, tiny_model

from dspark_kernels import sampling
from dspark_kernels.cost import CostTable
from dspark_kernels.decode import _Loop, generate, max_depth, step
from dspark_kernels.graph import Graphs, Session
from dspark_kernels.integrations.decoder import SpeculativeDecoder
from dspark_kernels.integrations.transformers import TransformersTarget
from dspark_kernels.prefill import prefill
from dspark_kernels.reference.noise import gumbel, uniform
from dspark_kernels.sampling import Sampling
from dspark_kernels.scheduler import Scheduler
from dspark_kernels.statistics import Clock, Results, no_clock, until_stop

SAMPLINGS = {
    "greedy": {},
    "temperature": {"temperature": 0.8, "seed": [5, 6, 7, -8]},
    "truncated": {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 3},
    "truncated late": {"temperature": 1.2, "top_p": [0.9, 0.5, 0.7, 1.0], "seed": 4},
    "penalized": {
        "temperature": [0.0, 0.7, 0.0, 1.0],
        "repetition_penalty": [1.3, 1.1, 1.0, 0.8],
        "seed": 2,
    },
    "penalized, truncated": {
        "temperature": [1.2, 0.0, 0.7, 1.0], "top_k": [20, 5, 64, 1], "top_p": 0.95, "seed": 8,
        "repetition_penalty": [1.3, 1.1, 1.0, 1.2],
    },
    "penalized, truncated late": {
        "temperature": 1.2, "top_k": [100, 0, 20, 0], "min_p": 0.01, "seed": 9,
        "repetition_penalty": 1.2,
    },
    "mixed": {"temperature": [0.0, 0.7, 1.5, 0.0], "top_k": [0, 0, 5, 0], "seed": [1, 2, 3, 4]},
}  # fmt: skip


@pytest.fixture(scope="module")
def decoder():
    return SpeculativeDecoder(tiny_model(), None, tiny_draft())


def per_request(options, request):
    return {
        name: value[request] if isinstance(value, list) else value
        for name, value in options.items()
    }


@pytest.mark.parametrize("options", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("num_nodes", [1, 2, 7, 33, 70])
def test_tokens_are_those_of_plain_decoding(decoder, options, num_nodes):
    plain = decoder.generate(PROMPTS, max_new_tokens=40, speculative=False, **options)
    ours = decoder.generate(PROMPTS, max_new_tokens=40, num_nodes=num_nodes, **options)
    assert ours.tokens == plain.tokens
    assert plain.statistics.tokens_per_step == 1
    if num_nodes > 7:
        assert ours.statistics.tokens_per_step > 1.2  # else the test proves little


@pytest.mark.parametrize("options", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("per_token", [1e-5, 0.2], ids=["cheap nodes", "dear nodes"])
def test_the_scheduler_changes_no_token(decoder, options, per_token):
    table = CostTable({}, [64], [1, 256], [[1.0, 1 + 255 * per_token]], [1], [0.1], [0.0])
    expected = decoder.generate(PROMPTS, max_new_tokens=40, speculative=False, **options).tokens
    chosen = set()
    for sync_every in (1, 3):
        scheduler = Scheduler((1, 2, 4, 8, 16, 33), table)
        out = generate(
            decoder.target, decoder.draft, PROMPTS, max_new_tokens=40, num_nodes=scheduler,
            sampling=Sampling(**options), sync_every=sync_every,
        )  # fmt: skip
        assert out.tokens == expected
        chosen |= set(out.statistics.choices)
    assert (max(chosen) >= 16) if per_token < 0.1 else (min(chosen) <= len(PROMPTS))


def test_auto_is_lossless_and_says_what_it_chose(decoder):
    expected = decoder.generate(PROMPTS, max_new_tokens=30, num_nodes=16).tokens
    out = decoder.generate(PROMPTS, max_new_tokens=30, num_nodes="auto", max_nodes=20)
    assert out.tokens == expected
    assert max(out.statistics.choices) <= 20 * len(PROMPTS)  # nodes of all requests together
    report = out.statistics.as_dict()
    choices = report["choices"]
    assert sum(choice["steps"] for choice in choices.values()) == out.statistics.steps_of_batch
    observed = sum(choice["observed_tokens"] * choice["steps"] for choice in choices.values())
    assert observed / out.statistics.steps == pytest.approx(report["observed_tokens_per_step"])
    assert report["predicted_tokens_per_step"] >= 1
    assert all(choice["seconds"] > 0 for choice in choices.values())


def test_calls_share_buffers_and_not_their_contents(decoder):
    """A state is loaded again where it fits, and replaced where it does not."""
    session = Session()

    def run(prompts, length, **options):
        return generate(
            decoder.target, decoder.draft, prompts, max_new_tokens=length, session=session,
            sampling=Sampling(**options),
        ).tokens  # fmt: skip

    first = run(PROMPTS[:2], 30)
    graphs = session.graphs
    assert run(PROMPTS[2:], 20, seed=9) == decoder.generate(PROMPTS[2:], max_new_tokens=20).tokens
    assert session.graphs is graphs
    sampled = {"temperature": 0.8, "seed": 4}
    expected = decoder.generate(PROMPTS[:2], max_new_tokens=30, **sampled).tokens
    assert run(PROMPTS[:2], 30, **sampled) == expected
    assert session.graphs is not graphs
    assert run(PROMPTS[:2], 30) == first  # calls of two kinds in turn: both are kept
    assert session.graphs is graphs
    longer = decoder.generate(PROMPTS[:2], max_new_tokens=200).tokens
    assert run(PROMPTS[:2], 200) == longer
    assert session.graphs is not graphs  # the buffers were too small


@pytest.mark.parametrize("penalty", [1.0, 1.4, 0.7])
def test_greedy_tokens_are_those_of_transformers(decoder, penalty):
    options = {"max_new_tokens": 40, "repetition_penalty": penalty}
    for prompt in PROMPTS:
        expected = decoder.model.generate(torch.tensor([prompt]), do_sample=False, **options)
        tokens = decoder.generate([prompt], **options).tokens[0]
        assert tokens == expected[0, len(prompt) :].tolist()
    several = decoder.generate(PROMPTS, **options).tokens
    assert several[-1] == tokens


@pytest.mark.parametrize("options", SAMPLINGS.values(), ids=SAMPLINGS)
def test_tokens_do_not_depend_on_the_batch(decoder, options):
    together = decoder.generate(PROMPTS, max_new_tokens=30, **options)
    for request, prompt in enumerate(PROMPTS):
        alone = decoder.generate([prompt], max_new_tokens=30, **per_request(options, request))
        assert alone.tokens[0] == together.tokens[request]


def test_min_score_and_sync_every_change_no_token(decoder):
    expected = decoder.generate(PROMPTS, max_new_tokens=30).tokens
    pruned = decoder.generate(PROMPTS, max_new_tokens=30, min_score=0.05)
    assert pruned.tokens == expected
    assert pruned.statistics.nodes_per_step < 16
    seldom = decoder.generate(PROMPTS, max_new_tokens=30, sync_every=4)
    assert seldom.tokens == expected


def test_the_target_runs_over_no_pruned_node(decoder, monkeypatch):
    forward, rows = decoder.target.forward, []

    def record(tokens, positions, cache, ancestors=None, packing=None):
        rows.append(tokens.numel() if packing is None else len(packing.slots))
        return forward(tokens, positions, cache, ancestors, packing)

    monkeypatch.setattr(decoder.target, "forward", record)
    for prompts in (PROMPTS[:1], PROMPTS):
        rows.clear()
        statistics = decoder.generate(
            prompts, max_new_tokens=30, num_nodes=16, min_score=0.05
        ).statistics
        assert sum(rows[1:]) == statistics.nodes < 16 * statistics.steps  # rows[0]: the prompts


@pytest.mark.parametrize("alone", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_one_truncation_alone_leaves_the_likeliest_token(decoder, alone):
    options = {"max_new_tokens": 20, "num_nodes": 8}
    greedy = decoder.generate(PROMPTS, **options).tokens
    assert decoder.generate(PROMPTS, temperature=1.5, seed=7, **options).tokens != greedy
    assert decoder.generate(PROMPTS, temperature=1.5, seed=7, **alone, **options).tokens == greedy


@pytest.mark.parametrize("most", [1, 40])
def test_draws_from_few_tokens_are_those_from_all(decoder, most, monkeypatch):
    options = {"temperature": 1.2, "top_k": [20, 1, 40, 5], "top_p": 0.95, "seed": 3}
    options |= {"top_k": [min(k, most) for k in options["top_k"]], "max_new_tokens": 30}
    assert Sampling(top_k=options["top_k"]).tensors(4, "cpu").top_few is not None
    few = decoder.generate(PROMPTS, **options).tokens
    monkeypatch.setattr(sampling, "MAX_K", 0)
    assert Sampling(top_k=options["top_k"]).tensors(4, "cpu").top_few is None
    assert decoder.generate(PROMPTS, **options).tokens == few


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_who_shares_a_batch_does_not_change_how_logits_are_rounded(dtype):
    """Where one request of a batch keeps more tokens, all are drawn from all logits, not lists."""
    g = torch.Generator().manual_seed(0)
    hidden, lm_head = (torch.randn(n, 64, generator=g).to(dtype) for n in (600, 8000))
    target = SimpleNamespace(lm_head=lm_head / 4, lm_head_bias=None, logit_cap=None)
    few, mixed = (
        Sampling(temperature=1.0, seed=range(600), top_k=[*[20] * 599, last]).tensors(600, "cpu")
        for last in (20, 0)
    )
    positions = torch.arange(600)[:, None]
    drawn, expected = (sampling.draw(target, hidden, positions, o, None) for o in (few, mixed))
    assert torch.equal(drawn[:599], expected[:599])
    penalty = torch.where(torch.arange(600) < 599, 1.0, 1.2)
    seen = torch.full((600, 8000 // 64), -1)  # every token
    penalized = few._replace(repetition_penalty=penalty)
    drawn = sampling.draw(target, hidden, positions, penalized, seen)
    assert torch.equal(drawn[:599], expected[:599])


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_seeds_are_of_64_bits(decoder, seed):
    options = {"max_new_tokens": 20, "temperature": 1.5, "seed": seed}
    plain = decoder.generate(PROMPTS, speculative=False, **options).tokens
    assert decoder.generate(PROMPTS, num_nodes=8, **options).tokens == plain


def test_stop_token_inside_an_accepted_run(decoder):
    (tokens,) = decoder.generate([PROMPTS[2]], max_new_tokens=24).tokens
    for stop in set(tokens):
        (cut,) = decoder.generate([PROMPTS[2]], max_new_tokens=24, stop=[stop]).tokens
        assert cut == tokens[: tokens.index(stop) + 1]


@pytest.mark.parametrize("options", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("num_nodes", [1, 16, "auto"])
def test_requests_that_finish_early_leave_the_others_alone(decoder, options, num_nodes):
    """Each in turn is the first to end, and is dropped; the rest go on as if it had never been."""
    free = decoder.generate(PROMPTS, max_new_tokens=40, speculative=False, **options).tokens
    for first in range(len(PROMPTS)):
        stop = free[first][3]
        out = decoder.generate(
            PROMPTS, max_new_tokens=40, stop=[stop], num_nodes=num_nodes, sync_every=1 + first % 2,
            **options,
        )  # fmt: skip
        assert out.tokens == [until_stop(tokens, {stop}) for tokens in free]


@pytest.mark.parametrize("sync_every", [1, 3])
@pytest.mark.parametrize("num_nodes", [1, 16, "auto"])
def test_requests_end_where_their_caller_says_so(decoder, num_nodes, sync_every):
    """Each at another length, one at its first token; the steps to come leave them out."""
    free = decoder.generate(PROMPTS, max_new_tokens=40).tokens
    lengths, seen = [9, 1, 40, 23], set()

    def stop_when(request, tokens):
        assert tokens == free[request][: len(tokens)]
        seen.add(torch.is_inference_mode_enabled())
        return len(tokens) == lengths[request]

    out = decoder.generate(
        PROMPTS, max_new_tokens=40, num_nodes=num_nodes, sync_every=sync_every, stop_when=stop_when
    )
    assert out.tokens == [row[:length] for row, length in zip(free, lengths, strict=True)]
    assert seen == {False}


def test_on_tokens_is_called_as_if_generate_were_not_around_it(decoder):
    expected, seen = decoder.generate(PROMPTS, max_new_tokens=8).tokens, set()

    def modes():
        return (
            torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
        )  # fmt: skip

    def look(request, tokens):
        seen.add(modes())

    for around in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with torch.autocast("cpu", dtype=torch.bfloat16), around:
            seen.clear()
            out = decoder.generate(PROMPTS, max_new_tokens=8, on_tokens=look, stop_when=look)
            assert out.tokens == expected and seen == {modes()}


def test_streaming_and_statistics_agree_with_the_result(decoder):
    seen = [[] for _ in PROMPTS]
    out = decoder.generate(
        PROMPTS, max_new_tokens=30, on_tokens=lambda request, tokens: seen[request].append(tokens)
    )
    assert [list(itertools.chain(*parts)) for parts in seen] == out.tokens
    statistics = out.statistics
    assert statistics.steps == sum(len(parts) - 1 for parts in seen) == sum(statistics.accepted)
    assert statistics.tokens == sum(map(len, out.tokens)) - len(PROMPTS)
    assert statistics.acceptance_by_depth == sorted(statistics.acceptance_by_depth, reverse=True)
    assert set(statistics.seconds) == {
        "prefill",
        "draft",
        "gate",
        "verify",
        "draw",
        "accept",
        "host",
    }


@pytest.mark.parametrize("length", [1, 2, 37])
def test_max_new_tokens_is_exact(decoder, length):
    out = decoder.generate(PROMPTS, max_new_tokens=length)
    assert [len(tokens) for tokens in out.tokens] == [length] * len(PROMPTS)


def test_the_model_keeps_its_own_attention(decoder):
    before = decoder.model.config._attn_implementation
    decoder.generate(PROMPTS, max_new_tokens=4)
    assert decoder.model.config._attn_implementation == before


@torch.inference_mode()
def test_a_step_never_stops_the_host():
    """On the meta device tensors have no values: whatever reads one, raises."""
    with pytest.raises(RuntimeError):
        torch.ones(1, device="meta").item()
    target = TransformersTarget(tiny_model().to("meta"))
    bound = tiny_draft().to("meta").bind(target.embedding, target.lm_head)
    target.feature_layers = bound.feature_layers
    sampling = Sampling(temperature=0.5, top_p=0.9)
    state, _ = prefill(target, [[1, 2, 3], [4]], sampling, [3], max_new_tokens=20, room=40)
    for draft in (None, bound):
        out = step(target, draft, state, 12, 0.1, no_clock)
        assert out.tokens.shape == (2, max_depth(draft) + 1) and out.counts.shape == (2,)
        assert draft is None or out.scores.shape == (2, 12)


VOCAB, REQUESTS, RUNS, PROMPT = 5, 8_000, 6, [1, 3, 2]
TEMPERATURE = 0.9


def next_probabilities(model, prefixes):
    logits = model(torch.tensor(prefixes)).logits[:, -1].double()
    return (logits / TEMPERATURE).softmax(-1)


@torch.inference_mode()
def test_sampled_text_has_the_distribution_of_the_target():
    """144,000 draws: the joint distribution of the first three tokens, by chi-square."""
    model = tiny_model(vocab_size=VOCAB, seed=2)
    draft = tiny_draft(vocab_size=VOCAB, num_heads=2)
    target = TransformersTarget(model)
    target.feature_layers = (1,)
    bound = draft.bind(target.embedding, target.lm_head)
    counts, steps = torch.zeros(VOCAB, VOCAB, VOCAB), 0
    for run in range(RUNS):
        seeds = list(range(run * REQUESTS, (run + 1) * REQUESTS))
        sampling = Sampling(temperature=TEMPERATURE, seed=seeds)
        out = generate(
            target, bound, [PROMPT] * REQUESTS, max_new_tokens=3, num_nodes=6, sampling=sampling
        )
        index = torch.tensor(out.tokens).T
        counts.index_put_(tuple(index), torch.ones(REQUESTS), accumulate=True)
        steps += out.statistics.steps
    assert steps < 1.7 * RUNS * REQUESTS  # often both tokens of a request in one
    expected = torch.ones(1, dtype=torch.float64)
    prefixes = [PROMPT]
    for _ in range(3):
        expected = (expected[:, None] * next_probabilities(model, prefixes)).flatten()
        prefixes = [[*prefix, token] for prefix in prefixes for token in range(VOCAB)]
    statistic, limit = chi_square(counts.flatten(), expected)
    assert statistic < limit


@torch.inference_mode()
def test_negative_control_shared_noise_with_rejection_fails_the_same_test():
    """p/q rejection of a draft that shares the target's noise is biased: the test sees it."""
    model = tiny_model(vocab_size=VOCAB, seed=2)
    p = next_probabilities(model, [PROMPT])[0].float()
    q = p * torch.tensor([0.1, 3.0, 3.0, 3.0, 0.8])  # the draft misjudges all of them differently
    q /= q.sum()
    seeds = torch.arange(RUNS * REQUESTS)
    noise = gumbel(seeds, torch.full_like(seeds, len(PROMPT)), torch.arange(VOCAB))
    drafted = (q.log() + noise).argmax(-1)
    accepted = uniform(seeds, torch.zeros_like(seeds), torch.zeros(1, dtype=torch.int64), 1)[:, 0]
    accepted = accepted < (p / q)[drafted]
    redrawn = ((p - q).clamp(min=0).log() + noise).argmax(-1)
    tokens = torch.where(accepted, drafted, redrawn)
    statistic, limit = chi_square(torch.bincount(tokens, minlength=VOCAB).float(), p.double())
    assert statistic > limit


def test_a_draft_for_another_target_is_refused():
    with pytest.raises(ValueError, match=r"vocabulary size 50, got .* 64"):
        SpeculativeDecoder(tiny_model(), None, tiny_draft(vocab_size=50))


def test_a_decoder_is_for_one_call_at_a_time(decoder):
    expected = decoder.generate(PROMPTS, max_new_tokens=12).tokens

    def again(request, tokens):
        with pytest.raises(RuntimeError, match="this decoder is at work already"):
            decoder.generate(PROMPTS, max_new_tokens=2)
        assert not torch.is_inference_mode_enabled()
        raise KeyError("of the user's function")

    with pytest.raises(KeyError, match="of the user's function"):
        decoder.generate(PROMPTS, max_new_tokens=12, on_tokens=again)
    assert decoder.generate(PROMPTS, max_new_tokens=12).tokens == expected


def test_autocast_around_it_changes_nothing(decoder):
    expected = decoder.generate(PROMPTS, max_new_tokens=12).tokens
    with torch.autocast("cpu", torch.bfloat16):
        assert decoder.generate(PROMPTS, max_new_tokens=12).tokens == expected


def test_no_more_steps_are_launched_than_can_yield_tokens(decoder):
    out = decoder.generate(PROMPTS, max_new_tokens=6, num_nodes=8, sync_every=500)
    assert out.statistics.steps_of_batch <= 5
    assert out.statistics.observed_tokens_per_step >= 1


@torch.inference_mode()
@pytest.mark.parametrize("behind", [0, 1], ids=["in step", "one behind"])
def test_seconds_are_those_of_the_step(decoder, behind):
    """From the arrival of the results before to that of its own, whenever the host looks."""
    target, draft = decoder.target, decoder.draft
    state, _ = prefill(target, PROMPTS, Sampling(), [], 20, room=90)
    results = Results([len(prompt) for prompt in PROMPTS], 20, [], None)
    results.add_first(state.root.tolist())
    graphs, seen = Graphs(target.device), []
    scheduler = Scheduler((8,))
    scheduler.begin(len(PROMPTS))
    scheduler.observe_seconds = lambda *given: seen.append(given[3])
    loop = _Loop(target, draft, state, scheduler, 0.0, graphs, results, Clock(target.device))
    loop.arrived, waiting = 10.0, []
    for arrival in (11.0, 13.0, 13.5):
        waiting.append(loop.launch())
        waiting[-1].outcome.arrived = arrival
        if len(waiting) > behind:
            loop.look(waiting.pop(0))
    assert seen == [1.0, 2.0, 0.5][: 3 - behind]
    assert [c.seconds for c in results.statistics.choices.values()] == [sum(seen)]
