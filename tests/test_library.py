"""Which backend serves an op, what happens when it cannot, and the native library itself."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dspark_kernels import _library

ROOT = Path(__file__).parent.parent
DENSE_OPS = (
    "draft_blocks", "fused_linear", "linear_topk", "merge_topk", "rotary_append", "sample_logits",
    "tree_attention",
)  # fmt: skip
OTHER_OPS = "chain_reject", "context_lookup", "glm_tree", "typical_accept"  # with vectors, too
KERNELS = Path("csrc/cpu/kernels")  # compiled once per instruction set
LOWER_INSTRUCTION_SETS = {
    "portable": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512bf16": {"avx512_bf16"},
}
X86 = platform.machine() in ("x86_64", "AMD64")
INSTRUCTION_SETS = (*LOWER_INSTRUCTION_SETS, "amx") if X86 else ("portable",)
OBJECTS = ROOT / "build/native" / KERNELS
native = pytest.mark.skipif(_library.NATIVE_PATH is None, reason="the library was not built")


def python(*arguments, cwd=ROOT, **environment):
    """Run Python with `environment` and no other setting of ours."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DSPARK_") and name != "TRITON_INTERPRET"
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True,
        env=kept | environment, check=False,
    )  # fmt: skip


def backends(**environment):
    """What serves each op on the CPU, in a fresh process."""
    code = (
        "from dspark_kernels import _library as l\n"
        "for op in l.SCHEMAS: print(op, l.backend_of(op, 'cpu')[0])"
    )
    done = python("-c", code, **environment)
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines())


def cpu_features():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


# --- the choice of a backend --------------------------------------------------------------------


def test_the_reference_serves_everything_when_asked():
    assert set(backends(DSPARK_BACKEND="reference").values()) == {"reference"}


@native
@pytest.mark.parametrize("backend", ["auto", "native"])
def test_native_kernels_serve_every_op_on_the_cpu(backend):
    assert set(backends(DSPARK_BACKEND=backend).values()) == {"native"}


def test_triton_serves_the_dense_ops_in_the_interpreter():
    pytest.importorskip("triton")
    served = backends(DSPARK_BACKEND="triton", TRITON_INTERPRET="1")
    assert {op for op, backend in served.items() if backend == "triton"} == set(DENSE_OPS)


def test_a_backend_that_was_asked_for_does_not_fall_back():
    pytest.importorskip("triton")
    code = "import torch, dspark_kernels as d; d.sample_logits(torch.zeros(1, 4))"
    done = python("-c", code, DSPARK_BACKEND="triton")
    assert "NotImplementedError: sample_logits: DSPARK_BACKEND=triton" in done.stderr


def test_an_unknown_backend_is_an_error():
    done = python("-c", "import dspark_kernels", DSPARK_BACKEND="cuda")
    assert (
        "DSPARK_BACKEND must be one of auto, reference, native, triton, got 'cuda'" in done.stderr
    )


def test_without_the_native_library(tmp_path):
    ignored = shutil.ignore_patterns("_native*", "__pycache__", "drafts")
    shutil.copytree(ROOT / "dspark_kernels", tmp_path / "dspark_kernels", ignore=ignored)
    code = (
        "from dspark_kernels import _library as l\n"
        "print(*l.backend_of('linear_topk', 'cpu'), sep=': ')"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout.startswith("reference: the native library was not built"), done.stderr
    done = python("-c", code, cwd=tmp_path, DSPARK_BACKEND="native")
    assert (
        "DSPARK_BACKEND=native was asked for, but the native library was not built" in done.stderr
    )


# --- the native library -------------------------------------------------------------------------


@native
@pytest.mark.parametrize("isa", LOWER_INSTRUCTION_SETS)  # the best one runs everywhere else
def test_every_instruction_set_passes_the_tests_of_the_ops(isa):
    if not cpu_features() >= LOWER_INSTRUCTION_SETS[isa]:
        pytest.skip(f"this CPU has no {isa}")
    files = [f"tests/test_{op}.py" for op in DENSE_OPS + OTHER_OPS]
    only = "shapes or variants or fp8 or nan or views or window or test_backend"
    done = python(
        "-m", "pytest", "-q", "-m", "backend", "-k", only, *files,
        DSPARK_CPU=isa, DSPARK_BACKEND="native",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@native
@pytest.mark.skipif(not OBJECTS.is_dir(), reason="it was not built here: no object files")
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_symbols_of_an_instruction_set_have_its_name(isa):
    """Else the linker would give one of them to all, and a CPU code that it cannot run."""
    sources = list((ROOT / KERNELS).glob("*.cpp"))
    assert sources
    for source in sources:
        target = OBJECTS / f"{source.stem}.{isa}.o"
        command = ["nm", "--defined-only", "--extern-only", "--format=posix", str(target)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        symbols = [line.split()[0] for line in found.splitlines()]
        assert symbols, f"{target} has no kernel"
        strangers = [symbol for symbol in symbols if f"{len(isa)}{isa}" not in symbol]
        assert not strangers, f"{target} has {strangers}"


@native
@pytest.mark.parametrize("isa", ["sse2", "", "AVX2"])
def test_an_unknown_instruction_set_is_an_error(isa):
    code = "import torch, dspark_kernels as d; d.sample_logits(torch.zeros(1, 4))"
    done = python("-c", code, DSPARK_CPU=isa, DSPARK_BACKEND="native")
    names = "portable, avx2, avx512, avx512bf16 or amx"
    assert f"RuntimeError: dspark: DSPARK_CPU must be {names}, and not above" in done.stderr
    assert f"got {isa}\n" in done.stderr


@native
@pytest.mark.parametrize(("isa", "said"), [("portable", "using portable"), ("sse2", "CPU lacks")])
def test_the_reason_says_which_instruction_set_is_used(isa, said):
    code = "from dspark_kernels import _library as l; print(l.backend_of('glm_tree', 'cpu')[1])"
    assert python("-c", code, DSPARK_CPU=isa).stdout.endswith(f"{said}\n")


@native
def test_results_do_not_depend_on_the_number_of_threads():
    code = """
import sys, torch
sys.path.insert(0, "tests")
import test_draft_blocks, test_linear_topk, test_sample_logits, test_tree_attention
import dspark_kernels as d
torch.set_num_threads(int(sys.argv[1]))
results = [
    *d.linear_topk(**test_linear_topk.inputs(20, 3000, 64, 9, torch.bfloat16, True)),
    d.draft_blocks(**test_draft_blocks.inputs(4, 5, 96)),
    d.sample_logits(**test_sample_logits.inputs(12, 999, "top_k top_p")),
    d.tree_attention(**test_tree_attention.inputs(2, 9, 6, 2, 32, 2000)),
]
print([hash(tuple(result.flatten().tolist())) for result in results])
"""
    one, many = (python("-c", code, str(n), PYTHONHASHSEED="0").stdout for n in (1, 4))
    assert one == many and len(one) > 100


def call(op, *arguments):
    return getattr(torch.ops.dspark, op).default(*arguments)


X, W, KEYS = torch.zeros(2, 8), torch.zeros(20, 8), torch.zeros(2, 3, 4)
Q, CACHE, LENGTHS = torch.zeros(1, 2, 4, 8), torch.zeros(1, 9, 2, 8), torch.zeros(1).int()
WORDS, NONE = torch.zeros(1, 2, 1).long(), (None,) * 9
REST = (*NONE[:5], 0, None, None)  # of the arguments of linear_topk


@native
@pytest.mark.backend
@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("linear_topk", (X.double(), W, 1, *REST), "x must have dtype Float, BFloat16"),
        ("linear_topk", (X, W.half(), 1, *REST), "weight must have dtype Float, got Half"),
        ("linear_topk", (X, W[:, :7], 1, *REST), r"weight must have shape \[V, D\], got"),
        ("linear_topk", (X, W, 21, *REST), "k must be from 1 to V, got 21"),
        ("linear_topk", (X, W, 1, X[0], *REST[1:]), r"bias must have shape \[V\], got \[8\]"),
        ("linear_topk", (X, W, 1, None, X[:, 0], *REST[2:]), "seed and position must come"),
        (
            "linear_topk",
            (X, W, 1, None, X[0, :3], *REST[2:]),
            r"temperature must have shape \[B\] with B dividing M, got \[3\]",
        ),
        ("draft_blocks", (X, W, X, None, None), r"weight must have shape \[H, D, F\]"),
        ("merge_topk", (KEYS, KEYS, KEYS[0], 1), "ids must have dtype Long, got Float"),
        ("merge_topk", (KEYS, KEYS.long(), KEYS[:, :, 0], 9), "k must be from 1 to S·K, got 9"),
        ("sample_logits", (X[:, :0], *NONE), "logits must have 1 to 2\\^31 columns, got 0"),
        (
            "sample_logits",
            (X, *NONE[:5], X[0, :0], *NONE[:3]),
            r"top_p must have shape \[B\] with B dividing M, got \[0\]",
        ),
        ("linear_topk", (X, W, 1, *REST[:-2], None, X[:, 0]), "seen must come with repetition_pen"),
        (
            "sample_logits",
            (X, *NONE[:7], WORDS[0, :0], X[0, :1]),
            r"seen must have shape \[R, words\] with R dividing M, got \[0, 1\]",
        ),
        (
            "tree_attention",
            (Q, CACHE[..., :7], CACHE, LENGTHS, WORDS, 1.0, None, 0, 0.0, *NONE[:3]),
            r"k_cache must have shape \[B, S, Hkv, E\], got \[1, 9, 2, 7\]",
        ),
        (
            "tree_attention",
            (Q[:, :, :3], CACHE, CACHE, LENGTHS, WORDS, 1.0, None, 0, 0.0, *NONE[:3]),
            "k_cache must have Hkv dividing Hq, got 2",
        ),
    ],
)
def test_launchers_check_what_they_are_given(op, arguments, message):
    if _library.backend_of(op, "cpu")[0] != "native":
        pytest.skip("the launchers are the native library's")
    with pytest.raises(RuntimeError, match=f"{op}: {message}"):
        call(op, *arguments)
