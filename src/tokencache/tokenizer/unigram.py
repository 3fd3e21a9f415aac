"""Scores of Unigram models, so that a saved tokenizer.json gives the model that was saved.

The `tokenizers` library does not round the numbers of a JSON file correctly: it divides the
digits, as a float, by a power of ten, so one score in seven comes back with another last bit.
Pieces whose scores tie then tie no more, and some texts are cut otherwise. Classes of
transformers, such as T5's, build the model from Python's floats, which are right.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

POWERS = range(14, 40)  # of ten
STEPS = 20  # numerators that are tried on each side of the nearest one


def is_unigram(backend: Tokenizer) -> bool:
    return isinstance(backend.model, models.Unigram)


def from_python_floats(backend: Tokenizer, file: Path) -> None:
    """Give a tokenizer the Unigram model of a tokenizer.json as Python reads its scores."""
    model = json.loads(file.read_text(encoding="utf-8"))["model"]
    pieces = [(piece, score) for piece, score in model["vocab"]]
    backend.model = models.Unigram(pieces, model["unk_id"], model.get("byte_fallback", False))


def to_json(backend: Tokenizer) -> str:
    """A tokenizer's tokenizer.json, from which `tokenizers` reads the scores that it has.

    A score that has no such spelling is written as it is; `tokenizers` has read no such score.
    """
    text = backend.to_str()
    if not is_unigram(backend):
        return text
    content = json.loads(text)  # `tokenizers` writes enough digits for Python to read it exactly
    again = json.loads(Tokenizer.from_str(text).to_str())
    pieces = []
    for (piece, score), (_, read) in zip(_vocabulary(content), _vocabulary(again), strict=True):
        digits = repr(score) if score == read else spell(score)
        pieces.append(f"[{json.dumps(piece, ensure_ascii=False)},{digits}]")
    mark = "\0vocabulary\0"
    content["model"]["vocab"] = mark
    text = json.dumps(content, ensure_ascii=False)
    return text.replace(json.dumps(mark), f"[{','.join(pieces)}]")


def spell(score: float) -> str:
    """Digits that give this score when divided by a power of ten; its usual ones if none do."""
    sign, size = ("-" if score < 0 else ""), abs(score)
    for power in POWERS:
        nearest = int((Decimal(size) * 10**power).to_integral_value())
        step = max(1, int(math.ulp(float(nearest))) // 2)
        for offset in range(-STEPS, STEPS):
            digits = nearest + offset * step
            if 0 < digits < 2**64 and float(digits) / float(f"1e{power}") == size:
                return f"{sign}{digits}e-{power}"
    return repr(score)


def _vocabulary(content: dict[str, Any]) -> list[list[Any]]:
    return content["model"]["vocab"]
