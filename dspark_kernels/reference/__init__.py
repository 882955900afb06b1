"""The definitions: every op in plain float32 PyTorch, written to be obviously right.

Tests, benchmarks and documentation measure every other backend against these functions. They take
the arguments of the op's schema, in its order, and import nothing but torch.
"""

from .accept_tree import accept_tree
from .advance_step import advance_step
from .best_slots import best_slots
from .chain_reject import chain_reject
from .context_lookup import context_lookup
from .draft_blocks import draft_blocks
from .fused_linear import fused_linear
from .glm_tree import glm_tree
from .linear_topk import linear_topk
from .merge_topk import merge_topk
from .rotary_append import rotary_append
from .sample_logits import sample_logits
from .seen_tokens import seen_tokens
from .tree_attention import tree_attention
from .typical_accept import typical_accept

__all__ = [
    "accept_tree",
    "advance_step",
    "best_slots",
    "chain_reject",
    "context_lookup",
    "draft_blocks",
    "fused_linear",
    "glm_tree",
    "linear_topk",
    "merge_topk",
    "rotary_append",
    "sample_logits",
    "seen_tokens",
    "tree_attention",
    "typical_accept",
]
