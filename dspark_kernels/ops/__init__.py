"""The public ops: one function per op, which checks its arguments and makes one call."""

from .draft_blocks import draft_blocks
from .linear_topk import linear_topk
from .merge_topk import merge_topk
from .sample_logits import sample_logits
from .tree_attention import tree_attention

__all__ = ["draft_blocks", "linear_topk", "merge_topk", "sample_logits", "tree_attention"]
