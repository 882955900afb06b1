"""The benchmarks of ops and of a step, and their pictures, on small cases."""

import csv
import re
import sys

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import bench_step, plot, readme
from benchmarks.common import Case, measure
from dspark_kernels.results import origin, write_csv

PEAKS = (1e9, 1e9)


def case(ours, **options):
    return Case(
        shape="64", make=lambda seed: (torch.full((64,), seed + 1.0),), ours=ours,
        baselines={"slow": lambda x: [x.clone() for _ in range(200)][-1] * 2},
        expected=lambda x: 2 * x, bytes=256, flops=64, runs=5, **options,
    )  # fmt: skip


def test_rows_of_a_case():
    ours, slow = measure("double", case(lambda x: x + x), "cpu", torch.float32, PEAKS)
    assert ours["implementation"] == "ours" and ours["ratio"] == 1
    assert slow["ratio"] == pytest.approx(slow["microseconds"] / ours["microseconds"])
    assert slow["ratio"] > 1
    assert ours["quantile_20"] <= ours["microseconds"] <= ours["quantile_80"]
    assert ours["launch_microseconds"] is None  # there is no launch on a CPU
    assert ours["bandwidth_share"] == pytest.approx(256 / (ours["microseconds"] * 1e-6) / 1e9)
    assert set(origin("cpu")) <= set(ours)


def test_a_wrong_output_is_not_measured():
    assert measure("double", case(lambda x: x + x + 1), "cpu", torch.float32, PEAKS) == []


def test_a_case_that_fails_leaves_the_others(monkeypatch, tmp_path, capsys):
    def cases(device, dtype):
        yield case(lambda x: x.view(-1, 3))
        yield case(lambda x: x + x)

    monkeypatch.setattr("benchmarks.bench_linear_topk.cases", cases)
    monkeypatch.setattr(benchmarks.timing, "peak_flops", lambda *_: 1e9)
    command = ["benchmarks", "linear_topk", "--dtype", "float32", "--csv", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert benchmarks.main() == 1
    assert "not measured: linear_topk 64: RuntimeError" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "linear_topk_cpu.csv").open()))
    assert [row["implementation"] for row in rows] == ["ours", "slow"]


def test_every_module_has_cases():
    for op in benchmarks.OPS:
        module = __import__(f"benchmarks.bench_{op}", fromlist=["cases"])
        assert next(iter(module.cases("cpu", torch.float32))).baselines, op


def test_step_keeps_measured_and_derived_apart(tmp_path, monkeypatch, capsys):
    options = "--config tiny --context 20 --batch 1 2 --nodes 4 --device cpu --csv"
    monkeypatch.setattr(sys, "argv", ["bench_step", *options.split(), str(tmp_path)])
    assert bench_step.main() == 0
    assert "measured" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "step_cpu.csv").open()))
    assert [row["batch"] for row in rows] == ["1", "2"]
    for row in rows:
        ratio = float(row["tree_ms"]) / float(row["plain_ms"])
        assert float(row["needed_eager_1x"]) == pytest.approx(ratio, rel=1e-3)
        assert float(row["needed_eager_3.01x"]) == pytest.approx(3.01 * ratio, rel=1e-3)
        assert row["plain_graph_ms"] == row["needed_graph_1x"] == ""


def test_step_leaves_the_state_where_it_was():
    target, draft = bench_step.build("tiny", "cpu", torch.float32)
    state = bench_step.state_at(target, 2, 20, room=30)
    call = bench_step.step_of(target, draft, state, 20, 4)
    for _ in range(20):
        call()
    assert state.cache.seqlens.tolist() == [20, 20] and state.lengths.tolist() == [21, 21]


def test_a_cache_that_does_not_fit_is_not_run(monkeypatch):
    target, draft = bench_step.build("tiny", "cpu", torch.float32)
    row = bench_step.measure(target, draft, 10_000, 100_000, 4, "cpu")
    assert row["tree_ms"] is None and re.match("not run: a cache of .* GiB", row["note"])


def test_pictures(tmp_path, monkeypatch):
    where = {"dtype": "bfloat16", **origin("cpu")}
    measured = measure("double", case(lambda x: x + x), "cpu", torch.float32, PEAKS)
    write_csv(tmp_path / "double_cpu.csv", measured)
    figures = {
        "prompts": 1, "tokens_per_second": 9.0, "tokens_per_step": 2.0, "speedup": 1.5,
        "step_milliseconds": 3.0, "batch_size": 1, "identical": 1, "predicted_over_plain": 2.0,
        "measured_over_plain": None,
    }  # fmt: skip
    rows = [
        {"category": c, "method": m} | figures | where
        for c in ("code", "total")
        for m in ("ours", "plain", "generate")
    ]
    write_csv(tmp_path / "decode_cpu.csv", rows)
    write_csv(
        tmp_path / "decode_batches_cpu.csv",
        [row | {"batch_size": n} for n in (4, 8) for row in rows],
    )
    sweep = [{"category": "total", "num_nodes": n} | figures | where for n in (4, 16, "auto")]
    write_csv(tmp_path / "schedule_batch1_cpu.csv", sweep)
    phases = [
        {"batch_size": 1, "method": m, "phase": p, "milliseconds": 1.0} | where
        for m in ("ours", "plain")
        for p in ("draft", "verify")
    ]
    write_csv(tmp_path / "decode_cpu_phases.csv", phases)
    monkeypatch.setattr(sys, "argv", ["plot", "--csv", str(tmp_path)])
    assert plot.main() == 0
    for table in readme.TABLES.values():
        assert "| ours |" in table(tmp_path) or "| double |" in table(tmp_path)
    drawn = {path.stem.removesuffix("_cpu") for path in tmp_path.glob("*.png")}
    assert drawn == set(plot.PICTURES)


def test_no_pictures_without_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plot", "--csv", str(tmp_path)])
    assert plot.main() == 0
    assert capsys.readouterr().out.count("no results to draw") == len(plot.PICTURES)


def test_the_readme_has_a_place_for_every_table():
    text = readme.README.read_text()
    for name in readme.TABLES:
        assert "new rows\n" in readme.fill(text, name, "new rows")
    with pytest.raises(ValueError, match="must hold <!-- other -->"):
        readme.fill(text, "other", "")


def test_the_readme_shows_every_picture():
    text = readme.README.read_text()
    assert all(f"benchmarks/results/{name}_cpu.png" in text for name in plot.PICTURES)
