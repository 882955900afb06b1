"""What the CUDA kernels are made of, on 32 lanes in lockstep, against the references.

The lanes are fibers of one thread that take turns at every barrier, in random order. Two lanes that
touch the same memory between two barriers, one of them writing, are a race; lanes that wait in
different collectives are an error too (lockstep/machine.h).
"""

import subprocess
from pathlib import Path

import pytest
import test_accept_tree as accept_cases
import test_advance_step as advance_cases
import test_best_slots as slots_cases
import test_chain_reject as chain_cases
import test_context_lookup as lookup_cases
import test_glm_tree as glm_cases
import test_seen_tokens as seen_cases
import test_typical_accept as typical_cases
import torch
from trees import assert_same_tree, glm_inputs

from dspark_kernels import DraftTree
from dspark_kernels.reference.chain_reject import chain_reject as chain_reject_reference
from dspark_kernels.reference.glm_tree import glm_tree as glm_tree_reference

pytestmark = pytest.mark.backend
ROOT = Path(__file__).parent.parent
TORCH = Path(torch.__file__).parent
COMPILE = (
    "g++", "-std=c++20", "-g", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra",
    "-DTORCH_TARGET_VERSION=0x020b000000000000", "-Icsrc", "-Itests/lockstep",
    "-isystem", str(TORCH / "include"),
)  # fmt: skip
SOURCES = {  # only the first one is watched
    "tests/lockstep/ops.cpp": ("-O1", "-fsanitize=thread"),
    "tests/lockstep/machine.cpp": ("-O2",),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The ops `dspark_lockstep::*`, compiled."""
    folder = tmp_path_factory.mktemp("lockstep")
    objects = []
    for source, options in SOURCES.items():
        objects.append(str(folder / f"{Path(source).stem}.o"))
        subprocess.run([*COMPILE, *options, "-c", source, "-o", objects[-1]], cwd=ROOT, check=True)
    libraries = (f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch")
    target = folder / "lockstep.so"
    subprocess.run(["g++", "-shared", *objects, *libraries, "-o", str(target)], check=True)
    torch.ops.load_library(str(target))
    return torch.ops.dspark_lockstep


@pytest.fixture(params=[(32, 8), (32, 32), (64, 8)], ids=lambda p: f"{p[0]}lanes-teams{p[1]}")
def ops(library, request):
    """The ops, on so many lanes in teams of so many."""
    library.configure(*request.param, 0)
    return library


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (0, "race: lane .* reads"),
        (1, "race: lane .* writes"),
        (2, "that the others never reach"),
        (3, "different collectives"),
    ],
)
def test_negative_controls(library, how, message):
    library.configure(32, 8, 0)
    with pytest.raises(RuntimeError, match=f"lockstep: .*{message}"):
        library.broken(torch.zeros(32, dtype=torch.int32), how)
    library.broken(torch.zeros(32, dtype=torch.int32), 4)


GLM_CASES = glm_cases.CASES | {
    "odd": {"B": 3, "H": 3, "C": 7, "R": 13, "V": 101, "N": 65, "P": 3, "Q": 5},
    "issue": {"B": 1, "H": 5, "C": 32, "R": 64, "V": 1000, "N": 64, "dtype": torch.bfloat16},
    "half": {"B": 1, "H": 4, "C": 24, "R": 48, "V": 500, "N": 33, "P": 2, "Q": 9,
             "dtype": torch.float16},
    "wide": {"B": 1, "H": 2, "C": 64, "R": 16, "V": 300, "N": 256, "P": 16, "Q": 5},
    "pruned": {"B": 2, "H": 5, "C": 16, "R": 32, "V": 200, "N": 64, "min_score": 0.02},
}  # fmt: skip


def lockstep_tree(ops, inputs):
    return DraftTree(*ops.glm_tree(*inputs.values()))


@pytest.mark.parametrize("name", GLM_CASES)
def test_glm_tree(ops, name):
    inputs = glm_inputs(**GLM_CASES[name], seed=1)
    expected = DraftTree(*glm_tree_reference(*inputs.values()))
    assert_same_tree(lockstep_tree(ops, inputs), expected, inputs["min_score"])


@pytest.mark.parametrize("seed", range(20))
def test_glm_tree_random_shapes(ops, seed):
    generator = torch.Generator().manual_seed(seed)
    H, C, R, N, P, Q = (
        int(torch.randint(low, high, (), generator=generator))
        for low, high in ((1, 5), (1, 12), (1, 20), (1, 90), (0, 4), (1, 7))
    )
    inputs = glm_inputs(B=1, H=H, C=C, R=R, V=60, P=P, Q=Q, N=N, seed=seed)
    expected = DraftTree(*glm_tree_reference(*inputs.values()))
    assert_same_tree(lockstep_tree(ops, inputs), expected)


@pytest.mark.parametrize("spoil", ["nan_key", "bad_ids", "bad_path", "bad_root", "nan_score"])
def test_glm_tree_hostile_values(ops, spoil):
    inputs = glm_inputs(P=2, Q=3, N=30, seed=3)
    glm_cases.spoil_inputs(inputs, spoil)
    expected = DraftTree(*glm_tree_reference(*inputs.values()))
    assert_same_tree(lockstep_tree(ops, inputs), expected)


@pytest.mark.parametrize("nodes", [1, 31, 64, 65, 200])
def test_glm_tree_ties_are_exact(ops, nodes):
    inputs = glm_cases.tied_inputs(nodes)
    glm_cases.assert_exact(lockstep_tree(ops, inputs), inputs)


@pytest.mark.parametrize("seed", range(12))
def test_glm_tree_paths_below_the_heads_are_exact(ops, seed):
    inputs = glm_cases.deep_inputs(seed)
    glm_cases.assert_exact(lockstep_tree(ops, inputs), inputs)


@pytest.mark.parametrize("nodes", [1, 17, 64, 65, 256])
@pytest.mark.parametrize("block_size", [None, 8])
@pytest.mark.parametrize("shapes", [((2, 4), (3,), ()), ((3, 8), (3, 8)), ((5,),)])
def test_accept_tree(ops, nodes, block_size, shapes):
    def accept(tree, draws, caches, seqlens, block_table, max_depth):
        return ops.accept_tree(
            tree.tokens, tree.parents, tree.num_nodes, draws, caches, seqlens, block_table,
            max_depth,
        )  # fmt: skip

    for dtype in (torch.float32, torch.int8):
        for slack in (0, -3):
            accept_cases.check(
                accept, nodes, batch=2, block_size=block_size, shapes=shapes, dtype=dtype,
                slack=slack,
            )  # fmt: skip


@pytest.mark.parametrize("nodes", [1, 33, 65])
@pytest.mark.parametrize("name", [*typical_cases.OPTIONS])
def test_typical_accept(ops, nodes, name):
    def accept(tree, draws, logits, caches, seqlens, *, temperature, epsilon, delta, block_table,
               max_depth):  # fmt: skip
        return ops.typical_accept(
            tree.tokens, tree.parents, tree.num_nodes, draws, logits, temperature, epsilon, delta,
            caches, seqlens, block_table, max_depth,
        )  # fmt: skip

    typical_cases.check(accept, nodes, **typical_cases.OPTIONS[name])


@pytest.mark.parametrize("name", chain_cases.CASES)
def test_chain_reject(ops, name):
    chain_cases.check(ops.chain_reject, chain_cases.inputs(
        **(chain_cases.CASES[name] | {"B": 4})
    ))  # fmt: skip


@pytest.mark.parametrize("how", ["nan", "minus_inf", "equal", "impossible_draft"])
def test_chain_reject_hostile_values(ops, how):
    arguments = chain_cases.inputs(B=8)
    chain_cases.spoil(arguments, how)
    for one, other in zip(
        ops.chain_reject(*arguments), chain_reject_reference(*arguments), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("vocab", [1, 2, 3, 50])
def test_context_lookup(ops, vocab):
    generator = torch.Generator().manual_seed(vocab)
    rows = [
        torch.randint(0, vocab, (length,), generator=generator).tolist()
        for length in (1, 2, 31, 32, 33, 300, 700)
    ]
    for options in (
        {"max_ngram": 4, "min_ngram": 2, "num_paths": 5, "path_length": 10},
        {"max_ngram": 16, "min_ngram": 1, "num_paths": 16, "path_length": 64},
    ):
        lookup_cases.check(ops.context_lookup, rows, **options)


@pytest.mark.parametrize("name", advance_cases.CASES)
def test_advance_step(ops, name):
    advance_cases.check(ops.advance_step, advance_cases.inputs(**advance_cases.CASES[name]))


@pytest.mark.parametrize("name", slots_cases.CASES)
def test_best_slots(ops, name):
    slots_cases.check(ops.best_slots, slots_cases.inputs(**slots_cases.CASES[name]))


@pytest.mark.parametrize("name", seen_cases.CASES)
def test_seen_tokens(ops, name):
    seen_cases.check(ops.seen_tokens, seen_cases.inputs(**seen_cases.CASES[name]))
