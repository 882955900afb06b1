"""Everything that only a GPU can tell, in under 9 minutes: python -m benchmarks.gpu_check

Builds the native library, runs the tests of every op and of the captured step on the GPU, measures
the ops, the captured step and a step of 7B-class models - only if all tests passed - and runs
compute-sanitizer over one small call of each op.

Needs torch, Triton, nvcc, transformers and pytest.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
DEADLINE = 9 * 60  # seconds
SANITIZERS = ("memcheck", "racecheck")
STEP_CONFIGS = ("deepseek-llm-7b", "llama-3-8b")


class Step:
    """One command, its log file and how it went."""

    def __init__(self, name, command, seconds, **environment):
        self.name, self.command, self.seconds = name, command, seconds
        self.environment = {**os.environ, **environment}
        self.outcome, self.duration = "not run", 0.0

    def run(self, logs, end):
        """Run within the step's seconds and the time left; True if the command succeeded."""
        print(f"--- {self.name}: {' '.join(self.command)}", flush=True)
        start, log = time.monotonic(), logs / f"{self.name}.log"
        with log.open("w") as output:
            try:
                code = subprocess.run(
                    self.command, cwd=ROOT, env=self.environment, stdout=output,
                    stderr=subprocess.STDOUT, timeout=max(1, min(self.seconds, end - start)),
                ).returncode  # fmt: skip
                self.outcome = "passed" if code == 0 else f"FAILED ({code})"
            except subprocess.TimeoutExpired:
                self.outcome = "FAILED (out of time)"
        self.duration = time.monotonic() - start
        text = log.read_text()
        print("".join(text.splitlines(keepends=True)[-40:]), flush=True)
        if "Device not supported" in text:  # compute-sanitizer inside some sandboxes
            self.outcome = "not possible on this machine"
        return not self.outcome.startswith("FAILED")


def pytest(*files):
    """A command that runs tests on the GPU."""
    return [sys.executable, "-m", "pytest", "--device", "cuda", *files]


def in_parallel():
    """Options of pytest for several processes, where pytest-xdist is there."""
    return ["-n", "8"] if importlib.util.find_spec("xdist") else []


def op_tests():
    """The test files of the ops, by stem."""
    stems = (path.stem for path in (ROOT / "dspark_kernels/ops").glob("[!_]*.py"))
    files = (ROOT / f"tests/test_{stem}.py" for stem in stems)
    return sorted(str(file.relative_to(ROOT)) for file in files if file.exists())


def sanitizer(tool):
    """compute-sanitizer over one small call of every op: stray accesses (memcheck), or races."""
    return [
        "compute-sanitizer", "--tool", tool, "--error-exitcode", "9",
        *pytest("tests/test_every_op.py", "-k", "runs"),
    ]  # fmt: skip


def steps(results, build):
    """The steps in order; a benchmark of kernels that fail their tests is worth nothing."""
    bench = [sys.executable, "-m", "benchmarks", "--device", "cuda", "--csv", str(results)]
    arch = "".join(map(str, torch.cuda.get_device_capability()))
    if build:
        archs = {"DSPARK_CUDA_ARCHS": "90a" if arch == "90" else arch}
        yield Step("build", [sys.executable, "setup.py", "build_ext", "--inplace"], 120, **archs)
    others = (f"tests/test_{stem}.py" for stem in ("every_op", "fused_pass", "graph"))
    yield Step("tests", pytest(*op_tests(), *others, *in_parallel()), 180)
    yield Step("launches", pytest("tests/test_gpu.py"), 60)  # a profiler wants the GPU for itself
    yield Step("step graph", [sys.executable, "-m", "benchmarks.step_graph"], 60)
    yield Step("benchmarks", bench, 180)
    step = [sys.executable, "-m", "benchmarks.bench_step", "--config", *STEP_CONFIGS]
    yield Step("step", [*step, "--device", "cuda", "--csv", str(results)], 120)
    if shutil.which("compute-sanitizer"):
        for tool in SANITIZERS:
            yield Step(tool, sanitizer(tool), 60, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--logs", type=Path, default=ROOT / "build/gpu_check")
    parser.add_argument("--no-build", action="store_true", help="the library is there already")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU on this machine")
    options.logs.mkdir(parents=True, exist_ok=True)
    options.csv.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + DEADLINE
    done, passed = [], True
    for step in steps(options.csv, not options.no_build):
        if passed or step.name in SANITIZERS:
            passed = step.run(options.logs, end) and passed
        done.append(step)
    print("\n| step | outcome | seconds |\n|---|---|---|")
    for step in done:
        print(f"| {step.name} | {step.outcome} | {step.duration:.0f} |")
    if not shutil.which("compute-sanitizer"):
        print("compute-sanitizer is not installed: memory accesses were not checked")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
