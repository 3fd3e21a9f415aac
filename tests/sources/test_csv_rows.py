"""CSV: what is in the dialect is read as Python reads it, what is not is refused with its line."""

from __future__ import annotations

import csv
import gzip
import io

import pytest
from helpers.datafiles import fails, rows_of, source, texts_of, write
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencache.errors import UserError
from tokencache.sources import read as sources
from tokencache.sources import source as readers

SIGNS = st.sampled_from(["a", "b", ",", "\t", '"', "\n", "\r\n", "é", " ", "日", "'"])
VALUES = st.lists(SIGNS, max_size=6).map("".join)
TABLES = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(VALUES, min_size=width, max_size=width), max_size=8)
)
STYLES = st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])


def read(text, format="csv"):
    """The rows of the csv module, without blank lines, each as wide as the header."""
    rows = csv.reader(io.StringIO(text, newline="\n"), delimiter="\t" if format == "tsv" else ",")
    return [row for row in rows if row]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_BYTES", 60)


@settings(max_examples=150, deadline=None)
@given(rows=TABLES, style=STYLES, format=st.sampled_from(["csv", "tsv"]), bom=st.booleans(),
       end=st.sampled_from(["\n", "\r\n"]), chunk=st.sampled_from([40, 2**24]))  # fmt: skip
def test_what_python_writes_is_read_as_python_reads_it(
    tmp_path_factory, rows, style, format, bom, end, chunk
):
    header = [f"c{n}" for n in range(len(rows[0]) if rows else 1)]
    made = io.StringIO()
    writer = csv.writer(
        made, delimiter="\t" if format == "tsv" else ",", quoting=style, lineterminator=end
    )
    writer.writerows([header, *rows])
    text = made.getvalue()
    path = write(tmp_path_factory.getbasetemp() / f"any.{format}", bom * "\ufeff" + text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK_BYTES", chunk)
        try:
            found = rows_of(source(path), header)
        except UserError as error:
            assert "longer than" in str(error) and chunk == 40
            return
    assert [list(row.values()) for row in found] == read(text, format)[1:]


@settings(max_examples=300, deadline=None)
@given(st.lists(SIGNS | st.sampled_from(["\r", '""', ',"', '",', '\n"']), max_size=25).map("".join))
def test_any_text_is_read_as_python_reads_it_or_refused(tmp_path_factory, text):
    text = "a,b\n" + text
    path = write(tmp_path_factory.getbasetemp() / "damaged.csv", text)
    try:
        found = rows_of(source(path), ["a", "b"])
    except UserError as error:
        assert str(error).startswith(f"{path}:")
        return
    assert [list(row.values()) for row in found] == read(text)[1:]


NEVER_CLOSED = {
    'a,b\n1,2\n"x,3\ny,4\nz,5\n': 3,
    'a,b\n1,2\n3,"x\n\n"",y\n': 3,
    'a,"b\n1,2\n3,4\n': 1,
    '"a,b\n': 1,
}


@pytest.mark.parametrize("text", NEVER_CLOSED)
@pytest.mark.parametrize("packed", [False, True])
def test_a_quote_that_is_never_closed_is_named_with_its_line(tmp_path, text, packed):
    data = gzip.compress(text.encode()) if packed else text
    path = write(tmp_path / ("a.csv.gz" if packed else "a.csv"), data)
    fails(lambda: rows_of(source(path), ["a"]), f"{path}:{NEVER_CLOSED[text]}: ", "never closed")


def test_a_quote_that_another_value_s_quote_closes_is_named_with_both_lines(tmp_path):
    path = write(tmp_path / "a.csv", 'a,b\n1,"x\n2,"y"\n3,"z"\n')
    said = fails(lambda: texts_of(source(path), "a"), f"{path}:2: ", "in line 3", "never closed")
    assert said == fails(lambda: sources.columns(source(path)))


def test_rows_before_an_open_quote_are_not_lost_where_it_comes_late(tmp_path, small_chunks):
    text = "a,b\n" + "1,2\n" * 50 + '3,"' + "4,5\n" * 5
    path = write(tmp_path / "a.csv", text)
    fails(lambda: texts_of(source(path), "a"), f"{path}:52: ", "never closed")


def test_a_quote_inside_a_value_without_quotes_is_a_sign(tmp_path):
    text = 'a,b\n5" pipe,x"y"\n"he said ""no""","1\n2"\n6",\'"\'\n'
    path = write(tmp_path / "a.csv", text)
    assert texts_of(source(path), "a") == ['5" pipe', 'he said "no"', '6"']
    assert texts_of(source(path), "b") == ['x"y"', "1\n2", "'\"'"]


@pytest.mark.parametrize(
    ("text", "line"),
    [("a,b\n1,x\ry\n", 2), ("a,b\r1,2\r3,4\r", 1), ("a,b\n1,2\n3,4\r", 3), ("a,b\n1,2\n3\r,4,5", 3),
     ('a,b\n"1\n\r\n",2\n3,4\r\r\n', 5)],
)  # fmt: skip
def test_a_bare_carriage_return_is_refused_with_its_line(tmp_path, text, line):
    path = write(tmp_path / "a.csv", text)
    fails(lambda: texts_of(source(path), "a"), f"{path}:{line}: a carriage return", "line feed")


def test_a_carriage_return_in_quotes_is_kept(tmp_path):
    path = write(tmp_path / "a.csv", 'a,b\r\n"x\ry","z\r"\r\n')
    assert texts_of(source(path), "a") == ["x\ry"] and texts_of(source(path), "b") == ["z\r"]


def test_a_ragged_row_of_a_later_chunk_is_named_with_its_line(tmp_path, small_chunks):
    path = write(tmp_path / "a.csv", "a,b\n" + '1,"2\n3"\n' * 20 + "\n4,5,6\n7,8\n")
    fails(lambda: texts_of(source(path), "a"), f"{path}:43: a row of 3 values under a header of 2")


def test_a_long_row_is_named(tmp_path, small_chunks):
    path = write(tmp_path / "a.csv", "a,b\n1,2\n" + "x" * 200 + ",y\n")
    fails(lambda: texts_of(source(path), "a"), f"{path}:3: a row is longer than")


def test_a_value_longer_than_the_csv_module_takes_is_read(tmp_path):
    path = write(tmp_path / "a.csv", f'"{"h" * 200_000}",b\n{"x" * 200_000},y\n')
    assert texts_of(source(path), "b") == ["y"]
    ragged = write(tmp_path / "b.csv", f"a,b\n{'x' * 200_000},y\n1\n")
    fails(lambda: texts_of(source(ragged), "a"), f"{ragged}:3: a row of 1 values")
