"""Reading one step ahead, writing one step behind."""

from __future__ import annotations

import hashlib
import threading

import pyarrow as pa
import pytest
from blake3 import blake3

from tokencache.streams import Writer, ahead


def test_items_come_in_order_and_one_ahead():
    made = []

    def items():
        for number in range(5):
            made.append((number, threading.current_thread().name))
            yield number

    with ahead(items()) as found:
        assert list(found) == list(range(5))
    assert all(name.startswith("reader") for _, name in made)


def test_no_more_than_one_item_is_made_ahead():
    made = []
    with ahead(made.append(n) for n in range(9)) as found:
        next(found)
    assert len(made) == 2


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
