"""The cost table: interpolation, its file, and what it refuses."""

import json
from dataclasses import asdict

import pytest
import torch
from tiny import tiny_draft, tiny_model

from dspark_kernels import profiling
from dspark_kernels.cost import CostTable, table_key, table_path
from dspark_kernels.integrations.decoder import SpeculativeDecoder
from dspark_kernels.profiling import cost_table, profile

KEY = {"model": "m", "dtype": "bfloat16", "torch": "1.0"}


@pytest.fixture
def table():
    passes = [[1, 2, 10], [2, 4, 20]]
    return CostTable(KEY, [64, 1024], [1, 8, 64], passes, [1, 4], [0.5, 0.8], [0.1, 0.2])


@pytest.fixture(scope="module")
def decoder():
    return SpeculativeDecoder(tiny_model(), None, tiny_draft())


@pytest.mark.parametrize(
    "batch, nodes, context, expected",
    [
        (1, 1, 64, 1.0),  # plain: no draft
        (1, 8, 64, 2.5),
        (1, 8, 544, 3.5),  # halfway between the contexts
        (1, 36, 64, 6.5),  # halfway between the tokens
        (4, 8, 0, 2.8 + 3 * 0.1),  # eight tokens of four requests
        (2, 128, 1024, 20 + 64 * 16 / 56 + 0.6 + 0.2),  # beyond the last tokens the slope goes on
        (1, 1, 1984, 3.0),  # and beyond the last context
        (8, 8, 64, 2.0 + 7 * 0.1),
    ],
)
def test_interpolation(table, batch, nodes, context, expected):
    drafted = nodes > batch
    assert table.step(batch, nodes, context, drafted) == pytest.approx(expected)
    more = table.step(batch, nodes, context, True) - table.step(batch, nodes, context, False)
    assert more == pytest.approx(table.draft(batch))


def test_round_trip(table, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = table.save()
    assert path == table_path(KEY) and tmp_path in path.parents
    assert CostTable.load(path, KEY) == table
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name, now", [("torch", "2.0"), ("model", "another"), ("new", "part")])
def test_stale_and_foreign_tables_are_refused(table, name, now):
    path = table.save()
    message = rf"must be measured with {name} '{now}', got .*; measure again: dspark profile"
    with pytest.raises(ValueError, match=message):
        CostTable.load(path, KEY | {name: now})


@pytest.mark.parametrize("change", [
    {"key": []}, {"tokens": []}, {"pass_seconds": [[1.0]]}, {"draft_seconds": [-1.0, 2.0]},
    {"contexts": [1, 2, 3]}, {"request_seconds": ["a", "b"]},
])  # fmt: skip
def test_a_damaged_table_is_refused(table, tmp_path, change):
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(asdict(table) | change))
    with pytest.raises(ValueError, match=r"must hold a table of `dspark profile`"):
        CostTable.load(path, KEY)


def test_a_cache_that_cannot_be_written_is_no_error(decoder, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="was measured and cannot be kept"):
        assert cost_table(decoder.target, decoder.draft).contexts == [64]


@pytest.mark.parametrize("text", ["", "[]", '{"key": 1}'])
def test_what_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "cost.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"must hold a table of `dspark profile`"):
        CostTable.load(path, KEY)


def test_profile_measures_every_point(decoder):
    table = profile(decoder.target, decoder.draft)
    assert table.key == table_key(decoder.target, decoder.draft)
    assert table.contexts == [64]  # the model's context is 256 tokens
    assert all(row == sorted(row) and row[0] > 0 for row in table.pass_seconds)
    one, two, many = (table.step(1, nodes, 100, nodes > 1) for nodes in (1, 2, 64))
    assert one < two <= many


def test_a_further_request_is_a_share_of_many(decoder, monkeypatch):
    """Passes take 1 ms a token, and 5 ms for each further request."""
    shapes = []

    def seconds(function, device):
        function()
        batch, nodes = shapes.pop()
        return 1e-3 * (batch * nodes + 5 * (batch - 1))

    monkeypatch.setattr(
        profiling, "verify", lambda target, state, tree, *rest: shapes.append(tree.tokens.shape)
    )
    monkeypatch.setattr(profiling, "propose", lambda *arguments: shapes.append((1, 1)))
    monkeypatch.setattr(profiling, "_seconds", seconds)
    table = profile(decoder.target, decoder.draft)
    assert table.request_seconds == [pytest.approx(5e-3)]
    assert table.pass_seconds[0][:2] == pytest.approx([1e-3, 2e-3])


def test_the_table_is_measured_once_and_again_when_it_is_stale(decoder, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = cost_table(decoder.target, decoder.draft)
    assert cost_table(decoder.target, decoder.draft) == first
    path = table_path(first.key)
    stored = json.loads(path.read_text())
    stored["key"]["torch"] = "1.0"
    path.write_text(json.dumps(stored))
    with pytest.warns(UserWarning, match=r"measured with torch .*, got '1.0'"):
        again = cost_table(decoder.target, decoder.draft)
    assert again.key["torch"] == torch.__version__
    assert CostTable.load(path, again.key) == again
