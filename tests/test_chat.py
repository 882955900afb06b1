"""Conversations at the terminal."""

import io

import pytest
from rich.console import Console
from tiny import tiny_draft, tiny_model, tiny_tokenizer

from dspark_kernels.chat import chat
from dspark_kernels.integrations.decoder import SpeculativeDecoder

VOCAB = 300


@pytest.fixture
def decoder():
    """What it was given is in `decoder.given`."""
    decoder = SpeculativeDecoder(
        tiny_model(vocab_size=VOCAB), tiny_tokenizer(VOCAB), tiny_draft(vocab_size=VOCAB)
    )
    generate, decoder.given = decoder.generate, []

    def noted(prompts, **options):
        out = generate(prompts, **options)
        if prompts != "Hello":  # before the first turn
            decoder.given.append((decoder.tokenizer.decode(prompts[0]), out))
        return out

    decoder.generate = noted
    return decoder


@pytest.fixture
def talk(decoder, monkeypatch):
    """Called with lines and options: what the terminal shows."""

    def shown(*lines, system=None, **options):
        typed = iter(lines)

        def read(prompt):
            for line in typed:
                return line
            raise EOFError

        monkeypatch.setattr("builtins.input", read)
        console = Console(file=io.StringIO(), width=200)
        options = {"max_new_tokens": 10, "num_nodes": 8} | options
        chat(decoder, system, options, console)
        return console.file.getvalue()

    return shown


def test_turns_go_on_from_those_before(decoder, talk):
    shown = talk("ab", "  ", "cd", system="be brief" * 5)
    (first, answer), (second, again) = decoder.given
    assert first == "be brief" * 5 + "ab\n"
    assert second == first[:-1] + answer.texts[0] + "cd\n"
    assert answer.statistics.cached_tokens == 0 < again.statistics.cached_tokens
    count = len(decoder.tokenizer.encode(second))
    assert f"{again.statistics.cached_tokens} of {count} prompt tokens cached" in shown
    for out in (answer, again):
        assert out.texts[0].strip().split("\n")[0] in shown
        assert f"{out.statistics.tokens_per_step:.2f} tokens per step" in shown


def test_a_context_that_is_full(decoder, talk):
    """The last answer has the room that is left."""
    shown = talk("c" * 250, "de", "fg")
    ((prompt, answer),) = decoder.given
    assert len(answer.tokens[0]) == 256 - len(decoder.tokenizer.encode(prompt)) < 10
    assert shown.count("the context of 256 tokens is full") == 1


def test_a_line_that_is_no_text_is_forgotten(decoder, talk):
    shown = talk("ab", "\udcff", "de")
    assert "line must be text in UTF-8, got other bytes" in shown
    (_, answer), (second, _) = decoder.given
    assert second == "ab" + answer.texts[0] + "de\n"


def test_an_answer_can_be_interrupted(decoder, talk, monkeypatch, press_ctrl_c):
    generate = decoder.generate

    def interrupted(prompts, on_tokens=None, **options):
        def then(request, tokens):
            on_tokens(request, tokens)
            if decoder.generate is not generate:
                monkeypatch.setattr(decoder, "generate", generate)
                press_ctrl_c()

        return generate(prompts, on_tokens=on_tokens and then, **options)

    decoder.generate = interrupted
    shown = talk("a" * 100, "cd")
    assert shown.count("interrupted") == 1
    (_, answer), (second, other) = decoder.given
    assert len(answer.tokens[0]) < 10 == len(other.tokens[0])
    assert second == "a" * 100 + answer.texts[0] + "cd\n"
    assert other.statistics.cached_tokens >= 100
