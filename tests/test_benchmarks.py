"""The benchmarks of ops and of a step, and their pictures, on small cases."""

import csv
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from benchmarks import __main__ as benchmarks
from benchmarks import bench_step, goals, gpu_check, plot, readme
from benchmarks.common import Case, agrees, measure
from dspark_kernels.results import origin, write_csv

PEAKS = (1e9, 1e9)


def case(ours, **options):
    return Case(
        shape="64", make=lambda seed: (torch.full((64,), seed + 1.0),), ours=ours,
        baselines={"slow": lambda x: [x.clone() for _ in range(200)][-1] * 2},
        expected=lambda x: 2 * x, bytes=256, flops=64, runs=5, **options,
    )  # fmt: skip


def test_rows_of_a_case():
    (ours, slow), left_out = measure("double", case(lambda x: x + x), "cpu", torch.float32, PEAKS)
    assert left_out == {}
    assert ours["implementation"] == "ours" and ours["ratio"] == 1
    assert slow["ratio"] == pytest.approx(slow["microseconds"] / ours["microseconds"])
    assert slow["ratio"] > 1
    assert ours["quantile_20"] <= ours["microseconds"] <= ours["quantile_80"]
    assert ours["launch_microseconds"] is None  # there is no launch on a CPU
    assert ours["bandwidth_share"] == pytest.approx(256 / (ours["microseconds"] * 1e-6) / 1e9)
    assert set(origin("cpu")) <= set(ours)


def test_a_wrong_output_is_not_measured():
    wrong = case(lambda x: x + x + 1)
    rows, left_out = measure("double", wrong, "cpu", torch.float32, PEAKS)
    assert rows == [] and left_out == {"ours": "the output disagrees with the reference"}


def test_a_baseline_that_fails_leaves_the_others():
    double = case(lambda x: x + x)
    double.baselines["out of shape"] = lambda x: x.view(-1, 3)
    rows, left_out = measure("double", double, "cpu", torch.float32, PEAKS)
    assert [row["implementation"] for row in rows] == ["ours", "slow"]
    assert left_out["out of shape"].startswith("RuntimeError: shape '[-1, 3]' is invalid")


def test_a_case_that_fails_leaves_the_others(monkeypatch, tmp_path, capsys):
    def cases(device, dtype):
        yield case(lambda x: x.view(-1, 3))
        yield case(lambda x: x + x)

    monkeypatch.setattr("benchmarks.bench_linear_topk.cases", cases)
    monkeypatch.setattr(benchmarks.timing, "peak_flops", lambda *_: 1e9)
    command = ["benchmarks", "linear_topk", "--dtype", "float32", "--csv", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert benchmarks.main() == 1
    assert "not measured: linear_topk 64, ours: RuntimeError" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "linear_topk_cpu.csv").open()))
    assert [row["implementation"] for row in rows] == ["ours", "slow"]


def test_a_lost_gpu_leaves_the_other_ops(monkeypatch, tmp_path, capfd):
    def lost(*_):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr("benchmarks.bench_linear_topk.cases", lambda *_: [case(lost)])
    monkeypatch.setattr(benchmarks, "usable", lambda device: False)
    monkeypatch.setattr(benchmarks.timing, "peak_flops", lambda *_: 1e9)
    command = ["benchmarks", "linear_topk", "advance_step", "--csv", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert benchmarks.main() == 1
    assert (
        "linear_topk 64 and the other cases of the op: the GPU was lost" in capfd.readouterr().out
    )
    assert [path.name for path in tmp_path.iterdir()] == ["advance_step_cpu.csv"]


@pytest.mark.parametrize("op", benchmarks.OPS)
def test_every_module_has_cases(op):
    module = __import__(f"benchmarks.bench_{op}", fromlist=["cases"])
    first = next(iter(module.cases("cpu", torch.float32)))
    assert first.baselines
    ours, expected = (first.compared(f(*first.make(0))) for f in (first.ours, first.expected))
    assert agrees(ours, expected, torch.float32)


def rows_of(op, shape, **values):
    """The row of ours, and one per baseline: {baseline: ratio}."""
    baselines = {"ours": 1.0} | values.pop("over", {})
    for name, ratio in baselines.items():
        yield {"op": op, "shape": shape, "implementation": name, "ratio": ratio} | values


def test_goals_read_the_rows_they_speak_of():
    linear = rows_of(
        "linear_topk", "V 151936 D 4096 M 16", bandwidth_share=0.9, microseconds=300.0,
        over={"F.linear, logsumexp, topk": 1.4, "the same compiled": 1.2},
    )  # fmt: skip
    tree = rows_of("glm_tree", "B 4 H 5 C 32 R 64 N 64 paths 4", microseconds=16.0)
    rows = [*linear, *tree, *rows_of("linear_topk", "V 49152 D 576 M 16", bandwidth_share=0.1)]
    verdicts = {
        (goal.op, over, value): goal.met(value)
        for goal in goals.GOALS
        for _, over, value in goal.readings(rows)
    }
    assert verdicts == {
        ("linear_topk", "", 0.9): True,
        ("linear_topk", "F.linear, logsumexp, topk", 1.4): True,
        ("linear_topk", "the same compiled", 1.2): False,
        ("glm_tree", "", 16.0): False,
    }
    assert goals.table_of(rows).row_count == len(verdicts) + len(goals.GOALS) - 3


class WithoutGPU(TorchFunctionMode):
    """What is meant for a GPU goes to the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(str, lambda x: "cpu" if x == "cuda" else x, (args, kwargs))
        return function(*args, **(kwargs or {}))


def test_every_goal_speaks_of_a_case_on_a_gpu():
    rows = []
    for op in {goal.op for goal in goals.GOALS}:
        module = __import__(f"benchmarks.bench_{op}", fromlist=["cases"])
        with WithoutGPU():
            cases = list(module.cases("cuda", torch.bfloat16))
        for case in cases:
            over = dict.fromkeys(case.baselines, 1.0)
            rows += rows_of(op, case.shape, microseconds=1.0, bandwidth_share=1.0, over=over)
    for goal in goals.GOALS:
        assert goal.readings(rows), goal


def running(pid):
    """Whether there is such a process; one that nobody has waited for has ended too."""
    status = Path("/proc", pid, "status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_a_step_of_the_gpu_check_that_takes_too_long(tmp_path):
    """It says what it knows when it is interrupted, and leaves no process behind."""
    code = (
        "import subprocess, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "print(child.pid, flush=True)\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    step = gpu_check.Step("slow", [sys.executable, "-c", code], 5)
    step.start(tmp_path)
    assert not step.wait(time.monotonic() + 60)
    pid, said = step.log.read_text().split()
    assert said == "interrupted" and step.outcome == "FAILED (out of time)"
    end = time.monotonic() + 20
    while running(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(("code", "passed"), [("0", True), ("3", False)])
def test_a_step_of_the_gpu_check_ends_as_its_command(code, passed, tmp_path):
    step = gpu_check.Step("short", [sys.executable, "-c", f"raise SystemExit({code})"], 20)
    step.start(tmp_path)
    assert step.wait(time.monotonic() + 60) == passed
    assert step.outcome == ("passed" if passed else "FAILED (3)")


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
    measured, _ = measure("double", case(lambda x: x + x), "cpu", torch.float32, PEAKS)
    write_csv(tmp_path / "double_cpu.csv", measured)
    write_csv(tmp_path / "double_cuda.csv", measured)
    write_csv(tmp_path / "h100/double_cuda.csv", measured)
    model = {"config": "tiny", "context": 512, "requests": 1}
    steps = [model | {"nodes": n, "graph_ms": 1.0 + n} | where for n in (1, 16)]
    write_csv(tmp_path / "step_graph_cuda.csv", steps)
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
    cells = "| ours |", "| double |", "| 2.00 | 17.00 | 8.50 |"  # of methods, of ops, of steps
    for table in readme.TABLES.values():
        assert any(cell in table(tmp_path) for cell in cells)
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
