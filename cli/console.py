"""What commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def say(text: str) -> None:
    """Prints a line of the result."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Prints a line about what is going on."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def say_json(content: Any) -> None:
    """Prints a result for programs, on one line."""
    say(json.dumps(content, ensure_ascii=False, separators=(",", ":")))


def say_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Prints a table; numbers to the right, `None` as a dash."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for position, name in enumerate(columns):
        numbers = bool(cells) and all(
            row[position] is None or isinstance(row[position], (int, float)) for row in cells
        )
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(_cell(value)) for value in row))
    # A pipe has no width: do not fold what a program may read.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def is_interactive() -> bool:
    """Returns whether a person watches standard error."""
    return sys.stderr.isatty()


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
