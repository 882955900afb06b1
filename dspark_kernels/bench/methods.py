"""Ways to decode greedily: our loop, speculative and plain, and what transformers offers.

A method is called with token ids and a number of new tokens, and returns `Decoded`. Its name on the
command line may carry an argument behind a colon: `ours:32` verifies 32 nodes per step.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..integrations.decoder import SpeculativeDecoder
from ..statistics import Statistics, until_stop

METHODS: dict[str, Callable[[SpeculativeDecoder, str, dict], Callable]] = {}


@dataclass
class Decoded:
    """What a method made of a batch of prompts.

    tokens: per request, the stop token included. steps: target passes behind the one that reads the
    prompt, counted once per request that was still running; step_tokens: the tokens they yielded.
    statistics: of methods that run on our loop.
    """

    tokens: list[list[int]]
    steps: int
    step_tokens: int
    statistics: Statistics | None = None

    @classmethod
    def of(cls, result) -> "Decoded":
        """From the result of our loop, or of one like it."""
        counted = result.statistics
        return cls(result.tokens, counted.steps, counted.tokens, counted)


class Ours:
    """Our loop with the options given; speculative=False: one token per step, the same pass."""

    max_batch = None

    def __init__(self, decoder: SpeculativeDecoder, **options):
        self.decoder, self.options = decoder, options
        nodes = options.get("num_nodes")
        self.note = "our loop, " + (f"{nodes} nodes" if nodes else "one token per step")

    def __call__(self, ids: Sequence[Sequence[int]], max_new_tokens: int) -> Decoded:
        """Decode the prompts as one batch."""
        options = self.options | {"max_new_tokens": max_new_tokens}
        return Decoded.of(self.decoder.generate(ids, **options))


class Generate:
    """transformers' `generate`, greedy; `options` choose one of its assisted ways. A penalty that
    the model's own configuration asks for does not apply, as it does not in our loop."""

    def __init__(self, decoder: SpeculativeDecoder, repetition_penalty: float = 1.0, **options):
        self.decoder, self.options = decoder, options
        self.repetition_penalty = repetition_penalty
        said = ", ".join(f"{name}={_name_of(value)}" for name, value in options.items())
        self.note = f"transformers generate{', ' if said else ''}{said}"
        self.max_batch = 1 if options else None

    @torch.inference_mode()
    def __call__(self, ids: Sequence[Sequence[int]], max_new_tokens: int) -> Decoded:
        """Decode the prompts as one batch, padded on the left."""
        model, stop = self.decoder.model, self.decoder.stop_tokens
        longest, pad = max(map(len, ids)), stop[0] if stop else 0
        batch = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in ids])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
        with _passes(model) as passes:
            out = model.generate(
                batch.to(model.device), attention_mask=mask.to(model.device), pad_token_id=pad,
                max_new_tokens=max_new_tokens, do_sample=False,
                repetition_penalty=self.repetition_penalty, **self.options,
            )  # fmt: skip
        tokens = [until_stop(row, stop) for row in out[:, longest:].tolist()]
        step_tokens = sum(len(row) - 1 for row in tokens)
        return Decoded(tokens, len(passes) - 1 if self.options else step_tokens, step_tokens)


def _name_of(value) -> str:
    return str(getattr(getattr(value, "config", None), "_name_or_path", value))


@contextmanager
def _passes(model):
    """Collects one entry per pass through all layers; an early exit is none."""
    passes = []
    last = model.get_decoder().layers[-1]
    hook = last.register_forward_pre_hook(lambda *_: passes.append(None))
    try:
        yield passes
    finally:
        hook.remove()


def _method(name: str):
    """Register a factory (decoder, argument or "", options of the command) -> method."""

    def register(factory):
        METHODS[name] = factory
        return factory

    return register


@_method("ours")
def _ours(decoder, argument, options):
    if argument:
        nodes = argument if argument == "auto" else _number("ours", argument)
        options = options | {"num_nodes": nodes}
    return Ours(decoder, **options)


@_method("plain")
def _plain(decoder, argument, options):
    return Ours(decoder, speculative=False)


@_method("generate")
def _generate(decoder, argument, options):
    return Generate(decoder)


@_method("prompt-lookup")
def _prompt_lookup(decoder, argument, options):
    tokens = _number("prompt-lookup", argument or "10")
    return Generate(decoder, prompt_lookup_num_tokens=tokens)


@_method("assisted")
def _assisted(decoder, argument, options):
    """A smaller model drafts (its folder or hub id), or the target's own first layers (a number).

    Nine tenths of the layers is the default, since there is often no smaller model of the same
    vocabulary; a model that was not trained to exit early predicts little before.
    """
    depth = decoder.target.num_layers
    layers = argument or str(depth * 9 // 10)
    if layers.isdecimal():
        if not 0 < int(layers) < depth:
            raise ValueError(
                f"methods: assisted takes from 1 to {depth - 1} of the model's {depth} layers "
                f"behind its colon, got {layers}"
            )
        return Generate(decoder, assistant_early_exit=int(layers))
    from ..integrations.loading import load_model

    assistant, _ = load_model(argument, decoder.target.dtype, str(decoder.target.device))
    return Generate(decoder, assistant_model=assistant)


def _number(method: str, argument: str) -> int:
    if not argument.isdecimal() or int(argument) < 1:
        raise ValueError(
            f"methods: {method} takes a whole number from 1 behind its colon, got {argument}"
        )
    return int(argument)


def make_methods(
    names: Sequence[str], decoder: SpeculativeDecoder, options: dict
) -> dict[str, Callable]:
    """The methods of these names, transformers' plain generate always among them.

    names: of `METHODS`, each with an argument behind a colon or without; options: those of `ours`.
    Raises ValueError where there is no such method, or it does not take the argument.
    """
    methods = {}
    for name in dict.fromkeys([*names, "generate"]):
        stem, _, argument = name.partition(":")
        if stem not in METHODS:
            raise ValueError(f"methods: must be of {', '.join(METHODS)}, got {stem!r}")
        methods[name] = METHODS[stem](decoder, argument, options)
    return methods
