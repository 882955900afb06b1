"""Fused kernels for lossless tree-speculative decoding: multi-head drafts, a gated-linear gate."""

from . import reference
from .ops import *  # noqa: F403
from .ops import __all__ as _ops
from .tree import DraftTree, chain, format_tree, static_tree

__version__ = "0.1.0"
__all__ = [*_ops, "DraftTree", "chain", "format_tree", "reference", "static_tree"]
