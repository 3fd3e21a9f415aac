"""What people read: tables and trees, plain and unwrapped where that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def console() -> Console:
    """Of stdout."""
    if sys.stdout.isatty():
        return Console(highlight=False, markup=False)
    return Console(width=10_000, color_system=None, highlight=False, markup=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table."""
    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*row)
    console().print(made)
