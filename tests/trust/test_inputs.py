"""Generated files and configurations: a right result, or one message that a user understands."""

from __future__ import annotations

import contextlib
import copy
import csv
import gzip
import io
import json
import signal
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import make_tokenizer
from helpers.datafiles import source, texts_of
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tokencache.config import load as config_files
from tokencache.config.load import load
from tokencache.errors import UserError
from tokencache.plan.resolve import resolve

from .conftest import SEED

LONGEST = 20  # seconds for one input

words = st.text(st.sampled_from('ab "\\,;\n\r\t\x00\x85\u2028é日🙂\ufeff[]{}:'), max_size=12)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=True), words, st.just(10**400)
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)
rows = st.fixed_dictionaries(
    {"text": st.one_of(words, words, words, values)}, optional={"n": values, "": values}
)
ends = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\n\n", " ", "\x0b", ""])


@st.composite
def lines(draw: Callable, line: st.SearchStrategy) -> bytes:
    found = draw(st.lists(st.tuples(line, ends), max_size=8))
    return "".join(a + b for a, b in found).encode("utf-8", "surrogatepass")


json_lines = lines(
    st.one_of(
        rows.map(lambda row: json.dumps(row, ensure_ascii=False)),
        rows.map(json.dumps),
        values.map(lambda value: json.dumps(value)),
        words,
        st.just('{"text": "\\ud83d"}'),
        st.integers(1, 5000).map(lambda n: "[" * n),
    )
)
cells = st.one_of(words, words.map(lambda word: '"' + word.replace('"', '""') + '"'))
separated = lines(st.lists(cells, min_size=1, max_size=3).map(",".join)).map(
    lambda data: b"text,n\n" + data
)


def columnar(write: Callable[[pa.Table, Any], Any]) -> st.SearchStrategy[bytes]:
    types = st.sampled_from([
        pa.string(), pa.large_string(), pa.binary(), pa.int64(), pa.float64(), pa.bool_(),
        pa.list_(pa.string()), pa.timestamp("us"), pa.date32(), pa.decimal128(9, 2), pa.null(),
        pa.dictionary(pa.int32(), pa.string()), pa.struct([("a", pa.string())]),
    ])  # fmt: skip

    def table(kind: pa.DataType, given: list[Any]) -> bytes:
        try:
            column = pa.array(given, kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            column = pa.nulls(len(given), kind)
        sink = pa.BufferOutputStream()
        write(pa.table({"text": column, "n": pa.nulls(len(given))}), sink)
        return sink.getvalue().to_pybytes()

    return st.builds(table, types, st.lists(scalars, max_size=5))


def write_arrow(table: pa.Table, sink: Any) -> None:
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def write_stream(table: pa.Table, sink: Any) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


FORMATS = {
    "jsonl": json_lines,
    "json": st.one_of(
        st.lists(rows, max_size=5).map(lambda found: json.dumps(found).encode()),
        values.map(lambda value: json.dumps(value).encode()),
        json_lines,
    ),
    "csv": separated,
    "tsv": separated.map(lambda data: data.replace(b",", b"\t")),
    "txt": lines(words),
    "parquet": columnar(lambda table, sink: pq.write_table(table, sink)),
    "arrow": st.one_of(columnar(write_arrow), columnar(write_stream)),
    "jsonl.gz": json_lines.map(gzip.compress),
    "jsonl.zst": json_lines.map(lambda d: pa.Codec("zstd").compress(d, asbytes=True)),
}


@st.composite
def spoiled(draw: Callable, whole: st.SearchStrategy[bytes]) -> bytes:
    """Some bytes as they are, cut, with a bit flipped, or with others in them."""
    data = draw(whole)
    how = draw(st.sampled_from(["", "", "cut", "flip", "more"]))
    if not how or not data:
        return data
    at = draw(st.integers(0, len(data) - 1))
    if how == "cut":
        return data[:at]
    if how == "flip":
        return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    return data[:at] + draw(st.binary(max_size=4)) + data[at:]


def expected(format: str, data: bytes) -> list[str] | None:
    """The texts by Python's own readers, where these leave no doubt."""
    try:
        if format == "jsonl.gz":
            format, data = "jsonl", gzip.decompress(data)
        text = data.decode()
        if format == "jsonl" and "\ufeff" not in text:
            found = [json.loads(line) for line in text.split("\n") if line.strip(" \t\r")]
            texts = [row.get("text") for row in found]
        elif format == "csv" and not set(text) & set('\r\x00\ufeff"'):
            table = [row for row in csv.reader(io.StringIO(text)) if row]
            if any(len(row) != 2 for row in table) or table[:1] != [["text", "n"]]:
                return None
            texts = [row[0] for row in table[1:]]
        else:
            return None
    except (ValueError, AttributeError, OSError, EOFError, RecursionError, csv.Error, zlib.error):
        return None
    return texts if all(isinstance(text, str) for text in texts) else None


class TooLong(Exception):
    """An input took longer than any may."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tries(net, what: str, count: int, strategy: st.SearchStrategy, attempt: Callable) -> None:
    """Attempt generated inputs; of what fails, the smallest one is told."""
    phases = [Phase.generate, Phase.shrink]
    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much,
              HealthCheck.large_base_example]  # fmt: skip

    @seed(SEED)
    @settings(max_examples=count, deadline=None, database=None, phases=phases,
              suppress_health_check=health)  # fmt: skip
    @given(strategy)
    def run(one: Any) -> None:
        with bounded(), contextlib.redirect_stderr(io.StringIO()):
            net.tried += 1
            attempt(one)

    try:
        run()
    except Exception:  # whatever it is: that is what must not be
        net.lost.append(f"{what}: {traceback.format_exc()[-2500:]}")


def test_files_that_nobody_would_write(net, tmp_path):
    for format, strategy in FORMATS.items():
        path = tmp_path / f"data.{format}"

        def attempt(data: bytes, path: Path = path, format: str = format) -> None:
            path.write_bytes(data)
            wanted = expected(format, data)
            try:
                found = texts_of(source(path))
            except UserError:
                return
            assert wanted is None or [text or "" for text in found] == wanted

        tries(net, format, 500 if net.full else 15, spoiled(strategy), attempt)


CONFIG = {
    "shard_size": "1 MB",
    "tokenizers": {"own": {"dataset": "a", "vocab_size": 300}},
    "models": {
        "one": {"tokenizer": "tokenizer", "architecture": {"model_type": "llama"}},
        "two": {"tokenizer": "own", "training": {"max_steps": 3}},
    },
    "datasets": {
        "a": {"files": "a.jsonl", "document": {"text": "text"}, "validation": {"fraction": 0.1}},
        "b": {"files": ["b.csv"], "document": {"prompt": "{text} ", "completion": "n"}},
        "c": {"files": "a.jsonl", "document": {"messages": "m", "chat_template": "{{ messages }}"}},
    },
    "max_length": [16],
    "build": [{"model": "one", "dataset": "a"}],
    "training": {"learning_rate": 0.001, "mlflow": True},
}
odd = st.one_of(
    values,
    st.sampled_from([
        "all", "../..", "/", "~", "~nobody/x", "", ".", "a" * 300, "a.jsonl", "*", "[", "{", "{}",
        "{text", "owner/name", "owner/name@" + "0" * 40, -1, 0, 10**30, 1e-400, float("inf"),
        "1 YiB", "\ud800", "{% for", "{{ 1/0 }}", "yes", "on", "12:30", "2020-01-01",
    ]),
)  # fmt: skip


def places(value: Any, above: tuple = ()) -> list[tuple]:
    found = [above] if above else []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += places(value[key], (*above, key))
    return found


@st.composite
def configurations(draw: Callable) -> str:
    """The configuration with up to three values replaced, removed or renamed, or its text cut."""
    config = copy.deepcopy(CONFIG)
    for _ in range(draw(st.integers(0, 3))):
        where = draw(st.sampled_from(places(config)))
        holder = config
        for key in where[:-1]:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
            case "replace":
                holder[where[-1]] = draw(odd)
            case "remove":
                del holder[where[-1]]
            case "add" if isinstance(holder, dict):
                holder[draw(words)] = draw(odd)
        if not places(config):
            break
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=draw(st.booleans()))
    if draw(st.integers(0, 5)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(["", "\t", "&a *a", "? [a, b]\n", ": -", '"']))
        text += draw(words)
    return text


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    make_tokenizer("byte_level", tmp_path / "tokenizer")
    (tmp_path / "a.jsonl").write_text('{"text": "a", "m": [{"role": "user", "content": "b"}]}\n')
    (tmp_path / "b.csv").write_text("text,n\na,1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_configurations_that_nobody_would_write(net, experiment):
    path = experiment / "config.yaml"

    def attempt(text: str) -> None:
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            resolve(load(config_files.read([path]), [path]))
        except UserError as error:
            assert len(str(error)) < 20_000
            str(error).encode()  # it can be printed

    tries(net, "config.yaml", 1500 if net.full else 25, configurations(), attempt)


@st.composite
def data_sets(draw: Callable) -> tuple[str, bytes]:
    format = draw(st.sampled_from(list(FORMATS)))
    return format, draw(spoiled(FORMATS[format]))


def test_plans_of_files_that_nobody_would_write(net, experiment):
    """Without a word on what the rows are, which planning has to find out."""

    def attempt(given: tuple[str, bytes]) -> None:
        format, data = given
        (experiment / f"d.{format}").write_bytes(data)
        config = CONFIG | {"datasets": {"d": {"files": f"d.{format}"}}, "build": "all"}
        del config["tokenizers"], config["training"]
        config["models"] = {"one": CONFIG["models"]["one"]}
        with contextlib.suppress(UserError):
            resolve(load(config))

    tries(net, "plan", 600 if net.full else 15, data_sets(), attempt)
