"""A comparison as tables for people."""

from collections.abc import Iterator

from rich import box
from rich.table import Table

from .compare import REFERENCE, Comparison


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    return table


def tables(comparison: Comparison) -> Iterator[Table | str]:
    """All methods, their speed-up by category, where the time of a step goes, and the notes."""
    sizes = dict.fromkeys(row["batch_size"] for row in comparison.rows)
    for size in sizes:
        rows = [row for row in comparison.rows if row["batch_size"] == size]
        totals = [row for row in rows if row["category"] == "total"]
        yield _methods(size, totals)
        yield _categories(size, rows)
        phases = [row for row in comparison.phases if row["batch_size"] == size]
        if phases:
            yield _steps(size, phases, totals)
    yield "\n".join(f"{name}: {note}" for name, note in comparison.notes.items())


def _methods(size: int, rows: list[dict]) -> Table:
    columns = ("tokens/s", "tokens/step", "speed-up", "identical")
    table = _table(f"batch {size}", "method", *columns)
    for row in rows:
        table.add_row(
            row["method"],
            f"{row['tokens_per_second']:.1f}",
            f"{row['tokens_per_step']:.2f}",
            f"{row['speedup']:.2f}x",
            f"{row['identical']}/{row['prompts']}",
        )
    return table


def _categories(size: int, rows: list[dict]) -> Table:
    categories = dict.fromkeys(row["category"] for row in rows)
    table = _table(f"batch {size}; speed-up over {REFERENCE}", "method", *categories)
    found = {(row["method"], row["category"]): row["speedup"] for row in rows}
    for name in dict.fromkeys(row["method"] for row in rows):
        table.add_row(name, *(f"{found[name, category]:.2f}x" for category in categories))
    return table


def _steps(size: int, phases: list[dict], totals: list[dict]) -> Table:
    names = dict.fromkeys(row["phase"] for row in phases)
    columns = ("step", "tokens/step", "predicted", "measured")
    title = f"batch {size}; milliseconds per step; predicted and measured: over plain"
    table = _table(title, "method", *names, *columns)
    spent = {(row["method"], row["phase"]): row["milliseconds"] for row in phases}
    for row in totals:
        if row["step_milliseconds"] is not None:
            table.add_row(
                row["method"],
                *(_cell(spent.get((row["method"], phase)), ".2f") for phase in names),
                f"{row['step_milliseconds']:.2f}",
                f"{row['tokens_per_step']:.2f}",
                _cell(row["predicted_over_plain"], ".2f", "x"),
                _cell(row["measured_over_plain"], ".2f", "x"),
            )
    return table


def _cell(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
