"""The torch library `dspark`: schemas, fakes, and which backend serves which op.

Every op has one schema and one reference (`reference/`, plain PyTorch, the definition), which
serves every device unless something faster was found when the package was imported:

    native   the C++ library `_native`: CPU kernels, and CUDA kernels when it was built with nvcc
    triton   Triton kernels, on CUDA (and on the CPU under TRITON_INTERPRET=1, for tests)

`DSPARK_BACKEND=reference|native|triton` asks for one backend; an op which that backend does not
have then raises instead of falling back. No op is differentiable: outputs never require a gradient.
"""

import ctypes
import importlib
import importlib.util
import os
import warnings
from pathlib import Path

import torch

SCHEMAS = {
    "draft_blocks": "(Tensor hidden, Tensor weight, Tensor bias, Tensor? features, "
    "Tensor? residual_scale) -> Tensor",
    "fused_linear": "(Tensor x, Tensor[] weights, Tensor[] biases, bool gated, Tensor? residual, "
    "Tensor? norm_weight, float eps) -> Tensor[]",
    "rotary_append": "(Tensor qkv, Tensor cos, Tensor sin, Tensor? positions, "
    "Tensor? q_norm_weight, Tensor? k_norm_weight, float eps, Tensor(a!) k_cache, "
    "Tensor(b!) v_cache, Tensor cache_seqlens, Tensor? block_table, Tensor? rows) -> Tensor",
    "linear_topk": "(Tensor x, Tensor weight, int k, Tensor? bias, Tensor? temperature, "
    "Tensor? seed, Tensor? position, Tensor? id_map, int vocab_offset, Tensor? seen, "
    "Tensor? repetition_penalty) -> (Tensor, Tensor, Tensor)",
    "merge_topk": "(Tensor keys, Tensor ids, Tensor logsumexp, int k) -> (Tensor, Tensor, Tensor)",
    "glm_tree": "(Tensor ids, Tensor keys, Tensor logsumexp, Tensor gate, Tensor root, "
    "Tensor table_in, Tensor table_out, Tensor mix, Tensor depth_scale, Tensor? calibration, "
    "Tensor? temperature, Tensor? paths, Tensor? path_scores, int num_nodes, float min_score) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "context_lookup": "(Tensor history, Tensor lengths, int max_ngram, int min_ngram, "
    "int num_paths, int path_length) -> (Tensor, Tensor)",
    "best_slots": "(Tensor scores, Tensor num_nodes, Tensor lengths, Tensor limit, Tensor done, "
    "int nodes, int total) -> (Tensor, Tensor, Tensor)",
    "tree_attention": "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cache_seqlens, "
    "Tensor ancestors, float scale, Tensor? block_table, int window, float softcap, "
    "Tensor? k_scale, Tensor? v_scale, Tensor? rows) -> (Tensor, Tensor)",
    "accept_tree": "(Tensor tokens, Tensor parents, Tensor num_nodes, Tensor target_tokens, "
    "Tensor(a!)[] caches, Tensor cache_seqlens, Tensor? block_table, int max_depth) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "advance_step": "(Tensor tokens, Tensor num_tokens, Tensor node, Tensor? rows, "
    "Tensor[] hidden, Tensor stop, Tensor limit, Tensor(a!) history, Tensor(b!) lengths, "
    "Tensor(c!) cache_seqlens, Tensor(d!) root, Tensor(e!) done, Tensor(f!)[] kept) -> Tensor",
    "typical_accept": "(Tensor tokens, Tensor parents, Tensor num_nodes, Tensor target_tokens, "
    "Tensor logits, Tensor? temperature, float epsilon, float delta, Tensor(a!)[] caches, "
    "Tensor cache_seqlens, Tensor? block_table, int max_depth) -> (Tensor, Tensor, Tensor, Tensor)",
    "seen_tokens": "(Tensor history, Tensor lengths, int vocab_size, Tensor? tokens, "
    "Tensor? ancestors, Tensor? slots) -> Tensor",
    "chain_reject": "(Tensor draft_tokens, Tensor draft_logits, Tensor target_logits, "
    "Tensor temperature, Tensor seed, Tensor position) -> (Tensor, Tensor)",
    "sample_logits": "(Tensor logits, Tensor? ids, Tensor? temperature, Tensor? seed, "
    "Tensor? position, Tensor? top_k, Tensor? top_p, Tensor? min_p, Tensor? seen, "
    "Tensor? repetition_penalty) -> Tensor",
}

TRITON_OPS = (
    "draft_blocks", "fused_linear", "rotary_append", "linear_topk", "merge_topk", "tree_attention",
    "sample_logits",
)  # fmt: skip
NATIVE_CUDA_OPS = (
    "glm_tree", "context_lookup", "best_slots", "accept_tree", "advance_step", "typical_accept",
    "chain_reject", "seen_tokens",
)  # fmt: skip
BACKENDS = ("auto", "reference", "native", "triton")


# --- fakes: the shapes and dtypes of the outputs -----------------------------------------------


def _walk_outputs(tokens, max_depth):
    batch = tokens.shape[0]
    return (
        tokens.new_empty(batch, max_depth + 1, dtype=torch.int32),  # path
        tokens.new_empty(batch, max_depth + 1),  # tokens
        tokens.new_empty(batch, dtype=torch.int32),  # num_accepted
        tokens.new_empty(batch, dtype=torch.int32),  # last_node
    )


def _fake_draft_blocks(hidden, weight, bias, features, residual_scale):
    return hidden.new_empty(hidden.shape[0], weight.shape[0], weight.shape[1])


def _fake_fused_linear(x, weights, biases, gated, residual, norm_weight, eps):
    width = sum(weight.shape[0] for weight in weights[: 1 if gated else None])
    return [x.new_empty(x.shape[0], width) for _ in range(1 if norm_weight is None else 2)]


def _fake_rotary_append(
    qkv, cos, sin, positions, q_norm_weight, k_norm_weight, eps, k_cache, v_cache, cache_seqlens,
    block_table, rows,
):  # fmt: skip
    *tokens, heads, head_dim = qkv.shape
    return qkv.new_empty(*tokens, heads - 2 * k_cache.shape[2], head_dim)


def _topk_outputs(like, rows, k):
    return (
        like.new_empty(rows, k, dtype=torch.float32),
        like.new_empty(rows, k, dtype=torch.int64),
        like.new_empty(rows, dtype=torch.float32),
    )


def _fake_linear_topk(
    x, weight, k, bias, temperature, seed, position, id_map, vocab_offset, seen, repetition_penalty
):
    return _topk_outputs(x, x.shape[0], k)


def _fake_merge_topk(keys, ids, logsumexp, k):
    return _topk_outputs(keys, keys.shape[1], k)


def _fake_glm_tree(
    ids, keys, logsumexp, gate, root, table_in, table_out, mix, depth_scale, calibration,
    temperature, paths, path_scores, num_nodes, min_score,
):  # fmt: skip
    batch = ids.shape[0]
    words = (num_nodes + 63) // 64
    return (
        ids.new_empty(batch, num_nodes),  # tokens
        ids.new_empty(batch, num_nodes, dtype=torch.int32),  # parents
        ids.new_empty(batch, num_nodes, dtype=torch.int32),  # depths
        ids.new_empty(batch, num_nodes, words),  # ancestors
        ids.new_empty(batch, num_nodes, dtype=torch.float32),  # scores
        ids.new_empty(batch, dtype=torch.int32),  # num_nodes
    )


def _fake_context_lookup(history, lengths, max_ngram, min_ngram, num_paths, path_length):
    batch = history.shape[0]
    return (
        history.new_empty(batch, num_paths, path_length),
        history.new_empty(batch, num_paths, dtype=torch.int32),
    )


def _fake_best_slots(scores, num_nodes, lengths, limit, done, nodes, total):
    batch = scores.shape[0]
    return (
        scores.new_empty(total, dtype=torch.int64),  # slots
        scores.new_empty(batch, nodes, dtype=torch.int64),  # rows
        scores.new_empty(batch, dtype=torch.int32),  # counts
    )


def _fake_tree_attention(
    q, k_cache, v_cache, cache_seqlens, ancestors, scale, block_table, window, softcap,
    k_scale, v_scale, rows,
):  # fmt: skip
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float32)


def _fake_accept_tree(
    tokens, parents, num_nodes, target_tokens, caches, cache_seqlens, block_table, max_depth
):
    return _walk_outputs(tokens, max_depth)


def _fake_advance_step(
    tokens, num_tokens, node, rows, hidden, stop, limit, history, lengths, cache_seqlens, root,
    done, kept,
):  # fmt: skip
    return num_tokens.new_empty(num_tokens.shape)


def _fake_typical_accept(
    tokens, parents, num_nodes, target_tokens, logits, temperature, epsilon, delta, caches,
    cache_seqlens, block_table, max_depth,
):  # fmt: skip
    return _walk_outputs(tokens, max_depth)


def _fake_chain_reject(draft_tokens, draft_logits, target_logits, temperature, seed, position):
    batch, length = draft_tokens.shape
    return draft_tokens.new_empty(batch, length + 1), draft_tokens.new_empty(
        batch, dtype=torch.int32
    )


def _fake_seen_tokens(history, lengths, vocab_size, tokens, ancestors, slots):
    draws = lengths if tokens is None else tokens
    count = draws.numel() if slots is None else slots.shape[0]
    return history.new_empty(count, (vocab_size + 63) // 64)


def _fake_sample_logits(
    logits, ids, temperature, seed, position, top_k, top_p, min_p, seen, repetition_penalty
):
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


# --- backends ----------------------------------------------------------------------------------


def _lazy(package, op):
    """The function `op` of `dspark_kernels.<package>.<op>`, imported when it is first called."""
    function = None

    def kernel(*args):
        nonlocal function
        if function is None:
            function = getattr(importlib.import_module(f"dspark_kernels.{package}.{op}"), op)
        return function(*args)

    return kernel


def _reference(op):
    """The reference of `op` as a kernel: its outputs never require a gradient."""
    return torch.no_grad()(_lazy("reference", op))


def _reference_with_warning(op):
    """The reference on CUDA where a kernel was expected: says so once."""
    reference, warned = _reference(op), False

    def kernel(*args):
        nonlocal warned
        if not warned:
            warned = True
            warnings.warn(f"dspark_kernels.{op}: {_why_reference(op, 'cuda')}", stacklevel=2)
        return reference(*args)

    return kernel


def _refuse(op):
    """Serves `op` where the backend that was asked for does not have it."""

    def kernel(*args):
        raise NotImplementedError(
            f"{op}: DSPARK_BACKEND={REQUESTED} was asked for, which has no kernel for this op and "
            "device; unset it to let dspark_kernels choose"
        )

    return kernel


def _has_kernel(op, device_type):
    key = {"cpu": "CPU", "cuda": "CUDA"}[device_type]
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"dspark::{op}", key)


def _why_reference(op, device_type):
    if REQUESTED == "reference":
        return "DSPARK_BACKEND=reference"
    if device_type == "cuda" and op in TRITON_OPS:
        return "Triton is not installed, so the slow reference serves this op"
    if NATIVE_PATH is None:
        return "the native library was not built, so the slow reference serves this op"
    if device_type == "cuda":
        return "the native library was built without nvcc, so the slow reference serves this op"
    return "the native library has no kernel for this op, so the slow reference serves it"


def backend_of(op: str, device_type: str) -> tuple[str, str]:
    """Which backend serves `op` on "cpu" or "cuda", and the reason: what `dspark env` prints."""
    if (op, device_type) in _served_by_triton:
        return "triton", "interpreter" if INTERPRETER else "Triton is installed"
    if (op, device_type) not in _served_by_reference and _has_kernel(op, device_type):
        what = f"built for {NATIVE_CUDA_ARCHS}" if device_type == "cuda" else f"using {NATIVE_ISA}"
        return "native", f"the native library is loaded, {what}"
    if REQUESTED in ("native", "triton"):
        return "none", f"DSPARK_BACKEND={REQUESTED} has no kernel for this op"
    return "reference", _why_reference(op, device_type)


def _load_native() -> tuple[str, str]:
    """Load the native library; returns the CUDA architectures in it ("" for none), and which
    instruction set the CPU kernels use."""
    torch.ops.load_library(str(NATIVE_PATH))
    library = ctypes.CDLL(str(NATIVE_PATH))
    library.dspark_cuda_archs.restype = library.dspark_cpu_isa.restype = ctypes.c_char_p
    return library.dspark_cuda_archs().decode(), library.dspark_cpu_isa().decode()


REQUESTED = os.environ.get("DSPARK_BACKEND", "auto")
if REQUESTED not in BACKENDS:
    raise ValueError(f"DSPARK_BACKEND must be one of {', '.join(BACKENDS)}, got {REQUESTED!r}")
INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
NATIVE_PATH = next(Path(__file__).parent.glob("_native*.so"), None)
NATIVE_CUDA_ARCHS = NATIVE_ISA = ""
_served_by_triton: set[tuple[str, str]] = set()
_served_by_reference: set[tuple[str, str]] = set()

_library = torch.library.Library("dspark", "DEF")
for _op, _schema in SCHEMAS.items():
    _library.define(_op + _schema)
    _default = _refuse if REQUESTED in ("native", "triton") else _reference
    _library.impl(_op, _default(_op), "CompositeExplicitAutograd")
    _library.impl(_op, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake(f"dspark::{_op}", globals()[f"_fake_{_op}"], lib=_library)

if REQUESTED in ("auto", "native") and NATIVE_PATH is not None:
    NATIVE_CUDA_ARCHS, NATIVE_ISA = _load_native()
elif REQUESTED == "native":
    raise ImportError(
        "DSPARK_BACKEND=native was asked for, but the native library was not built; "
        "reinstall dspark_kernels with a C++ compiler"
    )

if REQUESTED in ("auto", "triton") and importlib.util.find_spec("triton") is not None:
    _device = "cpu" if INTERPRETER and REQUESTED == "triton" else "cuda"
    for _op in TRITON_OPS:
        _library.impl(_op, _lazy("triton", _op), _device.upper())
        _served_by_triton.add((_op, _device))
elif REQUESTED == "triton":
    raise ImportError("DSPARK_BACKEND=triton was asked for, but triton is not installed")

if REQUESTED == "auto":
    for _op in SCHEMAS:
        if not _has_kernel(_op, "cuda"):
            _library.impl(_op, _reference_with_warning(_op), "CUDA")
            _served_by_reference.add((_op, "cuda"))

ops = torch.ops.dspark
