"""Everything that only a GPU can tell, in under 9 minutes: python -m benchmarks.gpu_check

Builds the native library, runs the tests of every op and of the captured step on the GPU, beside
them compute-sanitizer over one small call of each op, and measures the captured step, the ops and a
step of a 7B-class model; last it shows which goals are met. A failed test stops none of this: a
benchmark has no row of an output which disagrees with the reference.

Needs torch, Triton, nvcc, transformers, rich and pytest.
"""

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from .common import RESULTS

ROOT = Path(__file__).parent.parent
DEADLINE = 9 * 60  # seconds
GRACE = 10  # seconds in which a stopped command may still write what it knows
PROFILED = "eight_launches"  # tests that want the GPU for themselves
CHAT = "tests/test_prefill.py::test_a_chat_on_a_gpu"  # the rest of the file needs none
SANITIZERS = ("memcheck", "racecheck")
STEP = "--config llama-3-8b --context 4096 --batch 1 8 --nodes 16 64 --device cuda".split()


class Step:
    """One command, its log file and how it went."""

    def __init__(self, name, command, seconds, **environment):
        self.name, self.command, self.seconds = name, command, seconds
        self.environment = {**os.environ, **environment}
        self.outcome, self.duration = "not run", 0.0

    def start(self, logs):
        """Start the command as the leader of a group of processes."""
        print(f"--- {self.name}: {' '.join(self.command)}", flush=True)
        self.log = logs / f"{self.name}.log"
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
                # a shell's background jobs ignore interrupts, and so would their children
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
        self.begin = time.monotonic()

    def wait(self, end):
        """Wait for the command within its seconds and the time left; true if it succeeded."""
        try:
            left = min(self.begin + self.seconds, end) - time.monotonic()
            code = self.process.wait(max(1, left))
            self.outcome = "passed" if code == 0 else f"FAILED ({code})"
        except subprocess.TimeoutExpired:
            self.outcome = "FAILED (out of time)"
            self.stop()
        self.duration = time.monotonic() - self.begin
        text = self.log.read_text(errors="replace")
        if "Device not supported" in text:  # compute-sanitizer inside some sandboxes
            self.outcome = "not possible on this machine"
        print(f"--- {self.name}: {self.outcome}")
        print("".join(text.splitlines(keepends=True)[-40:]), flush=True)
        return not self.outcome.startswith("FAILED")

    def stop(self):
        """Interrupt the command, so that pytest reports what failed until now; then end it all."""
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):  # its workers, if any is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def pytest(*files):
    """A command that runs tests on the GPU."""
    return [sys.executable, "-m", "pytest", "--device", "cuda", *files]


def in_parallel():
    """Options of pytest for several processes and a limit per test, if its plug-ins are there."""
    options, count = [], min(10, len(os.sched_getaffinity(0)) - 2)
    if importlib.util.find_spec("xdist"):
        options += ["-n", str(max(1, count))]
    if importlib.util.find_spec("pytest_timeout"):  # the thread ends a process that waits for a GPU
        options += ["--timeout", "60", "--timeout-method", "thread"]
    return options


def module(name, *options):
    """A command that runs a module of this package."""
    return [sys.executable, "-m", f"benchmarks.{name}", *options]


def op_tests():
    """The test files of the ops, by stem."""
    stems = (path.stem for path in (ROOT / "dspark_kernels/ops").glob("[!_]*.py"))
    files = (ROOT / f"tests/test_{stem}.py" for stem in stems)
    return sorted(str(file.relative_to(ROOT)) for file in files if file.exists())


def sanitizer(tool):
    """compute-sanitizer over one small call of every op: stray accesses (memcheck), or races."""
    return [
        "compute-sanitizer", "--tool", tool, "--error-exitcode", "9",
        *(["--report-api-errors", "no"] if tool == "memcheck" else []),  # torch asks what there is
        *pytest("tests/test_every_op.py", "-k", "runs and fp16"),
    ]  # fmt: skip


def steps(results, build):
    """Groups of steps in order; those of a group run side by side, where nothing is measured."""
    if build:
        arch = "".join(map(str, torch.cuda.get_device_capability()))
        archs = {"DSPARK_CUDA_ARCHS": "90a" if arch == "90" else arch}
        yield [Step("build", [sys.executable, "setup.py", "build_ext", "--inplace"], 120, **archs)]
    stems = "every_op", "fused_pass", "generation", "graph", "gpu", "many_trees"
    others = *(f"tests/test_{stem}.py" for stem in stems), CHAT
    tests = pytest(*op_tests(), *others, "-k", f"not {PROFILED}", *in_parallel())
    checks = [Step("tests", tests, 150, OMP_NUM_THREADS="2")]
    if shutil.which("compute-sanitizer"):
        checks += [
            Step(
                tool, sanitizer(tool), 120, PYTORCH_NO_CUDA_MEMORY_CACHING="1", OMP_NUM_THREADS="2"
            )
            for tool in SANITIZERS
        ]
    yield checks
    results = ["--csv", str(results)]
    measured = {
        "launches": (pytest("tests/test_gpu.py", "-k", PROFILED), 60),
        "step graph": (module("step_graph", *results), 60),
        "ops": ([sys.executable, "-m", "benchmarks", "--device", "cuda", *results], 240),
        "step": (module("bench_step", *STEP, *results), 60),
        "goals": (module("goals", *results), 20),
    }
    for name, (command, seconds) in measured.items():
        yield [Step(name, command, seconds)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=RESULTS)
    parser.add_argument("--logs", type=Path, default=ROOT / "build/gpu_check")
    parser.add_argument("--no-build", action="store_true", help="the library is there already")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU on this machine")
    options.logs.mkdir(parents=True, exist_ok=True)
    options.csv.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + DEADLINE
    done, passed = [], True
    for group in steps(options.csv.resolve(), not options.no_build):
        for step in group:
            step.start(options.logs)
        for step in group:
            passed = step.wait(end) and passed
        done += group
        if group[0].name == "build" and not passed:
            break
    print("\n| step | outcome | seconds |\n|---|---|---|")
    for step in done:
        print(f"| {step.name} | {step.outcome} | {step.duration:.0f} |")
    if not shutil.which("compute-sanitizer"):
        print("compute-sanitizer is not installed: memory accesses were not checked")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
