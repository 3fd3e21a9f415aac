"""Tables for people, and amounts and times in their words."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

TIMES = (("d", 86400), ("h", 3600), ("min", 60))
SIZES = ("bytes", "kB", "MB", "GB", "TB")
WIDE = 10_000  # columns, where lines are not to be wrapped


def console() -> Console:
    """Standard output: coloured in a terminal, plain elsewhere, and never wrapped there."""
    from rich.console import Console

    found = Console(highlight=False, markup=False)
    if found.is_terminal:
        return found
    return Console(width=WIDE, color_system=None, highlight=False, markup=False)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], right: Iterable[str] = ()
) -> Table:
    """Rows under their names; the columns in `right` hold numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return made


def show(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = ()) -> None:
    """Print a table; its lines are not wrapped, for a name in parts can't be copied."""
    from rich.console import Console

    Console(width=WIDE, highlight=False).print(table(columns, rows, right))


def show_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def amount(size: float | None) -> str:
    """'1.2 GB'; '-' for what is not known."""
    if size is None:
        return "-"
    power = 0
    while size >= 1000 and power < len(SIZES) - 1:
        size, power = size / 1000, power + 1
    return f"{size:,.1f} {SIZES[power]}" if power else f"{size:,.0f} {SIZES[0]}"


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    return f"{seconds / 60:,.1f} minutes" if seconds >= 60 else f"{seconds:.1f} seconds"


def ago(when: float | None) -> str:
    """'3 h ago'; '-' for never."""
    if when is None:
        return "-"
    seconds = time.time() - when
    for unit, length in TIMES:
        if seconds >= length:
            return f"{seconds // length:,.0f} {unit} ago"
    return "just now"


def iso(when: float | None) -> str | None:
    """The time on this machine, with its zone."""
    return when and time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(when))
