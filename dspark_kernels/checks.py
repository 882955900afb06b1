"""What `generate` is given: checked, and made plain, before anything is computed."""

import operator
from collections.abc import Iterable

from .ops._check import MAX_NODES, Check


def _fail(name: str, expected: str, got, error=TypeError):
    text = repr(got)
    Check("generate").fail(name, expected, text[:60] + "..." * (len(text) > 60), error)


def integer(name: str, value, low: int, high: int | None = None) -> int:
    """`value` as an int, if it is a whole number of any type in this range."""
    expected = f"be an int of at least {low}" if high is None else f"be an int from {low} to {high}"
    if isinstance(value, bool):
        _fail(name, expected, value)
    try:
        number = operator.index(value)
    except TypeError:
        _fail(name, expected, value)
    if number < low or (high is not None and number > high):
        _fail(name, expected, number, ValueError)
    return number


def number(name: str, value, low: float, high: float | None = None) -> float:
    """`value` as a float, if it is a number in this range; a NaN is in none."""
    Check("generate").number(name, value, low, high)
    return float(value)


def share(name: str, value) -> float:
    """`value` as a float, if it is a number from 0 to 1."""
    return number(name, value, 0, 1)


def function(name: str, value):
    """`value`, if it is a function or None."""
    if value is not None and not callable(value):
        _fail(name, "be a function or None", value)
    return value


def plain(values):
    """Lists and numbers in the place of arrays and tensors."""
    return values.tolist() if hasattr(values, "tolist") else values


def utf8(name: str, text: str) -> str:
    """`text`, if it came as UTF-8; other bytes of files and arguments stay lone surrogates."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{name} must be text in UTF-8, got other bytes")
    return text


def texts(name: str, values) -> list[str]:
    """`values` as a list of texts, none of them empty; one alone may stand for itself."""
    values = [values] if isinstance(values, str) else values
    expected = "hold at least one text, and no empty one"
    if not isinstance(values, Iterable):
        _fail(name, expected, values)
    values = list(values)
    if not values or not all(isinstance(value, str) and value for value in values):
        _fail(name, expected, values, ValueError)
    return values


def token_ids(name: str, values, vocab_size: int) -> list[int]:
    """`values` as a list of ints, if they are ids from 0 to vocab_size - 1."""
    values = plain(values)
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        _fail(name, "hold token ids", values)
    values = list(values)
    try:
        ids = [operator.index(value) for value in values]
    except TypeError:
        _fail(name, "hold token ids, which are ints", values)
    for token in ids:
        if not 0 <= token < vocab_size:
            _fail(name, f"hold ids from 0 to {vocab_size - 1}", token, ValueError)
    return ids


def prompts_of(target, prompts, max_new_tokens: int) -> list[list[int]]:
    """The prompts as lists of token ids, if target and context can take them."""
    prompts = plain(prompts)
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable):
        _fail("prompts", "be a sequence of prompts", prompts)
    checked = []
    for i, prompt in enumerate(prompts):
        ids = token_ids(f"prompt {i}", prompt, target.lm_head.shape[0])
        if not ids:
            _fail(f"prompt {i}", "hold at least one token", ids, ValueError)
        if len(ids) + max_new_tokens > target.max_length:
            raise ValueError(
                f"generate: prompt {i} and its continuation must fit into the model's context "
                f"of {target.max_length} tokens, got {len(ids)} + {max_new_tokens}"
            )
        checked.append(ids)
    if not checked:
        _fail("prompts", "hold at least one prompt", checked, ValueError)
    return checked


def nodes(name: str, value) -> int:
    """`value` as a number of tree nodes."""
    return integer(name, value, 1, MAX_NODES)
