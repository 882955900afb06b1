"""Decoding measured end to end: ours beside what transformers offers, same model, same prompts."""

from .compare import Comparison, compare
from .methods import METHODS, Decoded, Generate, Ours, make_methods
from .prompts import DEFAULT_PROMPTS, read_prompts
from .report import tables

__all__ = [
    "DEFAULT_PROMPTS",
    "METHODS",
    "Comparison",
    "Decoded",
    "Generate",
    "Ours",
    "compare",
    "make_methods",
    "read_prompts",
    "tables",
]
