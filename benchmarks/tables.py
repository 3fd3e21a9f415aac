"""Tables in Markdown."""

from __future__ import annotations


def table(head: list[str], rows: list[list[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
