"""Data sets fetched through `datasets`, from a folder on disk."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.datafiles import fails

from tokencache.base import limits
from tokencache.base.hashing import hash_file
from tokencache.config.references import Reference
from tokencache.config.schema import Dataset
from tokencache.documents import render
from tokencache.documents.recipe import recipe_of
from tokencache.errors import UserError
from tokencache.sources import hub as fetch
from tokencache.sources import hub_files, read


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


ROWS = [
    {"text": f"row {n} 🙂" if n % 5 else None, "messages": [{"role": "user", "content": str(n)}]}
    for n in range(23)
]


def folder_of(tmp_path, kind="jsonl", rows=ROWS, split="train"):
    folder = tmp_path / "dataset"
    folder.mkdir(exist_ok=True)
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        name = f"{split}-{number:05d}-of-00002.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(part), folder / name)
        else:
            lines = [json.dumps(row) + "\n" for row in part]
            (folder / name).write_text("".join(lines), encoding="utf-8")
    return folder


def wanted(path, split="train", num_shards=4, name=None):
    """The plan's entry."""
    reference = Reference(path=str(path))
    return {
        "identity": hub_files.identity(reference, lambda files: list(map(hash_file, files)))
        if os.path.exists(path)
        else [],
        "reading": hub_files.reading(),
        "key": "k", "dataset": "qa", "name": name, "split": split, "num_shards": num_shards,
        "reference": {"path": str(path), "hub": None, "revision": None},
    }  # fmt: skip


def pieces(out, count):
    found = [read.Source(f"{out}/{n:05d}.arrow", "arrow", None, "line") for n in range(count)]
    return [fetch.piece(str(out), source) for source in found]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_are_those_of_the_data_set_in_order(tmp_path, kind):
    out = tmp_path / "fetched" / "k"
    fetch.fetch(wanted(folder_of(tmp_path, kind)), out)
    records = {fetch.FETCHED, fetch.KEY_FILE}
    assert set(os.listdir(out)) == {*(f"{n:05d}.arrow" for n in range(4))} | records
    assert os.listdir(out.parent) == ["k"], "nothing temporary is left"
    texts, messages, sizes = [], [], []
    for piece, digest in pieces(out, 4):
        tables = list(read.read_text(piece, ["text"], digest))
        sizes.append(sum(table.num_rows for table in tables))
        texts += [text for table in tables for text in table["text"].to_pylist()]
        found = [row for rows in read.read_rows(piece, ["messages"], digest) for row in rows]
        messages += [row["messages"] for row in found]
    assert texts == [row["text"] for row in ROWS]
    assert messages == [row["messages"] for row in ROWS]
    assert sizes == [6, 6, 6, 5]


CARD = """---
license: mit
configs:
- config_name: default
  data_files: {}
---
# A data set
"""


def test_a_description_that_names_files_is_part_of_what_a_folder_is(tmp_path):
    folder = folder_of(tmp_path)
    found = [wanted(folder)["identity"]]
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"):
        (folder / "README.md").write_text(CARD.format(name))
        found.append(wanted(folder)["identity"])
        fetch.fetch(wanted(folder, num_shards=1), tmp_path / name)
        ((piece, digest),) = pieces(tmp_path / name, 1)
        (table,) = read.read_text(piece, ["text"], digest)
        half = ROWS[:11] if name.startswith("train-00000") else ROWS[11:]
        assert table["text"].to_pylist() == [row["text"] for row in half]
    (folder / ".huggingface.yaml").write_text("configs: [{config_name: a, data_files: '*.jsonl'}]")
    found.append(wanted(folder)["identity"])
    assert len({json.dumps(one) for one in found}) == 4
    # What it says to people, and about other things, decides nothing.
    text = CARD.format("train-00001-of-00002.jsonl").replace("mit", "other") + "More.\n"
    (folder / ".huggingface.yaml").unlink()
    (folder / "README.md").write_text(text)
    (folder / ".gitattributes").write_text("x")
    assert wanted(folder)["identity"] == found[2]


@pytest.mark.parametrize("name", [".hidden/a.jsonl", "../a.jsonl"])
def test_files_of_which_no_change_would_be_seen_are_refused(tmp_path, name):
    folder = folder_of(tmp_path)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text('{"text": "a"}\n')
    (folder / "README.md").write_text(CARD.format(name))
    said = ["datasets.qa.hub: the README.md of ", "a.jsonl, which is hidden or elsewhere"]
    fails(lambda: fetch.fetch(wanted(folder), tmp_path / "k"), *said)
    assert not (tmp_path / "k").exists()


def test_a_description_that_is_nested_without_end_is_one_message(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "README.md").write_text(f"---\nconfigs: {'[' * 3000}\n---\n")
    fails(lambda: wanted(folder), f"{folder}/README.md: the YAML in it is nested too deeply")


def test_a_folder_with_links_is_read(tmp_path):
    folder = folder_of(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    blob = folder / "train-00001-of-00002.jsonl"
    blob.rename(tmp_path / "blob")
    blob.symlink_to(tmp_path / "blob")
    fetch.fetch(wanted(tmp_path / "link", num_shards=1), tmp_path / "k")
    ((piece, _),) = pieces(tmp_path / "k", 1)
    assert piece.stop


def test_who_reads_otherwise_than_the_plan_is_for_says_so(tmp_path):
    entry = wanted(folder_of(tmp_path)) | {"reading": "0" * 32}
    fails(lambda: fetch.fetch(entry, tmp_path / "k"), "datasets.qa: `datasets` reads files other")


WEIGHTS = """
import sys
from pathlib import Path
from tokencache.sources import hub as fetch
reference = {"hub": "some/model", "revision": "1" * 40, "path": None}
fetch.fetch_weights({"model": "m", "reference": reference}, Path(sys.argv[1]))
"""


def test_weights_are_published_and_the_users_own_copy_is_left_as_it_is(tmp_path):
    hub = tmp_path / "hub" / "models--some--model"
    (hub / "blobs").mkdir(parents=True)
    blob = hub / "blobs" / "abc"
    blob.write_bytes(b"weights")
    blob.chmod(0o600)
    snapshot = hub / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    (snapshot / "pytorch_model.bin").touch()
    out = tmp_path / "shared" / "weights"
    out.parent.mkdir()
    out.parent.chmod(0o2775)
    given = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", WEIGHTS, out], check=True, env=given)
    names = [p.name for p in sorted(out.iterdir()) if not p.name.startswith(".")]
    assert names == ["manifest.json", "model.safetensors"]
    made = out / "model.safetensors"
    assert made.read_bytes() == b"weights" and not made.is_symlink()
    assert stat.S_IMODE(made.stat().st_mode) & 0o640 == 0o640
    assert stat.S_IMODE(blob.stat().st_mode) == 0o600, "the user's own stays closed"


def test_a_part_of_a_split(tmp_path):
    out = tmp_path / "k"
    fetch.fetch(wanted(folder_of(tmp_path), "train[2:7]", 1), out)
    ((piece, digest),) = pieces(out, 1)
    (table,) = read.read_text(piece, ["text"], digest)
    assert table["text"].to_pylist() == [row["text"] for row in ROWS[2:7]]


def test_fewer_rows_than_files(tmp_path):
    out = tmp_path / "k"
    fetch.fetch(wanted(folder_of(tmp_path, rows=ROWS[1:3]), num_shards=5), out)
    recipe = recipe_of(Dataset(files=["-"]), None, {})
    texts = []
    for piece, digest in pieces(out, 5):
        for batch in render.render(recipe, piece, digest):
            texts += batch.texts.to_pylist()
    assert texts == ["row 1 🙂", "row 2 🙂"]


def test_two_fetches_are_equal_to_the_byte(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, "parquet")
    fetch.fetch(wanted(folder), tmp_path / "one/k")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "another-cache"))
    fetch.fetch(wanted(folder), tmp_path / "two/k")
    for name in os.listdir(tmp_path / "one/k"):
        assert (tmp_path / "one/k" / name).read_bytes() == (tmp_path / "two/k" / name).read_bytes()


def test_many_rows_make_many_batches_and_all_are_checked(tmp_path):
    rows = [{"text": str(n)} for n in range(2500)]
    out = tmp_path / "k"
    fetch.fetch(wanted(folder_of(tmp_path, rows=rows), num_shards=1), out)
    ((piece, digest),) = pieces(out, 1)
    assert piece.stop >= 3
    data = bytearray((out / "00000.arrow").read_bytes())
    data[len(data) // 2] ^= 1
    (out / "00000.arrow").write_bytes(data)
    fails(lambda: list(read.read_text(piece, ["text"], digest)), "run snakemake again")


def test_a_fetched_folder_that_is_gone(tmp_path):
    gone = tmp_path / "gone"
    source = read.Source(f"{gone}/00000.arrow", "arrow", None, "line")
    fails(lambda: fetch.piece(str(gone), source), str(gone), "run snakemake again")


def test_what_cannot_be_had(tmp_path):
    folder = folder_of(tmp_path)
    out = tmp_path / "fetched" / "k"
    for entry, said in [
        (wanted(folder, "test"), "test"),
        (wanted(folder, name="german"), "german"),
        (wanted(folder, "train[zzz]"), "zzz"),
        (wanted(tmp_path / "nowhere"), "nowhere"),
    ]:
        message = fails(lambda entry=entry: fetch.fetch(entry, out), said)
        assert message.startswith("datasets.qa: `datasets` can't load it: ")
        assert not out.exists()
    (folder / "train-00000-of-00002.jsonl").write_text('{"text": "a"}\n{"text": \n')
    message = fails(
        lambda: fetch.fetch(wanted(folder), out), "datasets.qa: `datasets` can't load it"
    )
    assert "JSON" in message, "the reason, not just the step"
    assert not out.exists()


def test_several_processes_fetch_the_same_rows(tmp_path, monkeypatch):
    given = {limits.PROCESSES: 2, limits.WRITER_ROWS: 5}
    monkeypatch.setattr(limits, "_chosen", limits.choose(limits.here(), given))
    folder, out = folder_of(tmp_path), tmp_path / "fetched" / "k"
    fetch.fetch(wanted(folder), out)
    found = [
        text
        for piece, digest in pieces(out, 4)
        for table in read.read_text(piece, ["text"], digest)
        for text in table.column("text").to_pylist()
    ]
    assert found == [row["text"] for row in ROWS]
    (folder / "train-00000-of-00002.jsonl").write_text('{"text": "a"}\n{"text": \n')
    message = fails(lambda: fetch.fetch(wanted(folder), tmp_path / "other"), "JSON")
    assert "Traceback" not in message and "\n" not in message


def test_a_data_set_script_is_refused_with_the_reason(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.py").write_text("raise SystemExit('never run')\n")
    fails(
        lambda: fetch.fetch(wanted(tmp_path / "old"), tmp_path / "k"), "can't load it: ", "script"
    )


def test_what_save_to_disk_wrote_is_refused_with_the_reason(tmp_path):
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="save_to_disk"):
        fetch.fetch(wanted(tmp_path / "saved"), tmp_path / "k")
