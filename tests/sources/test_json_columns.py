"""All rows of JSON Lines tell the columns, though few are parsed."""

from __future__ import annotations

import gzip
import json

import pytest
from helpers.datafiles import fails, source, write
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencache.config.dataset import Dataset
from tokencache.documents.columns import recognized
from tokencache.errors import UserError
from tokencache.sources import cuts, json_columns, read
from tokencache.sources.identity import shards
from tokencache.sources.index import Index
from tokencache.sources.json_columns import Columns

FILLER = json.dumps({"text": "x" * 1000}) + "\n"


@pytest.mark.parametrize("end", ["\n", ""], ids=["ended", "not ended"])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_column_of_the_last_row_is_found(tmp_path, suffix, end):
    data = (FILLER * 3000 + '{"text": "y", "late": "z"}' + end).encode()
    data = gzip.compress(data, 1) if suffix.endswith("gz") else data
    found = source(write(tmp_path / f"a{suffix}", data))
    assert read.columns(found) == ["text", "late"]
    assert cuts.look(found, 2**20)[1] == ["text", "late"]


def test_what_a_row_is_taken_for_depends_on_all_rows(tmp_path):
    first = [{"instruction": f"{n} " + "a" * 100, "output": "b" * 100} for n in range(9000)]
    rows = [*first, *(row | {"input": "c"} for row in first)]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with Index(tmp_path / "index.sqlite") as index:
        _, [columns] = shards([source(path)], 2**20, index, "a")
    made = recognized("a", Dataset(files=[path]), columns, source(path))
    assert made.document.input == "input"


def columns_of(tmp_path, data, size):
    """As a file's blocks of this size tell them, without the head that is parsed in any case."""
    found = Columns(source(write(tmp_path / "a.jsonl", data)))
    for start in range(0, len(data), size):
        found.feed(data[start : start + size])
    return found.found()


def keys_of(data):
    lines = [line for line in data.decode().split("\n") if line.strip(" \t\r")]
    return list(dict.fromkeys(key for line in lines for key in json.loads(line)))


ODD = st.sampled_from(
    ["", ":", ": ", ", ", '"', '":', '\\"', "\\", '\\":', "{", "}", "[", "]", '{"a": 1}', "é",
     "日本", "x" * 7, "x" * 8, "x" * 9, "x" * 600, "\\" * 40 + '"', "\u2028", "\n", "a", "b", " :x"]
)  # fmt: skip
TEXT = ODD | st.text(max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.dictionaries(TEXT, VALUES, max_size=4), min_size=1, max_size=12),
    style=st.sampled_from([(", ", ": "), (",", ":"), (" ,\t", " \t: ")]),
    ascii=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n \n"]),
    size=st.sampled_from([1, 7, 50, 10_000]),
)
def test_the_keys_are_those_that_python_finds(tmp_path_factory, rows, style, ascii, end, size):
    lines = [json.dumps(row, separators=style, ensure_ascii=ascii) for row in rows]
    data = end.join(lines).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_columns, "HEAD_BYTES", 0)
        assert columns_of(tmp_path_factory.getbasetemp(), data, size) == keys_of(data)


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT | st.sampled_from('{}[]":,\n'), max_size=30).map("".join), st.integers(1, 20))
def test_a_file_that_is_broken_gives_columns_or_one_message(tmp_path_factory, data, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_columns, "HEAD_BYTES", 0)
        data = ('{"a": 1}\n' + data).encode()
        try:
            found = columns_of(tmp_path_factory.getbasetemp(), data, size)
        except UserError:
            return
        assert found[0] == "a"


def test_keys_of_other_objects_are_no_columns(tmp_path):
    row = {"messages": [{"role": "user", "content": ":)", "deep": {"x": [{"y": 1}]}}], "id": 1}
    data = (json.dumps(row) + "\n").encode() * 3000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_columns, "HEAD_BYTES", 0)
        assert columns_of(tmp_path, data, 50_000) == ["messages", "id"]
        late = data + b'{"role": "top", "id": 2}\n'
        assert columns_of(tmp_path, late, 50_000) == ["messages", "id", "role"]


def test_rows_are_parsed_for_new_keys_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(json_columns, "HEAD_BYTES", 0)
    lines, parse = [], Columns._parse

    def counted(self, chunk, before=0):
        lines.append(chunk)
        parse(self, chunk, before)

    monkeypatch.setattr(Columns, "_parse", counted)
    data = FILLER.encode() * 1000 + b'{"text": "", "new": {"text": 1}}\n' + FILLER.encode() * 1000
    assert columns_of(tmp_path, data, 100_000) == ["text", "new"]
    assert len(lines) == 2


def test_a_broken_row_with_a_new_key_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", FILLER * 2000 + '{"text": "x", "new": }\n')
    fails(lambda: cuts.look(source(path), 2**20), f"{path}:2001: broken JSON")


def test_many_columns_and_long_names_leave_messages_readable(tmp_path):
    row = {f"column {n}": n for n in range(5001)} | {"long" * 1000: 1}
    path = write(tmp_path / "a.jsonl", json.dumps(row) + "\n")
    said = fails(lambda: list(read.read_text(whole(path), ["text"], digest(path))), "no column")
    assert "column 19… and 4,982 more" in said.replace(", …", "…") and len(said) < 600
    said = fails(
        lambda: recognized("a", Dataset(files=[path]), list(row), source(path)), "and 4,982 more"
    )
    assert len(said) < 1000


def whole(path):
    return read.Piece(source(path), 0, len(open(path, "rb").read()))


def digest(path):
    return read.digest(whole(path))
