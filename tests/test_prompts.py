"""Prompt files: what is read from them, and what is refused with one sentence."""

import json

import pytest
from tiny import tiny_tokenizer

from dspark_kernels.bench import read_prompts
from dspark_kernels.prompts import encode, read_records


@pytest.fixture
def path(tmp_path):
    return tmp_path / "prompts.jsonl"


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x7f", "é"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_any_character_may_stand_in_a_text(path, character, line_end, encoding):
    records = [{"prompt": f"one{character}two"}, {"prompt": "three"}]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_bytes(line_end.join([*lines, "", ""]).encode(encoding))
    assert read_records(path) == records


@pytest.mark.parametrize(
    "record, message",
    [
        ({"prompt": 5}, "prompt must be a text, got 5"),
        ({"messages": "hi"}, r"messages must be a list of objects with .*, got \"hi\""),
        ({"messages": ["hi"]}, "messages must be a list of objects with"),
        ({"messages": [{"content": "hi"}]}, "messages must be a list of objects with the texts"),
        ({"messages": [{"role": "user", "content": None}]}, ".* `role` and `content`, got"),
        ({"tokens": ["a"]}, r"tokens must be a list of token ids, .*, got \[\"a\"\]"),
        ({"tokens": [1, -1]}, "tokens must be a list of token ids"),
        ({"tokens": [True]}, "tokens must be a list of token ids"),
        ({"tokens": 7}, "tokens must be a list of token ids"),
        ({"prompt": "hi", "category": [1]}, r"category must be a text, got \[1\]"),
        ({"prompt": "hi", "topic": {}}, "topic must be a text, got {}"),
        ({"prompt": "hi", "temperature": "warm"}, "temperature must be a number of at least 0"),
        ({"prompt": "hi", "temperature": -1}, "temperature must be a number of at least 0, got -1"),
        ({"prompt": ""}, "must be a JSON object with `prompt`, `messages` or `tokens`"),
        ({"text": "hi"}, "must be a JSON object with `prompt`, `messages` or `tokens`"),
        (["hi"], "must be a JSON object with"),
        (None, "must be a JSON object with"),
    ],
)
def test_wrong_values_are_refused(path, record, message):
    path.write_text('{"prompt": "fine"}\n\n' + json.dumps(record))
    with pytest.raises(ValueError, match=rf"prompts.jsonl: line 3:? {message}"):
        read_records(path)


def test_what_is_no_text_is_refused(path):
    path.write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(ValueError, match="must be UTF-8 text, got the byte 0xe9"):
        read_records(path)


def test_null_is_as_good_as_nothing(path):
    path.write_text('{"prompt": "hi", "tokens": null, "category": null}\n')
    assert read_records(path) == [{"prompt": "hi"}]
    assert read_prompts(path) == [{"prompt": "hi", "category": "all"}]


def test_encode():
    tokenizer = tiny_tokenizer(300)
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    assert encode({"prompt": "hi"}, tokenizer) == encode(chat, tokenizer)
    assert encode({"prompt": "hi", "tokens": []}, tokenizer) == encode(chat, tokenizer)
    assert encode({"prompt": "hi", "tokens": [3, 299]}, tokenizer, 300) == [3, 299]
    with pytest.raises(ValueError, match=r"tokens must hold ids from 0 to 299, .*, got 300"):
        encode({"tokens": [3, 300]}, tokenizer, 300)


def test_what_a_chat_template_refuses():
    tokenizer = tiny_tokenizer(300)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ValueError, match=r"chat template takes: no system role"):
        encode({"messages": [{"role": "system", "content": "hi"}]}, tokenizer)
