"""Sources that somebody replaces, cuts or writes over while they are planned and tokenized."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import make_tokenizer
from helpers.workflow import rows

from .trials import Fault, Trials, What, copied, difference, half_published, tree

ALL = "trust.actions:everything"


def jsonl(found: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in found).encode()


def csv(found: list[dict[str, Any]]) -> bytes:
    lines = [f'{row["text"]!r},"{row["n"]}"\n'.replace("'", "") for row in found]
    return ("text,n\n" + "".join(lines)).encode()


def columnar(found: list[dict[str, Any]], write: Callable[[pa.Table, Any], None]) -> bytes:
    sink = pa.BufferOutputStream()
    write(pa.Table.from_pylist(found), sink)
    return sink.getvalue().to_pybytes()


def arrow(found: list[dict[str, Any]]) -> bytes:
    def write(table: pa.Table, sink: Any) -> None:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=20)

    return columnar(found, write)


FORMATS = {
    "jsonl": jsonl,
    "jsonl.gz": lambda found: gzip.compress(jsonl(found), mtime=0),
    "jsonl.zst": lambda found: pa.Codec("zstd").compress(jsonl(found), asbytes=True),
    "json": lambda found: json.dumps(found).encode(),
    "csv": csv,
    "txt": lambda found: "\n".join(row["text"] for row in found).encode() + b"\n",
    "parquet": lambda found: columnar(found, lambda t, s: pq.write_table(t, s, row_group_size=20)),
    "arrow": arrow,
}
WHATS = (What.REPLACE, What.CUT, What.REWRITE)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sources of each format, and others by the side of them."""
    folder = tmp_path_factory.mktemp("changes") / "w"
    make_tokenizer("bos_eos", folder / "tokenizer")
    texts = [{"text": row["prompt"], "n": str(n)} for n, row in enumerate(rows(150))]
    # As long, so that no size tells one from the other.
    others = [{"text": row["text"][::-1].strip() or "x", "n": row["n"]} for row in texts]
    for format, write in FORMATS.items():
        (folder / f"data.{format}").write_bytes(write(texts))
        (folder / f"other.{format}").write_bytes(write(others))
        config = {
            "shard_size": 2048,
            "models": {"one": {"tokenizer": "tokenizer"}},
            "datasets": {"qa": {"files": f"data.{format}", "document": {"text": "text"}}},
            "max_length": [32],
        }
        (folder / f"{format}.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_sources_changed(net, trials: Trials, start: Path):
    """What is made is that of the one or the other, whole, or there is a message."""
    for format in net.some(list(FORMATS), 4):
        known, count = {}, 0
        for name in ("data", "other", "half"):
            with copied(start) as folder:
                source = folder / f"data.{format}"
                if name == "other":
                    (folder / f"other.{format}").replace(source)
                elif name == "half":
                    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
                watched = Fault(What.CUT, 0, str(source))
                ended = trials.run(folder, ALL, f"{format}.yaml", fault=watched)
                known[name] = tree(folder) if ended.fine else None
                count = count or ended.calls
                assert ended.fine or (name == "half" and ended.told), (format, ended)
        for what in WHATS:
            for at in net.some(range(1, count + 1), 1, 10):
                with copied(start) as folder:
                    source, other = folder / f"data.{format}", folder / f"other.{format}"
                    fault = Fault(what, at, str(source), str(other))
                    ended = trials.run(folder, ALL, f"{format}.yaml", fault=fault)
                    found = tree(folder)
                    wanted = [made for made in known.values() if made]
                    # cache.json also tells how large the file was, which another moment decided.
                    whole = any(not difference(_rows(found), _rows(made)) for made in wanted)
                    # Of a file that was read half before and half after, there may be token
                    # shards, whose keys say so; there is no cache.
                    everything = {n: data for made in wanted for n, data in made.items()}
                    found = {n: d for n, d in found.items() if not n.startswith("cache/tokens/")}
                    wrong = half_published(found, everything)
                net.check(
                    (ended.fine and whole) or (ended.told and not wrong),
                    f"{format}, {what.name} at touch {at} of {count}: {ended.status} "
                    f"{ended.said[-1500:]}; {wrong}",
                )


def _rows(found: dict[str, bytes | None]) -> dict[str, bytes | None]:
    return {name: data for name, data in found.items() if not name.endswith("/cache.json")}
