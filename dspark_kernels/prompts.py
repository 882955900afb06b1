"""Prompts: files of them, and their way through a tokenizer's chat template."""

import json
from pathlib import Path

SOURCES = ("prompt", "messages", "tokens")


def read_records(path: str | Path) -> list[dict]:
    """The objects of a JSON-lines file, each with `prompt` (text), `messages` (a chat) or `tokens`.

    Raises ValueError naming the first line that cannot be used, or that the file is empty.
    """
    records = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            usable = any(record.get(source) for source in SOURCES)
        except (ValueError, AttributeError):
            usable = False
        if not usable:
            raise ValueError(
                f"{path}: line {number} must be a JSON object with `prompt`, `messages` or "
                f"`tokens`, got {line[:60]!r}"
            )
        records.append(record)
    if not records:
        raise ValueError(f"{path}: must hold at least one prompt, got an empty file")
    return records


def encode(record: dict, tokenizer) -> list[int]:
    """Token ids of a record; texts go through the tokenizer's chat template if it has one."""
    if "tokens" in record:
        return record["tokens"]
    messages = record.get("messages") or [{"role": "user", "content": record["prompt"]}]
    if tokenizer.chat_template is None:
        return tokenizer("\n".join(message["content"] for message in messages)).input_ids
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return list(ids)
