import math

import pytest
import torch
from trees import assert_same_tree, assert_valid, glm_inputs, token_path

import dspark_kernels
from dspark_kernels import DraftTree
from dspark_kernels.reference.glm_tree import glm_tree as reference


def public(inputs):
    return dspark_kernels.glm_tree(**inputs)


def to(inputs, device):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def oracle(inputs, b):
    """The N best nodes of request b by brute force in float64: {token path: score}."""
    f = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
         for k, v in inputs.items()}  # fmt: skip
    heads, vocab = f["ids"].shape[1], f["table_in"].shape[0]
    tau = 1.0 if f["temperature"] is None else float(f["temperature"][b]) or 1.0
    zero = torch.zeros(f["table_in"].shape[1], dtype=torch.float64)
    levels = [{(): (1.0, zero, int(f["root"][b]))}]  # path -> score, state above, token
    for d in range(max(heads, 0 if f["paths"] is None else f["paths"].shape[2])):
        level = {}
        for path, (score, above, token) in levels[-1].items():
            state = zero
            if d < heads:
                w = f["table_in"][token] if 0 <= token < vocab else zero
                a, g = torch.sigmoid(f["gate"][b, d] + f["mix"] @ w).chunk(2)
                state = a * above + g * w
                known = [c for c, v in enumerate(f["ids"][b, d].tolist()) if 0 <= v < vocab]
                keys = {c: float(f["keys"][b, d, c]) for c in known}
                z = {
                    c: keys[c]
                    + float(f["table_out"][f["ids"][b, d, c]] @ (f["depth_scale"][d] * state)) / tau
                    for c in known
                }
                z = {c: -math.inf if math.isnan(v) else v for c, v in z.items()}
                lse = float(f["logsumexp"][b, d])
                tail = max(math.exp(lse) - sum(math.exp(k) for k in keys.values() if k == k), 0)
                total = sum(math.exp(v) for v in z.values()) + tail
                slope, shift = f["calibration"][d].tolist()
                for c in known:
                    q = (math.exp(z[c]) / total) ** slope * math.exp(shift) if total else 0.0
                    level[(*path, int(f["ids"][b, d, c]))] = (
                        score * min(q, 1.0),
                        state,
                        int(f["ids"][b, d, c]),
                    )
        if f["paths"] is not None and d < f["paths"].shape[2]:
            for p, path in enumerate(f["paths"][b].tolist()):
                above, token = tuple(path[:d]), path[d]
                if above in levels[-1] and 0 <= token < vocab:
                    score = min(float(f["path_scores"][b, p, d]), levels[-1][above][0])
                    node = level.get((*above, token), (0.0, None, token))
                    if score > node[0]:
                        # any route to a node gives it the same state, that of its parent
                        level[(*above, token)] = (score, node[1], token)
            for path, (score, state, token) in level.items():
                if state is None:
                    level[path] = (
                        score,
                        expand(f, b, d, levels[-1][path[:-1]], zero, vocab),
                        token,
                    )
        level = {p: v for p, v in level.items() if v[0] > 0}
        levels.append(level)
    scores = {path: value[0] for level in levels for path, value in level.items()}
    ranked = sorted(scores, key=lambda path: (-scores[path], len(path)))
    best = {}
    for path in ranked[: f["num_nodes"]]:
        if scores[path] < f["min_score"] * sum(best.values()):
            break
        best[path] = scores[path]
    return best


def expand(f, b, d, node, zero, vocab):
    """The state a node's children inherit, or zero below the heads."""
    _, above, token = node
    if d >= f["ids"].shape[1]:
        return zero
    w = f["table_in"][token] if 0 <= token < vocab else zero
    a, g = torch.sigmoid(f["gate"][b, d] + f["mix"] @ w).chunk(2)
    return a * above + g * w


def assert_is_oracle(tree, inputs):
    assert_valid(tree)
    for b in range(len(tree.num_nodes)):
        expected = oracle(inputs, b)
        found = {
            token_path(tree, b, n): float(tree.scores[b, n]) for n in range(int(tree.num_nodes[b]))
        }
        assert found.keys() == expected.keys()
        for path, score in found.items():
            assert math.isclose(score, expected[path], rel_tol=1e-4)


CASES = {
    "plain": {},
    "one_node": {"N": 1},
    "two_nodes": {"N": 2},
    "roomy": {"N": 100, "H": 2},
    "min_score": {"N": 40, "min_score": 0.01},
    "one_head": {"H": 1},
    "paths": {"P": 3, "Q": 2},
    "long_paths": {"P": 4, "Q": 6, "N": 40},
    "paths_only": {"H": 0, "P": 3, "Q": 5},
    "one_candidate": {"C": 1, "P": 2, "Q": 2},
    "chain": {"C": 1, "H": 4},
    "one_path": {"H": 3, "C": 0, "P": 1, "Q": 5},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_definition_is_brute_force(name, seed):
    inputs = glm_inputs(**CASES[name], seed=seed)
    assert_is_oracle(DraftTree(*reference(*inputs.values())), inputs)


def test_definition_ungated_is_a_markov_head():
    """a = 0, b = 1, no tail: softmax(keys + table_out · table_in[token]) along the path."""
    inputs = glm_inputs(B=1, H=2, C=3, N=13)
    rank = inputs["table_in"].shape[1]
    inputs["gate"][..., :rank], inputs["gate"][..., rank:] = -1e4, 1e4
    inputs |= {"logsumexp": torch.full((1, 2), -math.inf), "depth_scale": torch.ones(2, rank)}
    inputs |= {"calibration": None, "temperature": None}
    tree = DraftTree(*reference(*inputs.values()))
    for node in range(1, 13):
        parent, depth = tree.parents[0, node], int(tree.depths[0, node])
        rows = inputs["table_out"][inputs["ids"][0, depth - 1]]
        logits = inputs["keys"][0, depth - 1] + rows @ inputs["table_in"][tree.tokens[0, parent]]
        chosen = inputs["ids"][0, depth - 1] == tree.tokens[0, node]
        q = logits.softmax(0)[chosen].item()
        assert math.isclose(tree.scores[0, node], tree.scores[0, parent] * q, rel_tol=1e-4)


def test_definition_ties_go_to_lower_depth_token_parent():
    inputs = glm_inputs(B=1, H=3, C=2, V=10, N=6)
    inputs["ids"][:] = torch.tensor([7, 3])
    inputs["keys"][:] = 0.0
    inputs["table_out"][:] = 0.0
    inputs["logsumexp"][:] = -math.inf
    inputs["calibration"] = None
    tree = DraftTree(*reference(*inputs.values()))
    assert tree.tokens[0, 1:].tolist() == [3, 7, 3, 3, 7]
    assert tree.parents[0].tolist() == [-1, 0, 0, 1, 2, 1]


def test_definition_a_certain_chain():
    """q = 1 everywhere: the children tie with their parents and come after them."""
    inputs = glm_inputs(B=1, H=4, C=1, N=4)
    inputs["logsumexp"] = inputs["keys"][..., 0]
    tree = DraftTree(*reference(*inputs.values()))
    assert tree.parents[0].tolist() == [-1, 0, 1, 2]
    assert tree.scores[0].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "spoil", ["nan_key", "bad_ids", "bad_path", "bad_root", "nan_score", "minus_inf"]
)
def test_definition_hostile_values(spoil):
    inputs = glm_inputs(P=2, Q=3, N=30, seed=3)
    spoil_inputs(inputs, spoil)
    assert_is_oracle(DraftTree(*reference(*inputs.values())), inputs | nan_scores_to_zero(inputs))


def nan_scores_to_zero(inputs):
    return {"path_scores": inputs["path_scores"].nan_to_num(0.0)}


def spoil_inputs(inputs, how):
    if how == "nan_key":
        inputs["keys"][:, 0, 1] = math.nan
    elif how == "bad_ids":
        inputs["ids"][:, 0, 0], inputs["ids"][:, 1, 1] = -1, 2**40
    elif how == "bad_path":
        inputs["paths"][:, 0, 1], inputs["paths"][:, 1, 0] = -1, 10**12
    elif how == "bad_root":
        inputs["root"][:] = torch.tensor([-1, 1000])
    elif how == "nan_score":
        inputs["path_scores"][:, 0, 0] = math.nan
    elif how == "minus_inf":
        inputs["keys"][:, 1] = -math.inf


BACKEND_CASES = {
    "issue": {"B": 2, "H": 5, "C": 32, "R": 64, "V": 1000, "N": 64},
    "odd": {"B": 3, "H": 3, "C": 7, "R": 13, "V": 101, "N": 65, "P": 3, "Q": 5},
    "bf16": {"B": 2, "H": 4, "C": 24, "R": 96, "V": 500, "N": 64, "dtype": torch.bfloat16},
    "fp16": {
        "B": 2,
        "H": 4,
        "C": 24,
        "R": 48,
        "V": 500,
        "N": 33,
        "P": 2,
        "Q": 9,
        "dtype": torch.float16,
    },
    "largest": {"B": 1, "H": 16, "C": 64, "R": 256, "V": 300, "N": 256, "P": 16, "Q": 32},
    "deepest": {"B": 2, "H": 5, "C": 32, "R": 32, "V": 200, "N": 256, "P": 16, "Q": 64},
    "n128": {"B": 2, "H": 6, "C": 16, "R": 32, "V": 200, "N": 128, "P": 4, "Q": 10},
    "min_score": {"B": 2, "H": 5, "C": 16, "R": 32, "V": 200, "N": 64, "min_score": 0.02},
    "no_heads": {"H": 0, "C": 64, "R": 16, "P": 1, "Q": 5, "V": 100, "dtype": torch.bfloat16},
    "empty": {"B": 0},
}


@pytest.mark.backend
@pytest.mark.parametrize("name", [*CASES, *BACKEND_CASES])
@pytest.mark.parametrize("seed", range(2))
def test_backend(name, seed, device):
    inputs = glm_inputs(**(CASES | BACKEND_CASES)[name], seed=seed)
    tree = DraftTree(*(part.cpu() for part in public(to(inputs, device))))
    assert_same_tree(tree, DraftTree(*reference(*inputs.values())), inputs["min_score"])


@pytest.mark.backend
def test_backend_cold_float16(device):
    """What the states add to the keys, over the temperature, is beyond the range of float16."""
    inputs = glm_inputs(H=3, C=16, R=16, V=100, N=24, dtype=torch.float16)
    inputs["temperature"][:] = 1e-5
    tree = DraftTree(*(part.cpu() for part in public(to(inputs, device))))
    assert_same_tree(tree, DraftTree(*reference(*inputs.values())))
    assert (tree.num_nodes > 2).all()


@pytest.mark.backend
@pytest.mark.parametrize(
    "spoil", ["nan_key", "bad_ids", "bad_path", "bad_root", "nan_score", "minus_inf"]
)
def test_backend_hostile_values(spoil, device):
    inputs = glm_inputs(P=2, Q=3, N=30, seed=3)
    spoil_inputs(inputs, spoil)
    tree = DraftTree(*(part.cpu() for part in public(to(inputs, device))))
    assert_same_tree(tree, DraftTree(*reference(*inputs.values())))


@pytest.mark.parametrize(
    "shape", [(3, 4, 0, 6), (3, 4, 2, 0), (3, 0, 0, 0), (3, 0, 2, 4), (0, 0, 0, 0)]
)
def test_no_heads_candidates_or_paths(shape, device):
    H, C, P, Q = shape
    inputs = glm_inputs(H=H, C=C)
    inputs["paths"] = torch.randint(0, 50, (2, P, Q))
    inputs["path_scores"] = torch.rand(2, P, Q)
    tree = DraftTree(*(part.cpu() for part in public(to(inputs, device))))
    assert_same_tree(tree, DraftTree(*reference(*inputs.values())))


def tied_inputs(nodes, candidates=6):
    inputs = glm_inputs(B=2, H=4, C=candidates, N=nodes, V=20, P=3, Q=6)
    keys = torch.tensor([0.0, 0.0, 0.0, -1.0, -1.0, -2.0])[:candidates]
    inputs["keys"] = keys.expand(2, 4, candidates).contiguous()
    inputs["table_out"][:] = 0.0
    inputs["logsumexp"][:] = -math.inf
    inputs["path_scores"] = torch.tensor([0.5, 0.25, 0.25]).view(1, 3, 1).repeat(2, 1, 6)
    # in the second request the lower nodes have the lower tokens
    inputs["paths"][1] = 19 - torch.arange(3)[:, None] - 3 * torch.arange(6)
    return inputs


def assert_exact(tree, inputs):
    """The nodes of the reference, in its order."""
    expected = DraftTree(*reference(*inputs.values()))
    for name in ("tokens", "parents", "depths", "ancestors", "num_nodes"):
        assert torch.equal(getattr(tree, name).cpu(), getattr(expected, name)), name


@pytest.mark.backend
@pytest.mark.parametrize("nodes", [*range(1, 12), 31, 64, 65, 200])
@pytest.mark.parametrize("candidates", [6, 1])
def test_backend_ties_are_exact(candidates, nodes, device):
    inputs = tied_inputs(nodes, candidates)
    assert_exact(public(to(inputs, device)), inputs)


def deep_inputs(seed):
    """Long paths that share what they begin with, some equal or cut off, with scores that tie."""
    g = torch.Generator().manual_seed(seed)

    def up_to(most):
        return int(torch.randint(0, most + 1, (), generator=g))

    paths, length = 1 + up_to(15), 1 + up_to(63)
    inputs = glm_inputs(
        H=up_to(4), C=1 + up_to(10), V=60, P=paths, Q=length, N=1 + up_to(130), seed=seed
    )  # fmt: skip
    for p in range(1, paths):
        shared = up_to(length)
        inputs["paths"][:, p, :shared] = inputs["paths"][:, up_to(p - 1), :shared]
    cut = torch.rand(inputs["paths"].shape, generator=g) < 0.01
    inputs["paths"] = inputs["paths"].masked_fill(cut, -1)
    levels = 1 + up_to(3)  # of scores, 1: all of a depth tie
    inputs["path_scores"] = (inputs["path_scores"] * levels).floor() / levels + 0.1
    return inputs


@pytest.mark.backend
@pytest.mark.parametrize("seed", range(40))
def test_backend_paths_below_the_heads_are_exact(seed, device):
    inputs = deep_inputs(seed)
    assert_exact(public(to(inputs, device)), inputs)


@pytest.mark.parametrize("nodes", [1, 2, 30, 64, 65, 200])
def test_the_first_nodes_are_the_tree_of_the_best(nodes, device):
    for inputs in (glm_inputs(H=4, C=9, P=3, Q=6, N=200), tied_inputs(200)):
        inputs = to(inputs, device)
        cut, fewer = public(inputs).best(nodes), public(inputs | {"num_nodes": nodes})
        assert_valid(DraftTree(*(part.cpu() for part in cut)))
        for one, other in zip(cut, fewer, strict=True):
            assert torch.equal(one, other)


@pytest.mark.backend
def test_backend_non_contiguous_inputs(device):
    inputs = to(glm_inputs(P=2, Q=3), device)
    strided = {
        k: v.repeat_interleave(2, dim=-1)[..., ::2] if isinstance(v, torch.Tensor) else v
        for k, v in inputs.items()
    }
    for one, other in zip(public(strided), public(inputs), strict=True):
        assert torch.equal(one, other)


def test_a_request_does_not_depend_on_its_batch(device):
    inputs = to(glm_inputs(B=3, P=2, Q=4), device)
    whole = public(inputs)
    per_request = (
        "ids",
        "keys",
        "logsumexp",
        "gate",
        "root",
        "temperature",
        "paths",
        "path_scores",
    )
    for b in range(3):
        one = {k: v[b : b + 1] if k in per_request else v for k, v in inputs.items()}
        for part, expected in zip(public(one), whole, strict=True):
            torch.testing.assert_close(part, expected[b : b + 1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ids": torch.zeros(2, 3, 4)}, TypeError, "ids must have dtype int64"),
        ({"ids": torch.zeros(2, 17, 4).long()}, ValueError, "at most 16 heads"),
        ({"ids": torch.zeros(2, 3, 65).long()}, ValueError, "at most 64 candidates"),
        ({"keys": torch.zeros(2, 3, 5)}, ValueError, "keys must have shape"),
        ({"logsumexp": torch.zeros(2, 4)}, ValueError, "logsumexp must have shape"),
        ({"gate": torch.zeros(2, 3, 8)}, ValueError, "gate must have shape"),
        ({"root": torch.zeros(3).long()}, ValueError, "root must have shape"),
        ({"table_in": torch.zeros(0, 8)}, ValueError, "table_in must have at least one row"),
        ({"table_in": torch.zeros(50, 257)}, ValueError, "table_in must have 1 to 256 columns"),
        ({"table_out": torch.zeros(50, 9)}, ValueError, "table_out must have shape"),
        ({"table_out": torch.zeros(50, 8).half()}, TypeError, "table_out must have dtype float32"),
        ({"mix": torch.zeros(8, 8)}, ValueError, "mix must have shape"),
        ({"depth_scale": torch.zeros(8, 8)}, ValueError, "depth_scale must have shape"),
        ({"calibration": torch.zeros(3)}, ValueError, "calibration must have shape"),
        ({"calibration": torch.zeros(3, 2)}, ValueError, "calibration must hold values"),
        ({"temperature": torch.tensor([-1.0, 0.0])}, ValueError, "temperature must hold values"),
        ({"num_nodes": 0}, ValueError, "num_nodes must be from 1 to 256"),
        ({"num_nodes": 257}, ValueError, "num_nodes must be from 1 to 256"),
        ({"num_nodes": 3.0}, TypeError, "num_nodes must be an int"),
        ({"paths": None}, ValueError, "path_scores must be given if and only if"),
        ({"paths": torch.zeros(2, 17, 3).long()}, ValueError, "at most 16 paths"),
        ({"paths": torch.zeros(2, 1, 65).long()}, ValueError, "at most 64 tokens"),
        ({"path_scores": torch.zeros(2, 2, 4)}, ValueError, "path_scores must have shape"),
        ({"min_score": -0.1}, ValueError, "min_score must be a number >= 0"),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=f"glm_tree: .*{message}"):
        public(glm_inputs(P=2, Q=3) | change)


@pytest.mark.parametrize("P", [0, 2])
def test_opcheck(P, device):
    inputs = to(glm_inputs(P=P, Q=3), device)
    torch.library.opcheck(torch.ops.dspark.glm_tree.default, tuple(inputs.values()))
