import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.datafiles import (
    fails,
    jsonl,
    packed,
    pieces,
    source,
    write,
    write_arrow,
    write_columnar,
)

from tokencache.sources import find
from tokencache.sources import read as sources
from tokencache.sources.source import Piece

# Digests


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_units_say_nothing_of_where_they_lie(tmp_path, kind):
    suffix = ".parquet" if kind == "parquet" else ".arrow"
    texts = [f"text {i}" for i in range(40)]

    def units(name, texts):
        parts = [texts[i : i + 10] for i in range(0, len(texts), 10)]
        table = pa.concat_tables(pa.table({"text": part, "n": part}) for part in parts)
        table = table.replace_schema_metadata({"made": name})
        found = source(write_columnar(tmp_path / f"{name}{suffix}", kind, table, 10))
        return found, sources.units(found)

    found, base = units("base", texts)
    _, longer = units("longer", [*texts, *["more"] * 10])
    _, first = units("first", [*["new"] * 10, *texts])
    _, edited = units("edited", [*texts[:15], "other", *texts[16:]])
    assert len(base) == len({digest for _, digest in base}) == 4
    assert longer[:4] == base and first[1:] == base
    assert [a == b for a, b in zip(base, edited, strict=True)] == [True, False, True, True]
    for start, stop in ((0, 4), (1, 3), (3, 4), (0, 0)):
        digests = [digest for _, digest in base[start:stop]]
        assert sources.digest(Piece(found, start, stop)) == sources.digest_of_units(digests)


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_a_dictionary_belongs_to_its_batches(tmp_path, kind):
    digests = []
    for values in (["a", "b"], ["a", "c"]):
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(values))
        path = write_arrow(
            tmp_path / f"{values}.arrow", pa.table({"t": column}), 2, kind == "stream"
        )
        digests.append([digest for _, digest in sources.units(source(path))])
    assert set(digests[0]).isdisjoint(digests[1])


def test_the_schema_belongs_to_a_unit(tmp_path):
    digests = set()
    for number, name in enumerate(("a", "b")):
        for kind, suffix in (("parquet", ".parquet"), ("file", ".arrow")):
            path = write_columnar(tmp_path / f"{number}{suffix}", kind, pa.table({name: ["x"]}), 1)
            digests.update(digest for _, digest in sources.units(source(path)))
    assert len(digests) == 4


# A file that changes


KINDS = ["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz", "a.parquet", "a.arrow"]


def make(path, texts):
    table = pa.table({"text": texts})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=100)
    elif path.suffix == ".arrow":
        write_arrow(path, table, 100)
    elif path.suffix == ".json":
        write(path, json.dumps(table.to_pylist()))
    elif path.suffix in (".csv", ".txt"):
        write(path, "text\n" + "\n".join(texts) + "\n")
    else:
        data = jsonl(texts).encode()
        write(path, packed(data, path.suffix))
    return source(path)


@pytest.mark.parametrize("read", [sources.read_text, sources.read_rows])
@pytest.mark.parametrize("name", KINDS)
def test_other_bytes_than_planned_are_refused(tmp_path, name, read):
    found = make(tmp_path / name, ["one", "two"] * 200)
    [(piece, key)] = pieces(found)
    assert sources.digest(piece) == key
    list(read(piece, ["text"], key))
    make(tmp_path / name, ["one", "twi"] * 200)
    fails(lambda: list(read(piece, ["text"], key)), found.path, "changed while", "run snakemake")


@pytest.mark.parametrize("name", KINDS)
def test_a_change_while_reading_is_noticed(tmp_path, name):
    found = make(tmp_path / name, ["one", "two"] * 2000)
    [(piece, key)] = pieces(found)
    reading = sources.read_text(piece, ["text"], key)
    next(reading)
    os.utime(found.path, ns=(0, 0))
    fails(lambda: list(reading), found.path, "changed while it was read")
    reading = sources.read_rows(piece, ["text"], key)
    next(reading)
    os.unlink(found.path)
    fails(lambda: list(reading), found.path, "is gone")


@pytest.mark.parametrize("name", KINDS)
def test_what_broke_with_the_change_is_called_a_change(tmp_path, name):
    found = make(tmp_path / name, ["one", "two"] * 200)
    [(piece, key)] = pieces(found)
    write(tmp_path / name, b'{"text": \xff')
    fails(lambda: list(sources.read_text(piece, ["text"], key)), found.path, "changed while")


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_gone_is_named(tmp_path, name):
    found = make(tmp_path / name, ["one"])
    [(piece, key)] = pieces(found)
    os.unlink(found.path)
    for run in (
        lambda: list(sources.read_text(piece, ["text"], key)),
        lambda: list(sources.read_rows(piece, ["text"], key)),
        lambda: sources.digest(piece),
    ):
        fails(run, found.path, "is gone")


# Finding


def names(groups, root):
    return [[os.path.relpath(s.path, root) for s in group] for group in groups]


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jsonl", "a.JSONL", "sub/c.csv.gz", "sub/deep/d.tsv", "e.txt.zst", "f.parquet"):
        write(tmp_path / name, "x")
    for name in (
        ".hidden.jsonl", ".git/x.json", "README.md", "dataset_info.json", "sub/state.json",
        "dataset_dict.json", "cache-0a1b.arrow", "fetched.json", "sub/.x/y.jsonl",
    ):  # fmt: skip
        write(tmp_path / name, "x")
    return tmp_path


def test_a_folder_means_its_data_files(folder):
    groups = find.find([str(folder)], "files")
    assert names(groups, folder) == [
        ["a.JSONL", "b.jsonl", "e.txt.zst", "f.parquet", "sub/c.csv.gz", "sub/deep/d.tsv"]
    ]
    facts = [(s.format, s.compression) for s in groups[0]]
    assert facts == [
        ("jsonl", None), ("jsonl", None), ("text", "zst"), ("parquet", None), ("csv", "gz"),
        ("tsv", None),
    ]  # fmt: skip


def test_patterns_stay_in_their_order(folder):
    given = ["b.jsonl", "*.jsonl", "**/*.csv*", "sub", "s*"]
    groups = find.find([str(folder / g) for g in given], "files")
    assert names(groups, folder) == [
        ["b.jsonl"],
        ["b.jsonl"],
        ["sub/c.csv.gz"],
        ["sub/c.csv.gz", "sub/deep/d.tsv"],
        ["sub/c.csv.gz", "sub/deep/d.tsv"],
    ]


def test_links_in_a_circle_end(folder):
    (folder / "sub" / "loop").symlink_to(folder)
    assert len(find.find([str(folder)], "files")[0]) == 6


def test_a_file_named_like_a_pattern_is_itself(tmp_path):
    path = write(tmp_path / "a[1].jsonl", "{}")
    assert source(path).path == path


def test_a_format_that_is_set_holds_for_any_suffix(tmp_path):
    path = write(tmp_path / "page.md", "# x")
    assert source(path, "text").format == "text"
    assert source(tmp_path, "text").path == path
    assert source(write(tmp_path / "a.tsv", "x"), "csv").format == "tsv"
    assert source(write(tmp_path / "a.gz", "x"), "jsonl").compression == "gz"


@pytest.mark.parametrize(
    ("pattern", "format", "said"),
    [
        ("none.jsonl", "auto", ["there is no file or folder"]),
        ("*.none", "auto", ["nothing matches", "correct the pattern"]),
        ("a.xyz", "auto", ["unknown suffix '.xyz'", ".parquet", "set format:"]),
        ("plain", "auto", ["no suffix", "set format:"]),
        ("empty", "auto", ["has no data files", ".jsonl", "set format:"]),
        ("b.parquet.gz", "auto", ["parquet is read unpacked only", "unpack"]),
        ("a.xyz", "folder", ["unknown format 'folder'", "known: jsonl, json, csv"]),
        ("dangling.jsonl", "auto", ["dangling.jsonl is not a readable file", "dangling link"]),
        ("pipe.jsonl", "auto", ["is not a readable file"]),
    ],
)
def test_what_can_not_be_found_names_the_key(tmp_path, pattern, format, said):
    for name in ("ok.jsonl", "a.xyz", "plain", "b.parquet.gz"):
        write(tmp_path / name, "x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling.jsonl").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jsonl")
    patterns = [str(tmp_path / "ok.jsonl"), str(tmp_path / pattern)]
    if format != "auto":
        patterns[0] = patterns[1]
    key = f"datasets.qa.files.{0 if format != 'auto' else 1}: "
    fails(lambda: find.find(patterns, "datasets.qa.files", format), key, *said)


SPLITS = ("test", "train", "validation")


@pytest.fixture
def saved(tmp_path):
    """A DatasetDict as `datasets` saves it, beside other data."""
    for split in SPLITS:
        for name in ("data-00000-of-00001.arrow", "dataset_info.json", "state.json"):
            write(tmp_path / "data/saved" / split / name, "x")
    write(tmp_path / "data/saved/dataset_dict.json", json.dumps({"splits": SPLITS}))
    write(tmp_path / "data/more.arrow", "x")
    return tmp_path


def found_in(folder, pattern, **how):
    groups = find.find([str(folder / pattern)], "datasets.qa.files", **how)
    return [name for group in names(groups, folder) for name in group]


@pytest.mark.parametrize("pattern", ["data", "data/*", "data/**", "data/**/*.arrow"])
def test_of_a_saved_data_set_one_split_is_meant(saved, pattern):
    for split in ("train", "validation"):
        file = f"data/saved/{split}/data-00000-of-00001.arrow"
        assert found_in(saved, pattern, split=split) == ["data/more.arrow", file]
        assert found_in(saved, "data/saved", split=split) == [file]


def test_a_split_that_is_named_is_meant(saved):
    file = "data/saved/test/data-00000-of-00001.arrow"
    for pattern in ("data/saved/test", "data/saved/test/*", "data/saved/test/**", file):
        assert found_in(saved, pattern) == [file]


def test_a_saved_data_set_without_the_split_is_refused(saved):
    (saved / "data/saved/train").rename(saved / "data/saved/training")
    said = ["datasets.qa.files.0: ", "has no split 'train'", "its splits: test, validation"]
    fails(lambda: found_in(saved, "data"), *said)


def test_a_file_that_is_found_twice_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)

    def check(*patterns, **more):
        found = {"files": find.find([*patterns], "files")}
        find.check_once(found | {key: find.find([p], key) for key, p in more.items()})

    check("b.jsonl", "sub", validation="f.parquet")
    for again in ("b.jsonl", "./sub/../b.jsonl", str(folder / "b.jsonl"), "*.jsonl", "."):
        said = "files.2: ", "b.jsonl is found by files.0 already; take it out of one"
        fails(lambda again=again: check("b.jsonl", "sub", again), *said)
    said = "validation.0: ", "b.jsonl is found by files.0 already"
    fails(lambda: check("*.jsonl", validation="b.jsonl"), *said)


@pytest.mark.parametrize("pattern", ["data", "data/*", "data/**", "**/*.json*", "."])
def test_what_the_workflow_writes_is_left_out(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/cache").symlink_to(tmp_path / "elsewhere")
    own = ["data/cache", "data/results", "logs"]
    for name in ("cache/m/d/64-0/cache.json", "results/m/d/64-0/metrics.jsonl", "a.jsonl"):
        write(tmp_path / "data" / name, "{}")
    write(tmp_path / "logs/tokenize/a.json", "{}")
    write(tmp_path / "data/logs/b.json", "{}")
    [found] = find.find([pattern], "files", own=own)
    assert [s.path for s in found] == ["data/a.jsonl", "data/logs/b.json"]


def test_inside_of_what_the_workflow_writes_a_pattern_means_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "results/m/d/64-0/said.jsonl", "{}")
    for pattern in ("results/m", "results/m/**/*.jsonl", "results/m/d/64-0/said.jsonl"):
        assert len(find.find([pattern], "files", own=["results"])[0]) == 1
    said = "files.0: this workflow itself writes to the folder 'results'"
    fails(lambda: find.find(["results"], "files", own=["results"]), said)


@pytest.mark.parametrize("pattern", ["data", "data/**/*.json", "data/*/*/*/*/*.json*", "data/*"])
def test_what_other_configurations_made_is_left_out(tmp_path, monkeypatch, pattern):
    """By its record: a folder of the user's may be called so."""
    monkeypatch.chdir(tmp_path)
    target, key = "64-0123456789ab", "0" * 32
    for name in ("cache.json", "train/state.json", "train/a.json"):
        write(tmp_path / f"data/old/m/d/{target}" / name, "{}")
    for name in ("run.json", "metrics.jsonl"):
        write(tmp_path / f"data/runs/m/d/{target}" / name, "{}")
    for name in (f"tokenizers/{key}/facts.json", f"tokens/{key}/aa/{key}.json"):
        write(tmp_path / "data/old" / name, "{}")
    write(tmp_path / f"data/mine/m/d/{target}/b.json", "{}")
    write(tmp_path / f"data/x/y/z/{key}/c.json", "{}")
    [found] = find.find([pattern], "files", own=["cache"])
    assert [s.path for s in found] == [
        f"data/mine/m/d/{target}/b.json",
        f"data/x/y/z/{key}/c.json",
    ]
    [inside] = find.find([f"data/runs/m/d/{target}/*.jsonl"], "files", own=["cache"])
    assert [os.path.basename(s.path) for s in inside] == ["metrics.jsonl"]


@pytest.mark.parametrize("pattern", ["*.jsonl", "*/x.jsonl"])
def test_what_matches_in_our_own_folders_alone_is_said(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "logs/x.jsonl", "{}")
    write(tmp_path / "x.jsonl", "{}")
    own = "." if pattern == "*.jsonl" else "logs"
    said = f"nothing matches {pattern!r} outside of {own}, which this workflow writes to"
    fails(lambda: find.find([pattern], "files", own=[own, "results"]), said)


def test_looking_for_files_asks_the_disk_a_few_times_for_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(100):
        write(tmp_path / f"data/{number}/a.jsonl", "{}")
    asked = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **how: asked.append(path) or real(path))
    own = ["cache", "results", "logs", ".tokencache", ".snakemake"]
    files = [f"data/{number}/a.jsonl" for number in range(100)]
    assert len(find.find(files, "files", own=own)) == 100
    assert len(asked) == len(own)
    asked.clear()
    assert len(find.find(["data"], "files", own=own)[0]) == 100
    assert len(asked) < 250


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", "{}")
    monkeypatch.setattr(os, "access", lambda *_: False)
    fails(lambda: source(path), "files.0", path, "no permission")
