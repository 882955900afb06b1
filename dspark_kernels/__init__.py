"""Fused kernels for lossless tree-speculative decoding: multi-head drafts, a gated-linear gate."""

from . import reference
from .ops import *  # noqa: F403
from .ops import __all__ as _ops
from .tree import DraftTree, chain, format_tree, static_tree

__version__ = "0.1.0"
__all__ = [
    *_ops,
    "DraftTree",
    "SpeculativeDecoder",
    "chain",
    "format_tree",
    "reference",
    "static_tree",
]


def __getattr__(name):
    """`SpeculativeDecoder` needs transformers; the ops do not, so it is imported when asked for."""
    if name != "SpeculativeDecoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .integrations.decoder import SpeculativeDecoder

    return SpeculativeDecoder
