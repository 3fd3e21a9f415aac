"""RESULTS.md has a part for each command that measures; each leaves the others' alone."""

from __future__ import annotations

from pathlib import Path

TRAINING = "<!-- from here on made by `make bench-training`, above by `make bench` -->\n\n"


def write_first(path: Path, text: str) -> None:
    """What `make bench` found."""
    _, mark, training = _both(path)
    path.write_text(text + (f"\n{mark}{training}" if mark else ""), encoding="utf-8")


def write_training(path: Path, text: str) -> None:
    first, _, _ = _both(path)
    first = first.rstrip("\n")
    path.write_text((f"{first}\n\n" if first else "") + TRAINING + text, encoding="utf-8")


def _both(path: Path) -> tuple[str, str, str]:
    return (path.read_text(encoding="utf-8") if path.exists() else "").partition(TRAINING)
