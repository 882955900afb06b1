"""Prompts: files of them, their way through a tokenizer's chat template, and how answers end."""

import json
import math
from pathlib import Path

from jinja2 import TemplateError

from .checks import plain

SOURCES = ("prompt", "messages", "tokens")


def read_records(path: str | Path) -> list[dict]:
    """The objects of a JSON-lines file, each with `prompt` (text), `messages` (a chat) or `tokens`.

    Beside one of these a record may have `category`, `topic` (texts), `temperature` and `id`.
    Raises ValueError naming the first line that cannot be used and why, or that the file is empty.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"prompts: {path}: must be UTF-8 text, got the byte {byte:#x}") from error
    records = []
    for number, line in enumerate(text.split("\n"), start=1):  # U+2028 may stand in a JSON string
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            usable = any(record.get(source) for source in SOURCES)
        except (ValueError, AttributeError):
            usable = False
        if not usable:
            raise ValueError(
                f"prompts: {path}: line {number} must be a JSON object with `prompt`, `messages` "
                f"or `tokens`, got {line[:60]!r}"
            )
        for name, (allowed, expected) in FIELDS.items():
            value = record.get(name)
            if value is not None and not allowed(value):
                raise ValueError(
                    f"prompts: {path}: line {number}: {name} must be {expected}, got "
                    f"{json.dumps(value, ensure_ascii=False)[:60]}"
                )
        records.append({name: value for name, value in record.items() if value is not None})
    if not records:
        raise ValueError(f"prompts: {path}: must hold at least one prompt, got an empty file")
    return records


def _is_text(value) -> bool:
    return isinstance(value, str)


def _is_chat(value) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict) and _is_text(message.get("role"))
        and _is_text(message.get("content")) for message in value
    )  # fmt: skip


def _are_tokens(value) -> bool:
    return isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)


def _is_temperature(value) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


FIELDS = {
    "prompt": (_is_text, "a text"),
    "messages": (_is_chat, "a list of objects with the texts `role` and `content`"),
    "tokens": (_are_tokens, "a list of token ids, whole numbers from 0"),
    "category": (_is_text, "a text"),
    "topic": (_is_text, "a text"),
    "temperature": (_is_temperature, "a number of at least 0"),
}


def encode(record: dict, tokenizer, vocab_size: int | None = None) -> list[int]:
    """Token ids of a record; texts go through the tokenizer's chat template if it has one.

    Raises ValueError where the record's own ids are not of a vocabulary of `vocab_size` tokens, or
    the chat template refuses the messages.
    """
    if tokens := record.get("tokens"):
        if vocab_size is not None and max(tokens) >= vocab_size:
            raise ValueError(
                f"tokens must hold ids from 0 to {vocab_size - 1}, the model's vocabulary, got "
                f"{max(tokens)}"
            )
        return tokens
    messages = record.get("messages") or [{"role": "user", "content": record["prompt"]}]
    if tokenizer.chat_template is None:
        return tokenizer("\n".join(message["content"] for message in messages)).input_ids
    try:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    except TemplateError as error:
        raise ValueError(
            f"messages must be what the model's chat template takes: {error}"
        ) from error
    return list(ids)


def stop_tokens(generation_config) -> list[int]:
    """The tokens at which a model of transformers ends its answer."""
    ids = plain(generation_config.eos_token_id)
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
