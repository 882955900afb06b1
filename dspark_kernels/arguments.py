"""Types of the command line's arguments: what is no such value is refused in one sentence."""

from argparse import ArgumentTypeError
from pathlib import Path

from .ops._check import MAX_NODES


def whole(least: int, most: int | None = None):
    """The type of an argument that is a whole number from `least`, to `most` if given."""
    upto = "" if most is None else f" to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise ArgumentTypeError(f"must be a whole number from {least}{upto}, got {text!r}")
        return value

    return parse


def number_of_nodes(text: str) -> int | str:
    """A number of tree nodes, or "auto"."""
    if text == "auto":
        return text
    try:
        return whole(1, MAX_NODES)(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(str(error).replace("be a", "be 'auto' or a", 1)) from None


def file_name(text: str) -> str:
    """The name of a file in a folder that is given elsewhere."""
    if text in ("", ".", "..") or Path(text).name != text:
        raise ArgumentTypeError(f"must be a file's name without a folder, got {text!r}")
    return text
