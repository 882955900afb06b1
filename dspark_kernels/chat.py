"""A conversation at the terminal."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console

from .prompts import encode
from .streaming import StepPrinter

with contextlib.suppress(ImportError):  # lines can be edited where there is one
    import readline  # noqa: F401


def _lines(console: Console) -> Iterator[str]:
    """What the user types, until the input ends; nothing but blanks is no turn."""
    with contextlib.suppress(EOFError):
        while True:
            if (line := console.input("> ")).strip():
                yield line
    console.print()


def chat(decoder, system: str | None, options: dict, console: Console) -> None:
    """Answer turn by turn; what the turns before left in the cache is not run again.

    options: of `decoder.generate`. Ctrl-C ends an answer; a turn that does not fit into the model's
    context any more is told so, and forgotten.
    """
    messages = [] if system is None else [{"role": "system", "content": system}]
    for line in _lines(console):
        turn = [*messages, {"role": "user", "content": line}]
        ids = encode({"messages": turn}, decoder.tokenizer)
        printer, start, summary = StepPrinter(decoder.tokenizer, console), time.perf_counter(), ""
        try:
            out = decoder.generate([ids], on_tokens=printer, prefix_caching=True, **options)
            rate = len(out.tokens[0]) / (time.perf_counter() - start)
            summary = (
                f"{rate:.1f} tokens/s, {out.statistics.tokens_per_step:.2f} tokens per step, "
                f"{out.statistics.cached_tokens} of {len(ids)} prompt tokens cached"
            )
        except KeyboardInterrupt:
            summary = "interrupted"
        except ValueError as error:
            console.print(str(error), style="red", markup=False)
            continue
        printer.finish()
        console.print(summary, style="dim", highlight=False)
        messages = [*turn, {"role": "assistant", "content": printer.printed}]
