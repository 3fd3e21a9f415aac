"""Data files of every format, and what is read from them."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokencache.errors import UserError
from tokencache.sources import identity, read
from tokencache.sources.find import find


def jsonl(texts, **more):
    return "".join(json.dumps({"text": t, "n": i, **more}) + "\n" for i, t in enumerate(texts))


def packed(data, suffix):
    if suffix == ".gz":
        return gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])
    if suffix in (".zst", ".zstd"):
        return pa.Codec("zstd").compress(data, asbytes=True)
    return data


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def source(path, format="auto", sample_by="line"):
    return find([str(path)], "files", format, sample_by)[0][0]


def pieces(found, shard_size=1 << 26):
    return [(s.piece, s.key) for s in identity.cut(found, shard_size)]


def texts_of(found, column="text", shard_size=1 << 26):
    texts = []
    for piece, key in pieces(found, shard_size):
        for table in read.read_text(piece, [column], key):
            assert table.column_names == [column]
            assert table.column(column).type == pa.large_string()
            table.validate(full=True)
            texts += table.column(column).to_pylist()
    return texts


def rows_of(found, columns, shard_size=1 << 26):
    rows = []
    for piece, key in pieces(found, shard_size):
        for batch in read.read_rows(piece, columns, key):
            assert 0 < len(batch) <= 1000
            rows += batch
    return rows


def fails(run, *said):
    """The message of the UserError that it raises, which has each of these in it."""
    with pytest.raises(UserError) as caught:
        run()
    for part in said:
        assert part in str(caught.value)
    return str(caught.value)


def write_arrow(path, table, rows, stream=False):
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return str(path)


def write_columnar(path, kind, table, rows):
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=rows)
        return str(path)
    return write_arrow(path, table, rows, stream=kind == "stream")
