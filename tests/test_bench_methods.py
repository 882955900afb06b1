"""Lookahead Decoding and Medusa-style heads of `benchmarks/`: greedy decoding's tokens, and fewer
steps where the text repeats."""

import pytest
import torch
from tiny import tiny_draft, tiny_model, tiny_tokenizer

from benchmarks.decode import METHODS
from benchmarks.lookahead import Lookahead, Request, _tree
from benchmarks.medusa import RANKS, template
from dspark_kernels import DraftTree
from dspark_kernels.bench import make_methods
from dspark_kernels.integrations.decoder import SpeculativeDecoder

VOCAB = 300
PROMPTS = [[5, 9, 17, 5, 9, 17, 5, 9], [30, 31, 32], [7]]


@pytest.fixture(scope="module")
def decoder():
    model = tiny_model(vocab_size=VOCAB)
    return SpeculativeDecoder(model, tiny_tokenizer(VOCAB), tiny_draft(vocab_size=VOCAB))


@pytest.mark.parametrize(
    "name", ["lookahead", "lookahead:5,4,5", "lookahead:4,2,3", "lookahead:2,3,1", "medusa:8"]
)
def test_tokens_are_those_of_greedy_decoding(decoder, name):
    method = make_methods([name], decoder, {})[name]
    expected = decoder.generate(PROMPTS, max_new_tokens=40, speculative=False).tokens
    assert method(PROMPTS, 40).tokens == expected
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        alone = method([prompt], 40)
        assert alone.tokens == [tokens]
        assert alone.step_tokens == 39 and alone.steps <= 39
        assert alone.statistics.seconds["verify"] > 0


def test_stops_at_stop_tokens(decoder):
    tokens = decoder.generate([PROMPTS[0]], max_new_tokens=20, speculative=False).tokens[0]
    stopping = SpeculativeDecoder(decoder.model, decoder.tokenizer, decoder.draft_model)
    stopping.model.generation_config.eos_token_id = tokens[7]
    try:
        out = Lookahead(stopping, 5, 4, 5)([PROMPTS[0]], 20).tokens[0]
    finally:
        stopping.model.generation_config.eos_token_id = None
    assert out == tokens[: tokens.index(tokens[7]) + 1]


def test_lookahead_guesses_what_repeats():
    """A text that goes round in a circle is drafted N - 1 tokens at a time."""
    circle = list(range(10, 20))
    request = Request(circle * 2, window=3, ngram=4, guesses=2)
    tokens, parents, accepted = request.nodes(root=circle[-1])
    assert accepted == 4 and tokens[:4] == [circle[-1], *circle[:3]]
    assert parents[:4] == [-1, 0, 1, 2]


def test_lookahead_window():
    """Every guess sees the oldest round up to its column, and its column in the rounds between."""
    request = Request([1, 2, 3], window=3, ngram=4, guesses=2)
    request.rounds = [[0, 11, 12], [20, 21, 22], [30, 31, 32]]
    request.pool = {9: [(7, 8, 6), (7, 8, 5)]}
    tokens, parents, accepted = request.nodes(root=9)
    tree = _tree([(tokens, parents, accepted)], len(tokens) + 60, torch.device("cpu"))
    expected = DraftTree.from_parents(tokens + [0] * 60, parents + [-1] * 60)
    for name in ("tokens", "parents", "depths", "ancestors"):
        assert torch.equal(getattr(tree, name), getattr(expected, name)), name
    assert tree.num_nodes.tolist() == [accepted] == [5]  # the root and a trie of four nodes

    def seen(token):
        node, path = tokens.index(token), []
        while node > 0:
            path.insert(0, tokens[node])
            node = parents[node]
        return path

    assert seen(12) == [11, 12]
    assert seen(20) == [20] and seen(31) == [11, 21, 31] and seen(32) == [11, 12, 22, 32]

    draws = [0] * len(tokens)
    for column, token in enumerate((30, 31, 32)):
        draws[tokens.index(token)] = 40 + column
    request.unfilled = 0
    request.observe([50, 51], draws)
    assert request.pool[9][0] == (20, 30, 40)
    assert request.pool[11] == [(21, 31, 41)] and request.pool[12] == [(22, 32, 42)]
    assert request.rounds == [[20, 21, 22], [30, 31, 32], [40, 41, 42]]


def test_pool_keeps_the_latest():
    request = Request([0], window=2, ngram=3, guesses=2)
    for gram in ((1, 2, 3), (1, 4, 5), (1, 2, 3), (1, 6, 7)):
        request._add(gram)
    assert request.pool[1] == [(6, 7), (2, 3)]


@pytest.mark.parametrize(
    "name, message",
    [
        ("lookahead:40,5,40", r"\(W \+ G\) \* \(N - 1\) must be at most 256"),
        ("lookahead:1,5,5", "W and N must be at least 2"),
        ("lookahead:5", "takes W,N,G behind its colon, got 5"),
        ("medusa:x", "takes whole numbers behind its colon, got x"),
    ],
)
def test_bad_sizes(decoder, name, message):
    with pytest.raises(ValueError, match=message):
        make_methods([name], decoder, {})


def test_template_says_which_candidate_a_node_takes():
    tree = template([(0,), (2,), (0, 1)])
    assert tree.tokens[0, 1:].tolist() == [0, 2, RANKS + 1]
    assert tree.parents[0].tolist() == [-1, 0, 0, 1]


def test_all_methods_are_registered():
    assert {"lookahead", "medusa", "ours", "generate"} <= set(METHODS)
