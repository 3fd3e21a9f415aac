"""The index of files on a disk that loses bits: it never tells anything wrong, and never fails."""

import os
import random
import sqlite3
from contextlib import closing, suppress

import pytest

from tokencache.sources import find, identity, index
from tokencache.sources.index import Index

FILES = 12


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Files of many shards and what is found in them, all of it remembered."""
    monkeypatch.setattr(index, "SETTLED_SECONDS", -60.0)
    for number in range(FILES):
        lines = [f'{{"text": "{number}-{line}"}}\n' for line in range(40 * (number + 1))]
        (tmp_path / f"{number}.jsonl").write_text("".join(lines))
    return tmp_path


def parsed(folder, size=200):
    with Index(folder / "index.sqlite") as known:
        return identity.shards(find.find([str(folder)], "files")[0], size, known, "qa")


@pytest.fixture
def read(monkeypatch):
    """The files that were hashed."""
    found, look = [], identity.look

    def counted(source, *more):
        found.append(os.path.basename(source.path))
        return look(source, *more)

    monkeypatch.setattr(identity, "look", counted)
    return found


def test_an_entry_that_is_damaged_is_looked_up_again_alone(data, read, capsys):
    first = parsed(data)
    database = data / "index.sqlite"
    text = database.read_bytes()
    key = first[0][3][0].key.encode()
    assert text.count(key) == 1
    database.write_bytes(text.replace(key, key[::-1]))
    read.clear()
    assert parsed(data) == first and read == ["11.jsonl"]
    assert parsed(data) == first and read == ["11.jsonl"], "it is right again"
    assert "damaged" not in capsys.readouterr().err


def test_another_entry_s_value_is_not_taken(data, read):
    first = parsed(data)
    with closing(sqlite3.connect(data / "index.sqlite")) as database, database:
        ids = [row[0] for row in database.execute("SELECT id FROM entries")]
        swapped = dict(zip(ids, ids[1:] + ids[:1], strict=True))
        rows = database.execute("SELECT * FROM entries").fetchall()
        database.execute("DELETE FROM entries")
        rows = [(swapped[i], value, checksum) for i, value, checksum in rows]
        database.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
    read.clear()
    assert parsed(data) == first and len(read) == FILES


@pytest.mark.parametrize(
    "damage", [lambda t: b"no database" * 1000, lambda t: t[:5000], lambda t: t[:100] + t[7000:]]
)
def test_a_damaged_database_is_put_aside_and_begun_anew(data, read, capsys, damage):
    first = parsed(data)
    database = data / "index.sqlite"
    damaged = damage(database.read_bytes())
    database.write_bytes(damaged)
    assert parsed(data) == first
    assert (data / "index.sqlite.damaged").read_bytes() == damaged
    assert capsys.readouterr().err.count(f"{database} was damaged: it is kept as") == 1
    read.clear()
    assert parsed(data) == first and not read
    assert not capsys.readouterr().err


def test_any_flipped_bit_or_cut_changes_nothing_that_is_found(data, capsys):
    first = parsed(data)
    database, draw = data / "index.sqlite", random.Random(7)
    whole = database.read_bytes()
    # The header and the first page, which say how all is read, more often than the rest.
    places = [draw.randrange(limit) for limit in (100, 4096, len(whole)) for _ in range(60)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        database.write_bytes(flipped if draw.random() < 0.9 else whole[:place])
        for _ in range(2):
            assert parsed(data) == first, place
        for left in data.glob("index.sqlite?*"):
            left.unlink()


def test_a_database_of_a_version_without_checksums_is_not_trusted(data, read):
    with closing(sqlite3.connect(data / "index.sqlite")) as database, database:
        database.execute("CREATE TABLE known (id TEXT PRIMARY KEY, value TEXT)")
    first = parsed(data)
    assert len(read) == FILES
    assert parsed(data) == first and len(read) == FILES
    with closing(sqlite3.connect(data / "index.sqlite")) as database:
        names = [row[0] for row in database.execute("SELECT name FROM sqlite_master")]
    assert names == ["entries"]


def test_a_database_that_is_locked_is_done_without(data, monkeypatch, capsys):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0.1))
    first = parsed(data)
    with closing(connect(data / "index.sqlite")) as database:
        database.execute("BEGIN EXCLUSIVE")
        assert parsed(data) == first
    assert "damaged" not in capsys.readouterr().err and not list(data.glob("*.damaged"))


def test_a_machine_that_is_short_of_memory_puts_no_index_aside(data, monkeypatch, capsys):
    first = parsed(data)

    def short(*_, **__):
        error = sqlite3.OperationalError("out of memory")
        error.sqlite_errorcode = sqlite3.SQLITE_NOMEM
        raise error

    monkeypatch.setattr(sqlite3, "connect", short)
    assert parsed(data) == first
    monkeypatch.undo()
    assert not list(data.glob("*.damaged")) and "damaged" not in capsys.readouterr().err


def test_what_another_process_began_anew_is_not_put_aside(data, monkeypatch, capsys):
    """It does so while this one still opens the damaged database."""
    first = parsed(data)
    database, healthy = data / "index.sqlite", (data / "index.sqlite").read_bytes()
    database.write_bytes(b"damaged" * 999)
    connect = sqlite3.connect

    def late(path, **how):
        connection = connect(path, **how)
        with suppress(sqlite3.DatabaseError):  # now it has the damaged one open
            connection.execute("SELECT 1 FROM entries")
        if not (data / "new").exists():
            (data / "new").write_bytes(healthy)
            os.link(data / "new", data / "newer")
            os.replace(data / "newer", path)
        return connection

    monkeypatch.setattr(sqlite3, "connect", late)
    assert parsed(data) == first
    assert (data / "new").samefile(database) and not list(data.glob("*.damaged"))


def test_where_a_user_may_not_write_their_own_index_takes_what_is_new(data, read, monkeypatch):
    parsed(data)
    shared = (data / "index.sqlite").read_bytes()
    monkeypatch.setattr(index, "_writable", lambda path: "own" in path.parts)
    monkeypatch.setenv("XDG_CACHE_HOME", str(data / "own"))
    read.clear()
    (data / "new.jsonl").write_text('{"text": "new"}\n')
    for looked_at in (["new.jsonl"], []):
        parsed(data)
        assert read == looked_at
        read.clear()
    assert (data / "own/tokencache/index.sqlite").exists()
    assert (data / "index.sqlite").read_bytes() == shared
