import json
import os
import random
import shutil
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencache.errors import UserError
from tokencache.sources import find, identity
from tokencache.sources import read as sources
from tokencache.sources.index import Index
from tokencache.sources.source import Source

SHARD = 2000


def row(number, words=None):
    draw = random.Random(number)
    count = draw.randrange(1, 30) if words is None else words
    return json.dumps({"text": " ".join(str(draw.random())[:8] for _ in range(count))}) + "\n"


def rows(count, first=0):
    return [row(number) for number in range(first, first + count)]


def cut(path, data, format="jsonl", sample_by="line", shard_size=SHARD):
    path.write_bytes(data if isinstance(data, bytes) else "".join(data).encode())
    return identity.cut(Source(str(path), format, None, sample_by), shard_size)


def keys(path, data, **how):
    return [shard.key for shard in cut(path, data, **how)]


def unlike(old, new):
    """How many shards of the new there are between the first and the last that differ."""
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    end = 0
    while end < min(len(old), len(new)) - same and old[-1 - end] == new[-1 - end]:
        end += 1
    return len(new) - same - end


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A file's settled state: an index keeps nothing about files that changed just now."""
    later(monkeypatch, 60)

    def made(name, data):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else "".join(data).encode())
        age(path)
        return path

    return made


def later(monkeypatch, seconds):
    """Nothing else moves a file's time of change into the past."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + int(seconds * 1e9))


def age(path, seconds=60):
    then = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(then, then))


def found(path):
    return find.find([str(path)], "files")[0]


# Cuts


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(max_size=400)
    | st.lists(st.sampled_from([b"\n", b"\n\n", b"a", b"bc" * 20]), max_size=60).map(b"".join),
    shard_size=st.integers(2, 200),
    how=st.sampled_from([("jsonl", "line"), ("text", "line"), ("text", "paragraph")]),
)
def test_cuts_part_any_file_without_gap_or_overlap(tmp_path_factory, data, shard_size, how):
    path = tmp_path_factory.getbasetemp() / "any"
    shards = cut(path, data, *how, shard_size=shard_size)
    assert b"".join(data[s.piece.start : s.piece.stop] for s in shards) == data
    separator = b"\n\n" if how[1] == "paragraph" else b"\n"
    for shard in shards:
        part = data[shard.piece.start : shard.piece.stop]
        assert part and shard.bytes == len(part)
        assert part.endswith(separator) or shard is shards[-1]
        assert sources.digest(shard.piece) == shard.key


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("\n\r ab"), max_size=60), st.integers(2, 20))
def test_rows_are_the_same_however_text_is_cut(tmp_path_factory, text, shard_size):
    path = tmp_path_factory.getbasetemp() / "text"
    for sample_by in ("line", "paragraph"):
        read = []
        for size in (shard_size, 1 << 20):
            shards = cut(path, text.encode(), "text", sample_by, size)
            tables = [t for s in shards for t in sources.read_text(s.piece, ["text"], s.key)]
            read.append([value for t in tables for value in t["text"].to_pylist()])
        assert read[0] == read[1]


@pytest.mark.parametrize("words", [None, 1, 100])
def test_shards_have_about_the_size_that_is_asked_for(tmp_path, words):
    data = [row(number, words) for number in range(3000)]
    shards = cut(tmp_path / "a", data, shard_size=10_000)
    longest = max(map(len, data))
    sizes = [shard.bytes for shard in shards]
    assert max(sizes) <= 40_000 + longest
    assert min(sizes[:-1]) >= 5_000
    assert 7_000 < sum(sizes) / len(sizes) < 16_000


def test_equal_rows_are_cut_all_the_same(tmp_path):
    shards = cut(tmp_path / "a", ["same\n"] * 10_000)
    assert max(shard.bytes for shard in shards) <= 4 * SHARD + 5


def test_a_file_without_line_ends_is_one_shard(tmp_path):
    assert len(cut(tmp_path / "a", b"x" * 100_000)) == 1


def test_what_can_not_be_cut_is_one_shard(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"".join(r.encode() for r in rows(500)))
    for how in (("jsonl", "gz", "line"), ("csv", None, "line"), ("text", None, "document")):
        [shard] = identity.cut(Source(str(path), *how), SHARD)
        assert shard.piece.stop == path.stat().st_size
        assert sources.digest(shard.piece) == shard.key


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.sampled_from('\n\r ab",{}\ufeff'), min_size=1, max_size=40),
    st.integers(2, 20),
    st.sampled_from(
        [("jsonl", "line"), ("json", "line"), ("csv", "line"), ("text", "line"),
         ("text", "paragraph"), ("text", "document")]
    ),
)  # fmt: skip
def test_the_last_newline_changes_a_key_only_where_it_changes_a_row(
    tmp_path_factory, text, shard_size, how
):
    path, found = tmp_path_factory.getbasetemp() / "ends", []
    for data in (text, text + "\n"):
        shards = cut(path, data, *how, shard_size=shard_size)
        assert [sources.digest(shard.piece) for shard in shards] == [s.key for s in shards]
        try:
            read = [row for s in shards for rows in rows_of(s) for row in rows]
        except UserError as error:
            read = str(error)
        found.append(([shard.key for shard in shards], read))
    (one, of_one), (other, of_other) = found
    if one == other:
        assert of_one == of_other or (isinstance(of_one, str) and isinstance(of_other, str))
    elif how[1] != "document":
        assert text[-1] in "\n\r"


def rows_of(shard):
    return sources.read_rows(shard.piece, sources.columns(shard.piece.source), shard.key)


# What an edit changes


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 599), st.sampled_from(["change", "insert", "remove"]))
def test_an_edit_changes_the_shards_around_it_alone(tmp_path_factory, at, edit):
    path = tmp_path_factory.getbasetemp() / "edited"
    data = rows(600)
    before = cut(path, data)
    offset = len("".join(data[:at]))
    if edit == "remove":
        del data[at]
    else:
        data[at : at + (edit == "change")] = [row(10_000 + at)]
    after = cut(path, data)
    old, new = [s.key for s in before], [s.key for s in after]
    assert len(old) > 30
    untouched = [s.key for s in before if s.piece.stop <= offset]
    assert new[: len(untouched)] == untouched
    # Where cuts lie apart by then, they meet again at the first row that both choose.
    assert unlike(old, new) <= 8


def test_most_edits_change_one_shard_or_its_neighbour_too(tmp_path):
    data = rows(600)
    before = keys(tmp_path / "a", data)
    changed = []
    for at in range(0, 600, 12):
        edited = [*data[:at], row(10_000 + at), *data[at + 1 :]]
        changed.append(unlike(before, keys(tmp_path / "a", edited)))
    changed.sort()
    assert changed[0] >= 1
    assert changed[len(changed) // 2] == 1
    assert changed[len(changed) * 9 // 10] <= 3


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 300))
def test_appended_rows_change_the_last_shard_alone(tmp_path_factory, count, more):
    path = tmp_path_factory.getbasetemp() / "appended"
    before = keys(path, rows(count))
    after = keys(path, rows(count + more))
    assert after[: len(before) - 1] == before[:-1]
    assert (after == before) == (more == 0)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_appended_units_change_the_last_shard_alone(tmp_path, kind):
    path = tmp_path / f"a.{kind}"

    def made(count):
        tables = [pa.table({"text": rows(20, 20 * number)}) for number in range(count)]
        table = pa.concat_tables(tables)
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=20)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
                out.write_table(table)
        shards = identity.cut(Source(str(path), kind, None, "line"), 3 * 4000)
        assert [s.piece.start for s in shards[1:]] == [s.piece.stop for s in shards[:-1]]
        assert (shards[0].piece.start, shards[-1].piece.stop) == (0, count)
        for shard in shards:
            assert sources.digest(shard.piece) == shard.key
        return [shard.key for shard in shards]

    before, after = made(30), made(35)
    assert len(before) > 3
    assert after[: len(before) - 1] == before[:-1] and after != before


def test_shards_of_equal_bytes_have_equal_keys(tmp_path):
    data = rows(300)
    assert keys(tmp_path / "a", data) == keys(tmp_path / "b", data)


# The index


class Reads:
    """Counts the times that sources are hashed and looked into."""

    def __init__(self, monkeypatch):
        self.count = 0
        monkeypatch.setattr(identity, "look", self._counted(identity.look))

    def _counted(self, real):
        def counted(*args):
            self.count += 1
            return real(*args)

        return counted


@pytest.fixture
def reads(monkeypatch):
    return Reads(monkeypatch)


def parse(path, folder, shard_size=SHARD):
    """One parse of the workflow: shards' keys and columns by file."""
    with Index(folder / "index.sqlite") as index:
        cuts, columns = identity.shards(found(path), shard_size, index, "qa")
    return [[s.key for s in shards] for shards in cuts], columns


def test_the_second_parse_reads_nothing(old, tmp_path, reads, monkeypatch):
    (tmp_path / "data").mkdir()
    old("data/a.jsonl", rows(200))
    old("data/b.jsonl", rows(200, 500))
    first = parse(tmp_path / "data", tmp_path)
    assert reads.count == 2 and first[1] == [["text"], ["text"]]

    def opened(path, *args, **more):
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr("builtins.open", opened)
    assert parse(tmp_path / "data", tmp_path) == first
    assert reads.count == 2


def test_pieces_from_the_index_are_of_the_file_that_was_asked_for(old, tmp_path):
    path = old("a.jsonl", rows(200))
    parse(path, tmp_path)
    index = Index(tmp_path / "index.sqlite")
    [cuts], _ = identity.shards(found(path), SHARD, index, "qa")
    assert cuts == identity.cut(found(path)[0], SHARD)


def test_moving_a_file_keeps_its_keys(old, tmp_path):
    path = old("a.jsonl", rows(200))
    first = parse(path, tmp_path)
    path.rename(tmp_path / "b.jsonl")
    assert parse(tmp_path / "b.jsonl", tmp_path) == first


def test_other_contents_of_the_same_size_and_time_are_seen(old, tmp_path):
    path = old("a.jsonl", rows(200))
    first, about = parse(path, tmp_path), path.stat()
    other = path.read_bytes().replace(b"1", b"2")
    path.write_bytes(other)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    assert parse(path, tmp_path) != first


def test_touching_or_copying_a_file_keeps_its_keys(old, tmp_path, reads):
    path = old("a.jsonl", rows(200))
    first = parse(path, tmp_path)
    age(path, 30)
    assert parse(path, tmp_path) == first
    assert reads.count == 2
    shutil.copy(path, tmp_path / "c.jsonl")
    assert parse(tmp_path / "c.jsonl", tmp_path) == first


def test_an_edit_is_seen_and_its_undoing_too(old, tmp_path):
    data = rows(200)
    first = parse(old("a.jsonl", data), tmp_path)
    changed = parse(old("a.jsonl", [*data[:-1], row(9999)]), tmp_path)
    assert changed != first
    assert parse(old("a.jsonl", data), tmp_path) == first


def test_how_a_file_is_read_and_cut_belongs_to_what_is_known(old, tmp_path, reads):
    path = old("a.txt", rows(200))
    index = Index(tmp_path / "index.sqlite")
    for sample_by in ("line", "paragraph", "document"):
        for size in (SHARD, 2 * SHARD):
            how = find.find([str(path)], "files", sample_by=sample_by)[0]
            identity.shards(how, size, index, "qa")
    assert reads.count == 6


def test_a_file_that_changed_just_now_is_not_remembered(tmp_path, reads, monkeypatch):
    """Within a tick of its times it can change again, at the same size."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(rows(50)))
    parse(path, tmp_path)
    parse(path, tmp_path)
    assert reads.count == 2
    later(monkeypatch, 3)
    parse(path, tmp_path)
    parse(path, tmp_path)
    assert reads.count == 3


def test_a_long_look_at_a_new_file_is_not_remembered(tmp_path, monkeypatch):
    """It is the look's start that must be past the last change, not its end."""
    path = tmp_path / "a"
    path.write_text("x")
    index = Index(tmp_path / "index.sqlite")
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + shift)
    shift = 0

    def slow():
        nonlocal shift
        shift = 10**10
        return "slow"

    assert index.recall([path], "look", slow) == "slow"
    shift = 10**11
    assert index.recall([path], "look", lambda: "again") == "again"
    assert index.recall([path], "look", lambda: "not any more") == "again"


def test_a_file_that_was_copied_just_now_is_not_remembered(tmp_path):
    """With the times of another file, as `cp -p` does."""
    path = tmp_path / "a"
    path.write_bytes(b"x")
    age(path)
    index = Index(tmp_path / "index.sqlite")
    assert index.recall([path], "look", lambda: "one") == "one"
    assert index.recall([path], "look", lambda: "two") == "two"


def test_a_file_that_changes_while_it_is_looked_at_is_not_remembered(old, tmp_path):
    path = old("a", b"x")
    index = Index(tmp_path / "index.sqlite")
    before = path.stat()

    def changing():
        path.write_bytes(b"yy")
        return "mixed"

    assert index.recall([path], "look", changing) == "mixed"
    path.write_bytes(b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert index.recall([path], "look", lambda: "x") == "x"


def test_the_index_is_written_at_the_end_alone(old, tmp_path):
    path = old("a", b"x")
    with Index(tmp_path / "index.sqlite") as index:
        index.recall([path], "look", lambda: 1)
        with Index(tmp_path / "index.sqlite") as other:
            assert other.recall([path], "look", lambda: 2) == 2
    assert Index(tmp_path / "index.sqlite").recall([path], "look", lambda: 3) == 1


def test_whole_files_are_remembered_by_content(old, tmp_path):
    one, two = old("a", b"x"), old("b", b"x")
    index = Index(tmp_path / "index.sqlite")
    digests = identity.file_digests([str(one), str(two)], index)
    assert digests[0] == digests[1] != identity.file_digests([str(old("c", b"y"))], index)[0]
