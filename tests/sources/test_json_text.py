"""JSON Lines and JSON: what is odd and valid is read, what is broken is named with its place."""

import json
import os

import pytest
from helpers.datafiles import fails, jsonl, pieces, rows_of, source, texts_of, write
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencache.sources import json_text, read
from tokencache.sources import source as readers
from tokencache.sources.source import Piece

# JSON Lines


def test_jsonl_takes_what_is_odd_and_valid(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "mark"}\r\n',
        b"\n",
        b"  \t\r\n",
        b'{"text": null}\n',
        b'{"other": [1, {"a": null}]}\n',
        b'   {"text": "nul \\u0000 \\ud83d\\ude42 \\u2028"}\n',
        b'{"other": "other type", "text": "x"}\n',
        b'{"n": NaN, "big": ' + b"1" * 4000 + b', "text": "y"}',
    ]
    path = write(tmp_path / "a.jsonl", b"".join(lines))
    wanted = ["mark", None, None, "nul \x00 \U0001f642 \u2028", "x", "y"]
    assert texts_of(source(path)) == wanted
    assert [row.get("text") for row in rows_of(source(path), ["text"])] == wanted
    assert "text" not in rows_of(source(path), ["text"])[2]


def test_jsonl_takes_the_last_of_two_equal_keys(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a", "text": "b"}\n{"text": "c"}\n')
    assert texts_of(source(path)) == ["b", "c"]


BROKEN = {
    '{"text": "x"\n': ("broken JSON", "repair or remove"),
    '{"text": "x"} {"text": "y"}\n': ("broken JSON: Extra data",),
    '{"text":\n"x"}\n': ("broken JSON",),
    "{'text': 'x'}\n": ("broken JSON", "column 2"),
    '{"text": "a\x01b"}\n': ("broken JSON: Invalid control character",),
    '{"text": "a\x00b"}\n': ("broken JSON: Invalid control character",),
    "null\n": ("the row is null, not an object",),
    "5\n": ("the row is the number 5",),
    '["x"]\n': ("the row is a list",),
    '"x"\n': ("the row is a string",),
    "garbage\n": ("broken JSON",),
    '{"text": 5}\n': ("'text' is the number 5, not text", "make it a string"),
    '{"text": 1.5}\n': ("the number 1.5",),
    '{"text": true}\n': ("'text' is true",),
    '{"text": ["x"]}\n': ("'text' is a list",),
    '{"text": {"x": 1}}\n': ("'text' is an object",),
    '{"text": "a \\ud83d b"}\n': ("half a character, \\ud83d",),
    '{"text": "a \\ude42 b"}\n': ("half a character, \\ude42",),
    '{"text": "x"}\r{"text": "y"}\r\n': ("broken JSON",),
}


@pytest.mark.parametrize("line", BROKEN)
@pytest.mark.parametrize("before", [0, 7])
def test_a_broken_line_of_jsonl_is_named(tmp_path, line, before, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_BYTES", 64)
    good = '\n{"text": "fine"}\r\n'
    path = write(tmp_path / "a.jsonl", good * before + line + good)
    whole = Piece(source(path), 0, os.path.getsize(path))
    key = read.digest(whole)
    at = f"{path}:{2 * before + 1}: "
    fails(lambda: list(read.read_text(whole, ["text"], key)), at, *BROKEN[line])


def test_lines_are_counted_from_the_start_of_the_file(tmp_path):
    good = jsonl(f"fine and well {i}" for i in range(300))
    path = write(tmp_path / "a.jsonl", good + '{"text": 5}\n' + '{"text": \n')
    cuts = pieces(source(path), 1024)
    assert len(cuts) > 3
    piece, key = cuts[-1]
    assert piece.start > 0
    fails(lambda: list(read.read_text(piece, ["text"], key)), f"{path}:301: ")
    fails(lambda: list(read.read_rows(piece, ["text"], key)), f"{path}:302: broken JSON")


@pytest.mark.parametrize(
    "lines", ['{"a":\n{"text":"x"}}{"text":"y"}', '{"text":"x"}{"text":"y"}\n\n']
)
def test_objects_over_lines_and_on_one_line_are_no_json_lines(tmp_path, lines):
    """pyarrow takes them, and there are as many rows as lines."""
    found = source(write(tmp_path / "a.jsonl", lines))
    fails(lambda: texts_of(found), "a.jsonl:1: broken JSON")


def test_lone_nulls_never_reach_pyarrow(tmp_path):
    """pyarrow 26 crashes on a block that starts with such a row."""
    for chunk in (b"null\n", b'\n null\n{"a": "x"}\n', b'{"a": "x"}\nnull\n', b"\r\nnull"):
        assert json_text._arrow_table(chunk, ["a"]) is None


def test_deep_nesting_is_an_error_and_no_crash(tmp_path):
    deep = '{"text": ' + "[" * 200_000 + "]" * 200_000 + "}\n"
    found = source(write(tmp_path / "a.jsonl", deep))
    fails(lambda: texts_of(found), "a.jsonl:1: ")


def test_an_integer_that_python_does_not_take_is_named(tmp_path):
    found = source(write(tmp_path / "a.jsonl", '{"text": "x", "n": ' + "1" * 5000 + "}\n"))
    fails(lambda: rows_of(found, ["text"]), "a.jsonl:1: JSON that can't be read")


def test_very_long_lines_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_BYTES", 1024)
    texts = ["a" * 100_000, "b", "é" * 30_000, "c" * 2000]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in texts))
    assert texts_of(source(path)) == texts


def test_a_key_may_miss_in_a_row_but_not_in_the_file(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": "x"}\n' * 500 + '{"b": "y"}\n' * 500)
    found = source(path)
    assert texts_of(found, "b", 1024).count("y") == 500
    assert texts_of(found, "a", 1024).count("x") == 500
    said = fails(lambda: texts_of(found, "c"), path, "no column 'c'", "there are: a, b")
    assert said == fails(lambda: rows_of(found, ["a", "c"]))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
JSON_ROWS = st.lists(
    st.dictionaries(st.sampled_from(["x", "y"]), JSON_VALUES, max_size=2).flatmap(
        lambda row: st.fixed_dictionaries({}, optional={"text": st.none() | st.text()}).map(
            row.__or__
        )
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(rows=JSON_ROWS, ascii=st.booleans(), end=st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_pyarrow_and_python_read_jsonl_alike(tmp_path_factory, rows, ascii, end):
    lines = [json.dumps(row, ensure_ascii=ascii) for row in [{"text": "first"}, *rows]]
    path = write(tmp_path_factory.getbasetemp() / "alike.jsonl", end.join(lines))
    wanted = ["first", *(row.get("text") for row in rows)]
    assert texts_of(source(path)) == wanted
    assert [row.get("text") for row in rows_of(source(path), ["text"])] == wanted


# JSON


def test_json_is_an_array_or_data(tmp_path):
    found = source(write(tmp_path / "a.json", '\ufeff{"data": [{"text": "x"}, {"b": 1}]}'))
    assert read.columns(found) == ["text", "b"]
    assert texts_of(found) == ["x", None]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"text": "x"}\n{"text": "y"}\n', (":2: broken JSON: Extra data", "set format: jsonl")),
        ('{"text": "x"}', ("must be an array of objects", "format: jsonl")),
        ("5", ("must be an array of objects",)),
        ('[\n{"text": "x",}]', (":2: broken JSON",)),
        ('[{"text": "x"}, 5]', ("row 2: the row is the number 5",)),
        ('[{"text": "x"}, {"text": 5}]', ("row 2: column 'text' is the number 5",)),
        ('[{"text": "\\ud83d"}]', ("row 1: ", "half a character")),
    ],
)
def test_json_that_is_no_rows_says_what_to_do(tmp_path, data, said):
    path = write(tmp_path / "a.json", data)
    fails(lambda: texts_of(source(path)), path, *said)
