"""`tokencache verify` on a real cache folder with real damage."""

import json
import shutil
import threading

import pyarrow as pa
import pytest
from helpers.experiment import CONFIG, Experiment

from tokencache.base import marks
from tokencache.base.hashing import hash_file, key_of
from tokencache.base.json_files import read_json
from tokencache.base.manifest import beside
from tokencache.base.publish import published
from tokencache.config.load import load
from tokencache.errors import UserError
from tokencache.operate.lib import integrity
from tokencache.plan import inventory, ours


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Caches of every kind, one of them a view too, of which the config knows nothing more."""
    made = Experiment.new(tmp_path_factory.mktemp("verify") / "e")
    made.make()
    made.configure(format="view", build=[{"model": "one", "dataset": "packed"}])
    made.make()
    made.configure()
    return made


@pytest.fixture
def experiment(done, tmp_path, monkeypatch):
    monkeypatch.setattr(integrity, "RECHECK_SECONDS", 0)
    return Experiment(shutil.copytree(done.folder, tmp_path / "e"))


def verify(experiment, capsys, *words):
    """The exit status and what is printed as JSON."""
    capsys.readouterr()
    status = experiment.call("verify", "--json", *words)
    return status, json.loads(capsys.readouterr().out)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def view_of(experiment):
    [found] = (experiment.folder / "cache/one/packed").glob("*/view.json")
    return found.parent


def tree(experiment):
    files = (p for p in (experiment.folder / "cache").rglob("*") if p.is_file())
    return {
        str(path.relative_to(experiment.folder)): path.read_bytes()
        for path in files
        if "quarantine" not in path.parts and not path.name.startswith(".")
    }


def test_an_undamaged_folder(experiment, capsys):
    before = tree(experiment)
    status, said = verify(experiment, capsys)
    assert (status, said["damaged"], said["unchecked"]) == (0, [], [])
    assert said["checked"] == {"tokenizer": 1, "token shard": 53, "cache": 6}
    assert experiment.call("verify") == 0
    out, err = capsys.readouterr()
    assert "looked at 1 tokenizer, 53 token shards, 6 caches: " in out
    assert "nothing is damaged" in out and "verify: " in err and "100.0 %" in err
    assert tree(experiment) == before


@pytest.mark.parametrize("change", [flip, cut, lambda path: path.unlink()])
@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("cache", "one/plain/*/train/data-*.arrow"),
        ("cache", "one/plain/*/dataset_dict.json"),
        ("cache", "one/plain/*/cache.json"),
        ("cache", "one/packed/*/train/windows.arrow"),
        ("cache", "one/packed/*/train/token_shards.arrow"),
        ("token shard", "tokens/*/*/*.json"),
        ("tokenizer", "tokenizers/*/tokenizer.json"),
    ],
)
def test_damage_is_found_and_nothing_is_changed(experiment, capsys, change, kind, pattern):
    file = sorted((experiment.folder / "cache").glob(pattern))[0]
    if change is cut and file.name == "cache.json":
        pytest.skip("without its last line's end it says the same")
    change(file)
    before = tree(experiment)
    status, said = verify(experiment, capsys)
    assert status == 1
    [found] = said["damaged"]
    assert found["kind"] == kind and file.name in found["problem"]
    assert (
        str(file)
        .removesuffix(".json")
        .startswith(str(experiment.folder / found["path"]).removesuffix(".arrow"))
    )
    assert tree(experiment) == before


def test_a_token_shard_is_checked_with_what_is_made_of_it(experiment, capsys):
    view = view_of(experiment)
    shards = read_json(view / "cache.json")["sources"]["train"][0]["shards"]
    tokens = experiment.folder / "cache/tokens"
    of_view, gone = (next(tokens.rglob(f"{s['tokens']}.arrow")) for s in shards[:2])
    flip(of_view)
    gone.unlink()
    status, said = verify(experiment, capsys, str(view))
    assert status == 1 and said["checked"]["cache"] == 1
    problems = {found["path"].split("/")[-1]: found["problem"] for found in said["damaged"]}
    assert list(problems) == [of_view.name, gone.name]
    assert "checksum differs" in problems[of_view.name]
    assert "missing, and a view needs it" in problems[gone.name]
    # A dataset needs none, and of another cache nobody asked.
    status, said = verify(experiment, capsys, "cache/one/plain")
    assert (status, said["checked"]["cache"]) == (0, 1)
    assert experiment.call("verify", "cache/one/nothing") == 1
    assert "cache/one/nothing: there is no cache" in capsys.readouterr().err


def test_quarantine_takes_what_is_damaged_out_of_the_way(experiment, capsys):
    view, [tokenizer] = view_of(experiment), (experiment.folder / "cache/tokenizers").iterdir()
    flip(view / "train/windows.arrow")
    cut(tokenizer / "tokenizer.json")
    status, said = verify(experiment, capsys, "--quarantine")
    assert status == 1
    for found in said["damaged"]:
        assert found["fate"] == "in quarantine" and not found["repaired"]
        assert not (experiment.folder / found["path"]).exists()
        assert (experiment.folder / found["quarantine"]).is_dir()
    # Nothing of it is looked at again.
    status, said = verify(experiment, capsys)
    assert (status, said["checked"]) == (0, {"token shard": 53, "cache": 5})
    cache = experiment.folder / "cache"
    assert len(list(inventory.cache_folders(cache))) == 5
    # A record says what it is, so that it may be deleted.
    [away] = (cache / "quarantine").iterdir()
    assert ours.why_not_put_away(away) is None
    with pytest.raises(UserError, match="a model can't be named 'quarantine'"):
        load(CONFIG | {"models": {"quarantine": {"tokenizer": "tokenizer"}}})


def test_repair_makes_again_just_what_is_damaged(experiment, capsys):
    before, view = tree(experiment), view_of(experiment)
    plain = experiment.folder / experiment.cache("plain")
    shards = read_json(plain / "cache.json")["sources"]["train"][0]["shards"]
    [shard] = (experiment.folder / "cache").rglob(f"{shards[1]['tokens']}.arrow")
    flip(shard)
    flip(next(plain.rglob("data-*.arrow")))
    flip(view / "train/rows.arrow")
    marks.pin(plain)
    inodes = {path: (experiment.folder / path).stat().st_ino for path in before}
    status, said = verify(experiment, capsys, "--repair", "--snakemake", "--cores 1")
    assert status == 1  # for the view alone, which the config does not make any more
    fates = {(found["kind"], found["repaired"]): found["fate"] for found in said["damaged"]}
    for kind in ("token shard", "cache"):
        assert "made again, the same bytes; the damaged one is" in fates[kind, True]
    assert "in quarantine; not made again: the present config makes" in fates["cache", False]
    assert "the one that made it is the `config` of .tokencache/plans/" in fates["cache", False]
    after = tree(experiment)
    assert {name: before[name] for name in after} == after
    assert all(view.name in name for name in before.keys() - after.keys())
    made = {path for path in after if (experiment.folder / path).stat().st_ino != inodes[path]}
    of_plain = {path for path in made if path.startswith(str(experiment.cache("plain")))}
    assert of_plain and marks.is_pinned(plain)
    assert made - of_plain == {
        str(path.relative_to(experiment.folder)) for path in (shard, beside(shard))
    }
    assert verify(experiment, capsys)[0] == 0


def test_while_caches_come_and_go(experiment, capsys, monkeypatch):
    """What somebody makes or deletes meanwhile is not taken for damaged."""
    monkeypatch.setattr(integrity, "RECHECK_SECONDS", 0.3)
    cache, stop = experiment.folder / experiment.cache("pairs"), threading.Event()

    def come_and_go():
        for number in range(10**6):
            about = read_json(cache / "cache.json") | {"key": f"{number:012}{0:020}"}
            about["checksum"] = key_of({n: v for n, v in about.items() if n != "checksum"})
            other = cache.with_name(f"64-{number:012}")
            with published(other, folder=True) as made:
                shutil.copytree(cache, made, dirs_exist_ok=True)
                (made / "cache.json").write_text(json.dumps(about))
            shutil.rmtree(other)
            if stop.is_set():
                return

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        found = [verify(experiment, capsys) for _ in range(8)]
    finally:
        stop.set()
        thread.join()
    assert [(status, said["damaged"]) for status, said in found] == [(0, [])] * 8
    assert {said["checked"]["cache"] for _, said in found} <= {6, 7}


def test_folders_of_earlier_versions_without_checksums(experiment, capsys):
    """A tokenizer is asked for its ids; cache.json is taken by its files."""
    [tokenizer] = (experiment.folder / "cache/tokenizers").iterdir()
    (tokenizer / "manifest.json").unlink()
    about = read_json(experiment.folder / experiment.cache("plain") / "cache.json")
    del about["checksum"]
    (experiment.folder / experiment.cache("plain") / "cache.json").write_text(json.dumps(about))
    assert verify(experiment, capsys)[0] == 0
    backend = read_json(tokenizer / "tokenizer.json")
    vocabulary = backend["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    (tokenizer / "tokenizer.json").write_text(json.dumps(backend))
    status, said = verify(experiment, capsys)
    assert status == 1 and said["damaged"][0]["kind"] == "tokenizer"


# Deep


def test_all_rows_are_those_of_hugging_face(experiment, capsys):
    """Cut, split, dropped and packed ones, masks, pairs, validation, and a view."""
    status, said = verify(experiment, capsys, "--deep", "100000")
    assert status == 0 and len(said["compared"]) == 6
    for one in said["compared"]:
        assert one["same"] == one["rows"] > 25 and not one["not_compared"]
    status, said = verify(experiment, capsys, "--deep", "3")
    assert [one["same"] for one in said["compared"]] == [3] * 6


def test_rows_that_differ_are_told_with_where_they_went_wrong(experiment, capsys):
    folder = experiment.folder / experiment.cache("plain")
    about = read_json(folder / "cache.json")
    key = about["sources"]["train"][0]["shards"][2]["tokens"]
    [shard] = (experiment.folder / "cache").rglob(f"{key}.arrow")
    right = shard.read_bytes(), beside(shard).read_bytes()
    rewrite(shard)
    shutil.rmtree(folder)
    experiment.make()
    assert verify(experiment, capsys)[0] == 0, "its checksums are right"
    status, said = verify(experiment, capsys, str(folder), "--deep", "100000")
    assert status == 1
    of_cache, of_shard = said["damaged"]
    assert of_cache["kind"] == "cache" and of_cache["path"] == str(experiment.cache("plain"))
    assert of_shard["kind"] == "token shard" and of_shard["path"].endswith(f"{key}.arrow")
    [one] = said["compared"]
    assert one["same"] == one["rows"] - 1
    assert "input_ids at 2 is 7, and by Hugging Face's tokenizer" in one["differing"][0]
    # The token shard is right again, and the cache is not.
    shard.write_bytes(right[0])
    beside(shard).write_bytes(right[1])
    status, said = verify(experiment, capsys, str(folder), "--deep", "100000")
    assert status == 1 and [found["kind"] for found in said["damaged"]] == ["cache"]
    assert experiment.call("verify", str(folder), "--deep", "100000") == 1
    assert "rows are what Hugging Face's tokenizer makes" in capsys.readouterr().out


def rewrite(shard):
    """Another id in one document, with a checksum that fits."""
    with pa.ipc.open_file(shard) as reader:
        table = reader.read_all()
    rows = table["input_ids"].to_pylist()
    next(row for row in rows if len(row) > 3)[2] = 7
    with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        columns = {name: table[name] for name in table.schema.names} | {"input_ids": rows}
        writer.write_table(pa.table(columns, schema=table.schema))
    made = read_json(beside(shard))
    made |= {"bytes": shard.stat().st_size, "checksum": hash_file(shard)}
    beside(shard).write_text(json.dumps(made))


def test_rows_of_what_is_damaged_are_not_compared(experiment, capsys):
    shards = read_json(experiment.folder / experiment.cache("plain") / "cache.json")["sources"]
    key = shards["train"][0]["shards"][0]["tokens"]
    flip(next((experiment.folder / "cache").rglob(f"{key}.arrow")))
    status, said = verify(experiment, capsys, "cache/one/plain", "--deep", "3")
    assert status == 1 and len(said["damaged"]) == 1
    [[why, rows]] = said["compared"][0]["not_compared"].items()
    assert why.endswith(f"{key}.arrow is damaged") and rows == 3


def test_what_can_not_be_compared_is_told_and_is_no_failure(experiment, capsys):
    lines = (experiment.folder / "data/a.jsonl").read_text().splitlines()
    del lines[20]
    (experiment.folder / "data/a.jsonl").write_text("\n".join([*lines, lines[0]]) + "\n")
    (experiment.folder / "data/b.jsonl").unlink()
    shutil.rmtree(experiment.folder / "cache/one/unmarked")
    status, said = verify(experiment, capsys, "--deep", "100000")
    assert status == 0
    by_cache = {one["cache"].split("/")[2]: one for one in said["compared"]}
    assert by_cache["chat"]["not_compared"] == {"data/b.jsonl is gone": 40}
    plain = by_cache["plain"]
    assert 0 < plain["same"] < plain["rows"]
    assert plain["not_compared"] == {
        "data/a.jsonl was changed since": plain["rows"] - plain["same"]
    }
    shutil.rmtree(experiment.folder / "cache/tokens")
    shutil.rmtree(view_of(experiment))
    status, said = verify(experiment, capsys, "--deep", "2")
    assert status == 0
    for one in said["compared"]:
        [why] = one["not_compared"]
        assert why.startswith("its token shard cache/tokens/") and why.endswith(".arrow is gone")
