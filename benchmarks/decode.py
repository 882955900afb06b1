"""Decoding end to end by every method: python -m benchmarks.decode [options of dspark bench decode]

Adds Lookahead Decoding (lookahead:W,N,G) and Medusa-style heads (medusa:NODES) to the methods of
`dspark bench decode`, and runs all of them unless `--methods` says otherwise.
"""

import sys

from dspark_kernels.bench import METHODS
from dspark_kernels.cli import main

from .lookahead import Lookahead
from .medusa import Medusa

EVERY = (
    *("ours", "plain", "generate", "prompt-lookup", "assisted"),
    *("lookahead:15,5,15", "lookahead:5,4,5", "medusa"),
)  # Lookahead as published for 7B models on a GPU, and as it is fastest on a CPU


def numbers(method: str, argument: str) -> list[int]:
    """Whole numbers separated by commas."""
    parts = argument.split(",") if argument else []
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"methods: {method} takes whole numbers behind its colon, got {argument}")
    return [int(part) for part in parts]


def lookahead(decoder, argument, options):
    """lookahead[:W,N,G]"""
    sizes = numbers("lookahead", argument)
    if len(sizes) not in (0, 3):
        raise ValueError(f"methods: lookahead takes W,N,G behind its colon, got {argument}")
    return Lookahead(decoder, *sizes)


def medusa(decoder, argument, options):
    """medusa[:NODES]"""
    return Medusa(decoder, *numbers("medusa", argument)[:1])


METHODS.update(lookahead=lookahead, medusa=medusa)

if __name__ == "__main__":
    chosen = [] if "--methods" in sys.argv else ["--methods", *EVERY]
    sys.exit(main(["bench", "decode", *chosen, *sys.argv[1:]]))
