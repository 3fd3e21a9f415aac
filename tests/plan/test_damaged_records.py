"""A record that is damaged is said to be so, by each command that comes across it."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tokencache.base.json_files import write_json
from tokencache.cli import main
from tokencache.errors import UserError
from tokencache.operate import list as list_verb
from tokencache.operate.lib import shared
from tokencache.operate.lib.on_disk import caches, runs_by_cache
from tokencache.plan import costs, ours

KEY = "0123456789ab" + "0" * 20
SHARD = {"bytes": 5, "key": "1" * 32, "tokens": "2" * 32}
CACHE = {
    "key": KEY,
    "rows_key": KEY,
    "model": "one",
    "dataset": "qa",
    "documents": {"train": {"documents": 3}},
    "files": {"train/state.json": {"bytes": 2, "blake3": "3" * 64}},
    "recipe": {"text": ["a"]},
    "settings": {"max_length": 32, "packing": "none", "format": "view"},
    "sources": {"train": [{"path": "data/a.jsonl", "shards": [SHARD]}]},
    "splits": {"train": {"rows": 3, "tokens": 9}},
    "tokenizer": {"key": KEY},
    "versions": {"tokencache": "1"},
}
FACTS = {"key": KEY}
MANIFEST = {"facts.json": {"bytes": 2, "blake3": "3" * 64}}
RUN = {"key": KEY, "model": "one", "dataset": "qa", "max_length": 32, "made_of": {"cache": KEY}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "cache/one/qa/32-0123456789ab/cache.json", CACHE)
    write_json(tmp_path / "results/one/qa/32-0123456789ab/run.json", RUN)
    for name, about in (("facts.json", FACTS), ("manifest.json", MANIFEST)):
        write_json(tmp_path / "cache/tokenizers" / KEY / name, about)
        write_json(tmp_path / "cache/sources" / KEY / name.replace("facts", "fetched"), MANIFEST)
    return tmp_path


def look(folder):
    """All that commands ask of what is there, whatever they do then."""
    [one] = found = caches("cache")
    runs = runs_by_cache(found, "results").get(one.name, [])
    list_verb._row(one, runs), list_verb._about(one, runs), shared.cache_thing(one)
    with suppress(UserError):
        assert all(isinstance(key, str) for key in shared.keys_of(one))
    if needs := shared.needs_of(one):
        assert sum(needs.tokens.values()) >= 0
    measured = costs.Measured("cache")
    costs._cache_bytes(measured, {"model": "one", "dataset": "qa", "packing": "none"}, 3.0)
    ours.why_not_a_cache(one.folder)
    ours.why_not_a_run(folder / "results/one/qa/32-0123456789ab")
    ours.why_not_a_tokenizer(folder / "cache/tokenizers" / KEY)
    ours.why_not_fetched(folder / "cache/sources" / KEY)


RECORDS = [
    "cache/one/qa/32-0123456789ab/cache.json",
    "results/one/qa/32-0123456789ab/run.json",
    f"cache/tokenizers/{KEY}/facts.json",
    f"cache/tokenizers/{KEY}/manifest.json",
    f"cache/sources/{KEY}/manifest.json",
    f"cache/sources/{KEY}/fetched.json",
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: "/".join(path.split("/")[1::2]))
def test_any_flipped_bit_is_no_traceback(folder, record):
    path = folder / record
    whole = path.read_bytes()
    look(folder)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 7
        path.write_bytes(damaged)
        look(folder)


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: "/".join(path.split("/")[1::2]))
@pytest.mark.parametrize("text", ["", "[1]", "7", "null", '"text"', '{"key":', '{"a": 7}'])
def test_another_text_is_no_traceback(folder, record, text):
    (folder / record).write_text(text)
    look(folder)


@pytest.mark.parametrize("key", CACHE)
@pytest.mark.parametrize("value", [None, 7, "text", [7], {"a": 7}, {"a": [7]}, {"a": {"b": 7}}])
def test_any_other_value_is_no_traceback(folder, key, value):
    write_json(folder / RECORDS[0], CACHE | {key: value})
    look(folder)


@pytest.mark.parametrize("name", ['"bytes"', '"documents"', '"tokens"', '"tokencache"', '"rows"'])
def test_a_cache_whose_record_is_damaged_is_listed_and_can_be_cleared(folder, capsys, name):
    (folder / "config.yaml").write_text(
        "models: {one: {tokenizer: t}}\ndatasets: {qa: {files: a}}\nmax_length: 32\n"
    )
    path = folder / RECORDS[0]
    path.write_text(path.read_text().replace(name, f"{name[:-2]}_{name[-1]}"))
    assert main(["list"]) == 0
    assert main(["clear", "one", "--yes"]) == 0
    assert not path.exists() and "Traceback" not in capsys.readouterr().err
