"""Showing tokens as they come."""

from rich.console import Console
from rich.text import Text

COLOURS = ("cyan", "yellow", "magenta", "green")


class StepPrinter:
    """Prints the text of each step as it comes; tokens accepted in one step share a colour."""

    def __init__(self, tokenizer, console: Console):
        self.tokenizer = tokenizer
        self.console = console
        self.tokens: list[int] = []
        self.printed = ""
        self.steps = 0

    def __call__(self, request: int, tokens: list[int]) -> None:
        """Take the new tokens of one step; half a character waits for its other half."""
        self.tokens += tokens
        self._print(self._decode().rstrip("\ufffd"))
        self.steps += 1

    def finish(self) -> None:
        """Print what was held back, and end the text."""
        self._print(self._decode())
        self.console.print("\n")

    def _decode(self) -> str:
        return self.tokenizer.decode(self.tokens, skip_special_tokens=True)

    def _print(self, text: str) -> None:
        new = text[len(self.printed) :]
        if new:
            self.printed = text
            style = COLOURS[self.steps % len(COLOURS)]
            self.console.print(Text(new, style), end="", soft_wrap=True)
