"""Reading some steps ahead, writing one step behind."""

from __future__ import annotations

import hashlib
import threading

import pyarrow as pa
import pytest
from blake3 import blake3

from tokencache.base.arrow_io import Writer, ahead


@pytest.mark.parametrize("steps", [1, 3, 9])
def test_items_come_in_order(steps):
    made = []

    def items():
        for number in range(5):
            made.append((number, threading.current_thread().name))
            yield number

    with ahead(items(), steps) as found:
        assert list(found) == list(range(5))
    assert all(name.startswith("reader") for _, name in made)


@pytest.mark.parametrize("steps", [1, 2])
def test_so_many_items_are_made_ahead_and_the_first_before_they_are_asked_for(steps):
    made = []
    with ahead((made.append(n) for n in range(9)), steps):
        pass
    assert len(made) == steps
    with ahead((made.append(n) for n in range(9)), steps) as found:
        next(found)
    assert len(made) == steps + 1 + steps


def test_errors_of_making_come_where_the_item_would():
    def items():
        yield 1
        raise KeyError("two")

    with pytest.raises(KeyError, match="two"), ahead(items()) as found:
        assert next(found) == 1
        next(found)


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_written_is_what_pyarrow_writes(tmp_path, stream):
    batches = [pa.record_batch({"a": pa.array(range(n), pa.int64())}) for n in (3, 100_000, 0)]
    with Writer(tmp_path / "mine", batches[0].schema, stream) as writer:
        for batch in batches:
            writer.write(batch)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(tmp_path / "wanted"), batches[0].schema) as wanted:
        for batch in batches:
            wanted.write_batch(batch)
    data = (tmp_path / "mine").read_bytes()
    assert hashlib.sha256(data).digest() == (
        hashlib.sha256((tmp_path / "wanted").read_bytes()).digest()
    )
    assert writer.checksum() == blake3(data).hexdigest()


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
    with (
        pytest.raises(OSError, match="No space left"),
        Writer("/dev/full", pa.schema({"a": pa.int64()})) as writer,
    ):
        for _ in range(3):
            writer.write(pa.record_batch({"a": range(1_000_000)}))
