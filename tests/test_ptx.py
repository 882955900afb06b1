"""The emulator of PTX: it computes what a GPU does, and stops where a GPU would go wrong."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_every_op import every_op, inputs  # noqa: F401
from test_gpu import step, step_inputs
from test_linear_topk import check
from test_linear_topk import inputs as rows_and_weight
from tiny import tiny_draft, tiny_model

from dspark_kernels import SpeculativeDecoder, _library

pytestmark = pytest.mark.ptx
HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
REGISTERS = (
    ".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<99>; .reg .f32 %f<9>; .reg .b64 %rd<9>;"
    ".shared .align 16 .b8 memory[1024];"
)
names = (f"kernel_{i}" for i in itertools.count())


def run(code, *arguments, threads=32, blocks=1):
    """Run a function whose parameters, addresses or integers of 64 bits, are in %rd1, %rd2."""
    from ptx import device

    name = next(names)
    parameters = ", ".join(f".param .u64 {name}_{i}" for i in range(len(arguments)))
    loads = "".join(f"ld.param.u64 %rd{i + 1}, [{name}_{i}];" for i in range(len(arguments)))
    device.load(f"{HEADER}.entry {name}({parameters}) {{ {REGISTERS} {loads} {code} ret; }}")
    device.launch(name, (blocks, 1, 1), threads, 0, arguments)


def converted(code, values, dtype):
    """What code makes of %r2, each of the values, in %r3."""
    out = torch.empty(len(values), dtype=dtype)
    sizes = {1: "u8", 2: "u16", 4: "u32"}
    load, store = sizes[values.element_size()], sizes[out.element_size()]
    for first in range(0, len(values), 1024):
        run(
            f"mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, {values.element_size()};"
            f"add.s64 %rd3, %rd3, %rd1; ld.global.{load} %r2, [%rd3]; {code}"
            f"mul.wide.u32 %rd4, %r1, {out.element_size()}; add.s64 %rd4, %rd4, %rd2;"
            f"st.global.{store} [%rd4], %r3;",
            values[first : first + 1024], out[first:],
            threads=min(1024, len(values) - first),
        )  # fmt: skip
    return out


def same(a, b):
    return torch.equal(a.nan_to_num(nan=777.0), b.nan_to_num(nan=777.0)) and torch.equal(
        a.isnan(), b.isnan()
    )


def test_every_kernel_runs_as_ptx(inputs):  # noqa: F811
    from ptx import device

    kernels = ["draft_blocks", "fused_linear", "linear_topk", "merge_topk", "rotary_append"]
    kernels += ["listed", "pass", "penalize", "tree_attention"]
    if _library.NATIVE_CUDA_ARCHS:
        kernels += ["advance_step", "best_slots", "chain_draw", "chain_finish", "chain_stats"]
        kernels += ["compact", "context_lookup", "glm_tree", "seen_tokens"]
        kernels += ["typical_finish", "typical_stats"]
    before = {kernel: device.launches(f"{kernel}_kernel") for kernel in kernels}
    every_op(inputs)
    assert [k for k in kernels if device.launches(f"{k}_kernel") == before[k]] == []


@pytest.mark.parametrize("k", [3, 9])
def test_programs_of_linear_topk_share_a_bar(k, monkeypatch):
    """With more programs than there are SMs elsewhere in these tests, all K places are filled."""
    from dspark_kernels.triton import config

    device = config._cuda_device(0)
    monkeypatch.setattr(config, "_cuda_device", lambda index: device._replace(sms=12))
    check(rows_and_weight(M=33, V=3500, D=16, k=k, dtype=torch.float16))


def test_a_step_is_at_most_eight_launches():
    from ptx import device

    before = device.launches("")
    step(step_inputs("cpu"))
    ours = 5 if _library.NATIVE_CUDA_ARCHS else 2  # at least
    assert ours <= device.launches("") - before <= 8


def test_tokens_are_those_of_transformers():
    """Whole steps: prefill, draft, gate, verification, acceptance."""
    model, prompts = tiny_model(), [[11, 12, 11, 12, 11], [7]]
    decoder = SpeculativeDecoder(model, None, tiny_draft())
    tokens = decoder.generate(prompts, max_new_tokens=8, num_nodes=9).tokens
    for prompt, ours in zip(prompts, tokens, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)
        assert ours == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("code", "dtype"),
    [("f16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_all_numbers_of_16_bits(code, dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    assert same(converted(f"cvt.f32.{code} %r3, %r2;", every, torch.float32), every.float())


def test_all_numbers_of_8_bits():
    every = torch.arange(-128, 128).to(torch.int8).view(torch.float8_e4m3fn)
    code = "cvt.rn.f16x2.e4m3x2 %r3, %r2;"
    assert same(converted(code, every, torch.float16).float(), every.float())


@pytest.mark.parametrize(
    ("code", "dtype"),
    [("f16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_rounding(code, dtype):
    g = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (20_000,), generator=g)
    ties = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    ties = (ties[:-1] + ties[1:]) / 2  # half way between neighbours
    values = torch.cat((bits.to(torch.int32).view(torch.float32), ties, torch.zeros(1)))
    result = converted(f"cvt.rn.{code}.f32 %h1, %r2; cvt.u32.u16 %r3, %h1;", values, dtype)
    assert same(result.float(), values.to(dtype).float())


@pytest.mark.parametrize("by", [0, 5, 31, 37])
@pytest.mark.parametrize("side", ["l", "r"])
def test_funnel_shift(side, by):
    """Of 64 bits, of which the words here are the upper half: 37 is 5 once more."""
    low, high = 0xF1234567, torch.tensor([0, 1, 0x80000001 - 2**32, 0x7654321F], dtype=torch.int32)
    code = f"mov.u32 %r4, {low}; shf.{side}.wrap.b32 %r3, %r4, %r2, {by};"
    shifted = converted(code, high, torch.int32).tolist()
    for word, result in zip(high.tolist(), shifted, strict=True):
        whole = word % 2**32 << 32 | low
        expected = whole << by % 32 >> 32 if side == "l" else whole >> by % 32
        assert result % 2**32 == expected % 2**32


def test_matrix_product():
    """Of ldmatrix, one of them transposed, and mma: rows of 16 numbers times columns."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 16, generator=g).bfloat16() for _ in range(2))
    both, out = torch.cat((a, b)), torch.empty(16, 8)
    run(
        "mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 32; add.s64 %rd3, %rd3, %rd1;"
        "mov.u32 %r2, memory; mad.lo.u32 %r3, %r1, 32, %r2;"  # a row of 32 bytes per thread
        "ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd3];"
        "ld.global.v4.u32 {%r8, %r9, %r10, %r11}, [%rd3 + 16];"
        "st.shared.v4.u32 [%r3], {%r4, %r5, %r6, %r7};"
        "st.shared.v4.u32 [%r3 + 16], {%r8, %r9, %r10, %r11}; bar.sync 0;"
        # matrices: rows 0-7 and 8-15 of the left half of a, then of the right half
        "and.b32 %r12, %r1, 15; shr.u32 %r13, %r1, 4; mad.lo.u32 %r14, %r12, 32, %r2;"
        "mad.lo.u32 %r14, %r13, 16, %r14;"
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r14];"
        "mad.lo.u32 %r15, %r12, 32, %r2;"
        "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r24, %r25}, [%r15 + 512];"
        "mov.b32 %r30, 0;"
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r40, %r41, %r42, %r43},"
        "{%r20, %r21, %r22, %r23}, {%r24, %r25}, {%r30, %r30, %r30, %r30};"
        "shr.u32 %r16, %r1, 2; and.b32 %r17, %r1, 3; shl.b32 %r17, %r17, 3;"
        "mad.lo.u32 %r18, %r16, 32, %r17; cvt.u64.u32 %rd4, %r18; add.s64 %rd4, %rd4, %rd2;"
        "st.global.v2.b32 [%rd4], {%r40, %r41}; st.global.v2.b32 [%rd4 + 256], {%r42, %r43};",
        both, out,
    )  # fmt: skip
    torch.testing.assert_close(out, a.float() @ b.float()[:, :8])


def clocked(code, file):
    """Cycles of a block by the clock, and where its longest chains were."""
    from ptx import device

    start = "mov.u32 %r1, %tid.x; mov.u32 %r2, memory; st.shared.u32 [%r2], %r2; bar.sync 0;"
    device.clock(str(file))
    try:
        run(start + code)
    finally:
        device.clock("")
    report = file.read_text()
    file.unlink()
    return int(re.search(r"(\d+) cycles", report)[1]), report.split("by place\n")[1]


def test_a_clock_tells_what_a_block_waits_for(tmp_path):
    """Chains of loads, banks, and slow units; the rest of the code is the same."""
    file = tmp_path / "report"
    load = "ld.shared.u32 %r{}, [%r2];\n"
    in_turn, place = clocked(load.format(2) * 24, file)
    side_by_side, _ = clocked("".join(load.format(i) for i in range(10, 34)), file)
    assert in_turn > side_by_side + 20 * 24
    assert "line" in place
    banks = [
        clocked(f"mad.lo.u32 %r3, %r1, {stride}, %r2;" + "st.shared.u32 [%r3], %r1;" * 20, file)[0]
        for stride in (4, 8, 32)
    ]
    assert banks[0] < banks[1] < banks[2]
    slow = "ex2.approx.f32 %f1, %f1;"
    assert clocked(slow * 8, file)[0] > clocked(slow * 4, file)[0] + 80


OFFSET = "mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; mov.u32 %r3, memory; add.u32 %r3, %r3, %r2;"
BLOCK = "mov.u32 %r5, %ctaid.x; mul.wide.u32 %rd4, %r5, 4; add.s64 %rd4, %rd1, %rd4;"


@pytest.mark.parametrize(
    ("code", "threads", "message"),
    [
        ("st.shared.u32 [%r3 + 1024], %r1;", 32, "shared memory ends at 1024"),
        ("ld.shared.u32 %r4, [%r3 + 2];", 32, "misaligned address in shared"),
        ("ld.global.u32 %r4, [%rd1 + 2];", 32, "misaligned address in global"),
        ("mov.u64 %rd2, 0; ld.global.u32 %r4, [%rd2];", 32, "null pointer"),
        ("st.shared.u32 [%r3], %r1; ld.shared.u32 %r4, [memory];", 64, "race"),
        ("st.shared.u32 [memory], %r1;", 32, "race"),
        ("ld.shared.u32 %r4, [memory]; st.shared.u32 [%r3], %r1;", 64, "race"),
        ("atom.shared.add.u32 %r4, [memory], 1; ld.shared.u32 %r4, [memory];", 64, "race"),
        ("st.global.u32 [%rd1], %r5;", 1, "race: .* writes what .* of another block wrote"),
        ("st.global.u32 [%rd4], 7; ld.global.u32 %r4, [%rd1];", 1, "race: .* of another block"),
        ("ld.global.u32 %r4, [%rd1]; bar.sync 0; st.global.u32 [%rd4], 7;", 1,
         "race: .* of another block"),
        ("atom.global.add.u32 %r4, [%rd1], 1; ld.global.u32 %r4, [%rd1];", 1,
         "race: .* of another block"),
        ("st.global.u32 [%rd4], %r1;", 32, "race: .* what thread .* wrote, without"),
        ("setp.lt.u32 %p1, %r1, 9; @%p1 bar.sync 0;", 32, "some of a warp's lanes only"),
        ("setp.lt.u32 %p1, %r1, 9; @%p1 bra L; bar.sync 0; bra.uni E; L: bar.sync 0; E:", 32,
         "wait for each other"),
        ("setp.lt.u32 %p1, %r1, 9; @%p1 shfl.sync.bfly.b32 %r4, %r1, 1, 31, -1;", 32,
         "lanes that pass it by"),
        ("setp.lt.u32 %p1, %r1, 9; @%p1 ret; shfl.sync.bfly.b32 %r4, %r1, 1, 31, -1;", 32,
         "lanes that have ended"),
        ("shfl.sync.idx.b32 %r4, %r1, 40, 31, 1;", 32, "a lane that its own mask"),
        ("frobnicate.u32 %r1, %r2;", 32, "line 4: unknown instruction frobnicate.u32"),
    ],
)  # fmt: skip
def test_mistakes(code, threads, message):
    with pytest.raises(RuntimeError, match=message):
        run(OFFSET + BLOCK + code, torch.zeros(64), threads=threads, blocks=3)


@pytest.mark.parametrize(
    "code",
    [
        "st.shared.u32 [memory], 7;",  # all the same
        "st.shared.u32 [%r3], %r1; bar.sync 0; ld.shared.u32 %r4, [memory];",
        "atom.shared.add.u32 %r4, [memory], 1;",
        "st.shared.u32 [%r3], %r1; bar.warp.sync -1; xor.b32 %r3, %r3, 4; ld.shared.u32 %r4,[%r3];",
        "setp.lt.u32 %p1, %r1, 9; @%p1 bra L; add.u32 %r4, %r4, 1; L: bar.sync 0;",
        "st.global.u32 [%rd1], 7;",
        "ld.global.u32 %r4, [%rd1];",
        "st.global.u32 [%rd4], 7; bar.sync 0; ld.global.u32 %r4, [%rd4];",
        "atom.global.add.u32 %r4, [%rd1], 1;",
    ],
)
def test_no_mistakes(code):
    run(OFFSET + BLOCK + code, torch.zeros(64), threads=64, blocks=3)


@pytest.mark.parametrize("waits", [False, True])
def test_copies_arrive_when_they_are_waited_for(waits):
    values, out = torch.arange(32, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    wait = "cp.async.wait_group 0;" if waits else ""
    run(
        OFFSET + "cvt.u64.u32 %rd3, %r2; add.s64 %rd1, %rd1, %rd3; add.s64 %rd2, %rd2, %rd3;"
        f"cp.async.ca.shared.global [%r3], [%rd1], 4; cp.async.commit_group; {wait}"
        "ld.shared.u32 %r4, [%r3]; st.global.u32 [%rd2], %r4;",
        values, out,
    )  # fmt: skip
    assert torch.equal(values, out) == waits


@pytest.mark.parametrize("beyond", [0, 4])
def test_a_tensor_ends_where_it_ends(beyond):
    """AddressSanitizer ends the process."""
    code = (
        "import torch; from test_ptx import run\n"
        f"run('ld.global.u32 %r1, [%rd1 + {1020 + beyond}];', torch.zeros(256))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == (beyond == 0), done.stderr
    assert ("AddressSanitizer: heap-buffer-overflow" in done.stderr) == (beyond > 0)
