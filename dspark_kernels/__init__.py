"""Fused kernels for lossless tree-speculative decoding: multi-head drafts, a gated-linear gate."""

from . import reference
from .ops import (
    accept_tree,
    advance_step,
    best_slots,
    chain_reject,
    context_lookup,
    draft_blocks,
    fused_linear,
    glm_tree,
    linear_topk,
    merge_topk,
    rotary_append,
    sample_logits,
    seen_tokens,
    tree_attention,
    typical_accept,
)
from .tree import DraftTree, chain, format_tree, static_tree

__version__ = "0.1.0"
__all__ = [  # what needs no optional package; SpeculativeDecoder has to be named
    "DraftTree",
    "accept_tree",
    "advance_step",
    "best_slots",
    "chain",
    "chain_reject",
    "context_lookup",
    "draft_blocks",
    "format_tree",
    "fused_linear",
    "glm_tree",
    "linear_topk",
    "merge_topk",
    "reference",
    "rotary_append",
    "sample_logits",
    "seen_tokens",
    "static_tree",
    "tree_attention",
    "typical_accept",
]


def __getattr__(name):
    """`SpeculativeDecoder` needs transformers; the ops do not, so it is imported when asked for."""
    if name != "SpeculativeDecoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .integrations.decoder import SpeculativeDecoder
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        message = "SpeculativeDecoder needs transformers: pip install 'dspark_kernels[hf]'"
        raise ModuleNotFoundError(message, name=error.name) from error

    return SpeculativeDecoder


def __dir__():
    return sorted({*globals(), "SpeculativeDecoder"})
