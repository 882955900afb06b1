"""A conversation at the terminal."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console

from .checks import utf8
from .interrupt import interrupt_held_back
from .prompts import encode
from .streaming import StepPrinter

with contextlib.suppress(ImportError):  # lines can be edited where there is one
    import readline  # noqa: F401


def chat(decoder, system: str | None, options: dict, console: Console) -> None:
    """Answer turn by turn; what the turns before left in the cache is not run again.

    options: of `decoder.generate`. Ctrl-C ends an answer. What cannot be answered is told and
    forgotten, and where the model's context is full, the conversation ends.
    """
    messages = [] if system is None else [{"role": "system", "content": system}]
    # so that the first answer does not pay for being the first
    decoder.generate("Hello", **options | {"max_new_tokens": 2})
    for line in _lines(console):
        try:
            turn = [*messages, {"role": "user", "content": utf8("line", line)}]
            ids = encode({"messages": turn}, decoder.tokenizer)
        except ValueError as error:
            console.print(str(error), style="red", markup=False)
            continue
        room = decoder.target.max_length - len(ids)
        if room < 1:
            console.print(f"the context of {decoder.target.max_length} tokens is full", style="red")
            return
        answer, summary = _answer(decoder, ids, room, options, console)
        console.print(summary, style="dim", highlight=False)
        if answer:
            messages = [*turn, {"role": "assistant", "content": answer}]


def _lines(console: Console) -> Iterator[str]:
    """What the user types, until the input ends; nothing but blanks is no turn."""
    with contextlib.suppress(EOFError):
        while True:
            # readline has to know of what stands before a line
            if (line := input("> " if sys.stdin.isatty() else "")).strip():
                yield line
    console.print()


def _answer(decoder, ids: list[int], room: int, options: dict, console: Console) -> tuple[str, str]:
    """Print an answer as it comes; returns it, and a line about it."""
    options = options | {"max_new_tokens": min(room, options["max_new_tokens"])}
    printer, start = StepPrinter(decoder.tokenizer, console), time.perf_counter()
    with interrupt_held_back() as interrupted:
        out = decoder.generate(
            [ids], on_tokens=printer, stop_when=lambda *_: interrupted.is_set(),
            prefix_caching=True, **options,
        )  # fmt: skip
    rate = len(out.tokens[0]) / (time.perf_counter() - start)
    printer.finish()
    summary = (
        f"{rate:.1f} tokens/s, {out.statistics.tokens_per_step:.2f} tokens per step, "
        f"{out.statistics.cached_tokens} of {len(ids)} prompt tokens cached"
    )
    return printer.printed, summary + ", interrupted" * interrupted.is_set()
