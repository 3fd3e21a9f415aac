"""What a row's columns tell of how it becomes a document, where config.yaml says nothing."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import ValidationError

from ..config.dataset import Dataset
from ..config.explain import explain
from ..errors import UserError, listed, shown
from ..sources import read
from ..sources.source import Source

KNOWN = "text; messages or conversations; instruction and output; prompt and completion"


def recognized(name: str, dataset: Dataset, columns: list[str], source: Source) -> Dataset:
    """The data set with a `document` by the names of its columns; as it is with a `text`.

    What is found is said. columns: of its files; source: one of these, in which a row is
    looked at where names do not tell. Raises UserError where nothing is known.
    """
    there = {other: column for other, column in dataset.columns.items() if column in columns}
    there |= {column: column for column in columns}
    document = _document(there, source)
    if document is None:
        one = columns[0] if columns else "COLUMN"
        raise UserError(
            f"datasets.{name}: nothing says how a row becomes a document: there is no column "
            f"'text' in {source.path}; there are: {listed(columns)} (known by their names: "
            f"{KNOWN}). Write it, such as document: {{text: {shown(one)}}}"
        )
    if document != {"text": "text"}:
        print(f"datasets.{name}: taken as document: {_as_yaml(document)}", file=sys.stderr)
    settings = {key: getattr(dataset, key) for key in dataset.model_fields_set}
    try:
        return Dataset.model_validate(settings | {"document": document})
    except ValidationError as error:
        said = "; ".join(explain(problem, Dataset)[1] for problem in error.errors())
        raise UserError(
            f"datasets.{name}: {said}; its columns are {listed(columns)}, so it was taken as "
            f"document: {_as_yaml(document)}"
        ) from None


def _document(there: dict[str, str], source: Source) -> dict[str, Any] | None:
    if "text" in there:
        return {"text": "text"}
    beside = {key: key for key in ("system", "tools") if key in there}
    for name in ("messages", "conversations"):
        if name in there:
            return {"messages": name} | beside
    if {"instruction", "output"} <= there.keys():
        more = {"input": "input"} if "input" in there else {}
        return {"instruction": "instruction", **more, "output": "output"}
    if {"prompt", "completion"} <= there.keys():
        row = read.first_row(source, [there["prompt"], there["completion"]])
        if all(isinstance(value, str | None) for value in row.values()):
            return {"prompt": "prompt", "completion": "completion"}
        return {"messages": ["prompt", "completion"]} | beside
    return None


def _as_yaml(document: dict[str, Any]) -> str:
    """A section in one line of config.yaml."""
    items = (
        f"{key}: {'[' + ', '.join(value) + ']' if isinstance(value, list) else value}"
        for key, value in document.items()
    )
    return "{" + ", ".join(items) + "}"
