"""RESULTS.md has a part for each command that measures; each leaves the other parts alone."""

from __future__ import annotations

from pathlib import Path

FIRST = "bench"  # the part without a mark
MARKS = {
    "cpu": "<!-- from here on made by `make bench-training` on a CPU -->",
    "gpu": "<!-- from here on made by `make bench-training` on a GPU -->",
}


def write(path: Path, part: str, text: str) -> None:
    """Replace one part of RESULTS.md: `bench`, `cpu` or `gpu`."""
    parts = _read(path) | {part: text.strip("\n")}
    order = [FIRST, *MARKS]
    texts = [f"{MARKS[name]}\n\n{parts[name]}" if name in MARKS else parts[name]
             for name in order if parts.get(name)]  # fmt: skip
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, str]:
    rest = path.read_text(encoding="utf-8") if path.exists() else ""
    found = {}
    for name, mark in reversed(MARKS.items()):
        rest, _, found[name] = rest.partition(mark)
    return {name: text.strip("\n") for name, text in (found | {FIRST: rest}).items()}
