"""What is said of caches on disk and done to them: list, stats, clear, pin, gc."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import chdir
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from helpers.operated import CONFIG, ONES, VIEW
from helpers.workflow import rows, write_rows

from tokencache.base import lease
from tokencache.base.json_files import read_json, write_json
from tokencache.base.processes import process_tag
from tokencache.caches.view import open_cache
from tokencache.cli import main
from tokencache.config.load import load
from tokencache.errors import UserError
from tokencache.operate import gc
from tokencache.operate import list as list_verb
from tokencache.operate.lib.all_output import AllOutput, resolved
from tokencache.plan import inventory, ours
from tokencache.plan.plan import building_path, checkpoints_path

pytestmark = pytest.mark.xdist_group("operated")


def announce(folder, caches=(), runs=()):
    """As a workflow that runs now, of this process, does."""
    about = {"pid": os.getpid(), "host": "here", "folder": str(folder), "since": "now"}
    about |= {"caches": list(caches), "keys": [], "runs": [os.path.realpath(run) for run in runs]}
    write_json(folder / f"cache/.workflow-{process_tag()}.json", about)


@pytest.fixture
def told(operated, capsys):
    """What a verb prints in the folder of `operated` or, if given, of another one."""

    def tell(*words: str, folder=operated.folder, fails: bool = False) -> str:
        with chdir(folder):
            status = main(list(words))
        said = capsys.readouterr()
        assert (status != 0) == fails, said
        return said.out + said.err if fails else said.out

    return tell


def named(caches: list[dict]) -> Iterator[str]:
    return (cache["name"].partition("-")[0] for cache in caches)


def test_list_names_every_cache(operated, told):
    listed = json.loads(told("list", "--json"))
    assert {cache["name"] for cache in listed} == operated.targets()
    assert list(named(listed)) == ["one/qa/32", "one/qa/32", "one/qa/48", "two/qa/32"]
    assert sorted(cache["format"] for cache in listed) == ["dataset"] * 3 + ["view"]
    for cache in listed:
        folder = operated.folder / cache["path"]
        about = read_json(folder / "cache.json")
        assert cache["tokens"] == sum(split["tokens"] for split in about["splits"].values())
        assert (cache["documents"], cache["versions"]) == (80, about["versions"])
        assert cache["command"] == f"snakemake {cache['path']}"
        on_disk = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        assert cache["bytes"] == sum(on_disk)
        made_at = datetime.fromisoformat(cache["made"]).timestamp()
        assert time.time() - 600 < made_at <= time.time()


def test_list_says_which_runs_used_a_cache_and_when(operated, told):
    listed = json.loads(told("list", "two", "--json"))
    [run] = (operated.folder / "results").glob("two/qa/32-*")
    assert [cache["runs"] for cache in listed] == [[str(run.relative_to(operated.folder))]]
    assert listed[0]["last_used"] >= listed[0]["made"]
    table = told("list").splitlines()
    assert table[0].split() == ["cache", *list_verb.NUMBERS[:4], "version", "last", "used", "runs"]
    assert "\x1b" not in told("list") and "4 caches, " in table[-1]


def test_a_run_on_a_view_s_rows_is_that_of_both_formats(operated, told):
    """A run has the same key whatever the format of its cache."""
    listed = json.loads(told("list", "one/qa/32", "--json"))
    keys = {
        inventory.rows_key(read_json(operated.folder / cache["path"] / "cache.json"))
        for cache in listed
    }
    assert {cache["key"] for cache in listed if cache["format"] == "dataset"} == keys


def test_list_takes_names_patterns_and_paths(operated, told):
    def listed(*names):
        return list(named(json.loads(told("list", "--json", *names))))

    assert listed("one/qa/48") == ["one/qa/48"]
    assert listed("*/qa/32", "one/qa/48") == listed()
    [two] = operated.folder.glob("cache/two/qa/32-*")
    for name in (str(two), f"cache/two/qa/{two.name}", f"two/qa/{two.name[:6]}"):
        assert listed(name) == ["two/qa/32"]
    assert "is called 'two/qa/4'" in told("list", "two/qa/4", fails=True)
    assert "names no cache" in told("list", "/somewhere/else", fails=True)


def test_who_opens_a_cache_is_the_last_user(operated, told, tmp_path):
    copy = shutil.copytree(operated.folder / "cache", tmp_path / "cache")
    [folder] = copy.glob("one/qa/48-*")
    there = ("list", "one/qa/48", "--json", "--cache", str(copy))
    assert json.loads(told(*there))[0]["last_used"] is None
    open_cache(folder)
    [cache] = json.loads(told(*there))
    assert cache["last_used"] >= cache["made"]


def test_a_damaged_cache_is_listed_as_such(operated, told, tmp_path):
    copy = shutil.copytree(operated.folder / "cache", tmp_path / "cache")
    [folder] = copy.glob("one/qa/48-*")
    (folder / "cache.json").write_text("{")
    assert "cache.json can't be read" in told("list", "one", "--cache", str(copy))


def test_list_of_a_thousand_caches_of_many_shards(operated, told, tmp_path):
    """1.4 MB each, of which only what is shown is parsed."""
    [one] = operated.folder.glob("cache/two/qa/32-*")
    about = read_json(one / "cache.json")
    shard = {"bytes": 2**26, "key": "0" * 32, "tokens": "1" * 32}
    about["sources"]["train"][0]["shards"] = [shard] * 10_000
    write_json(tmp_path / "cache.json", about)
    for number in range(1000):
        folder = tmp_path / "many" / f"m{number % 10}" / "qa" / f"{number}-{number:012x}"
        folder.mkdir(parents=True)
        os.link(tmp_path / "cache.json", folder / "cache.json")
    start, cpu = time.perf_counter(), time.process_time()
    table = told("list", "--cache", str(tmp_path / "many"))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"list of 1,000 caches: {wall:.2f} s, {cpu:.2f} s of CPU")
    assert len(table.splitlines()) == 2 + 1000 + 2
    assert cpu < 4  # parsing them whole takes 15


def test_stats_say_what_sharing_saved(operated, told):
    stats = json.loads(told("stats", "--json"))
    shards = list(operated.folder.glob("cache/tokens/*/*/*"))
    assert stats["token_shards"]["count"] == len(shards) / 2
    assert stats["token_shards"]["bytes"] == sum(path.stat().st_size for path in shards)
    assert (stats["caches"]["count"], stats["views"], stats["runs"]["count"]) == (4, 1, 1)
    text = (operated.folder / "data/a.jsonl").stat().st_size
    assert stats["sharing"].pop("seconds_saved") > 0
    assert stats["sharing"] == {
        "token_shards_of_each_alone": 4 * stats["token_shards"]["count"],
        "token_shards": stats["token_shards"]["count"],
        "bytes_saved": 3 * stats["token_shards"]["bytes"],
        "source_bytes_saved": 3 * text,
    }
    assert "that separate caches would need" in told("stats")


@pytest.fixture
def copy(operated, tmp_path):
    """To delete in."""
    return operated.copy(tmp_path / "w")


def names(folder):
    return sorted(
        "/".join(p.parts[-3:]).partition("-")[0] for p in folder.glob("cache/*/qa/[0-9]*")
    )


def test_clear_deletes_token_shards_only_with_the_last_cache_that_needs_them(copy, told):
    shards = copy.token_shards()
    said = json.loads(told("clear", "*/qa/32", "--yes", "--json", folder=copy.folder))
    assert len(said["deleted"]) == 3 and said["token_shards_deleted"] == 0
    assert names(copy.folder) == ["one/qa/48"] and copy.token_shards() == shards
    assert "30 token shards" not in told("clear", "one", "--yes", folder=copy.folder)
    assert not names(copy.folder) and not copy.token_shards()
    assert list(copy.folder.glob("cache/tokenizers/*"))
    assert not list(copy.folder.glob("cache/**/.*.tmp"))


def test_clear_never_breaks_a_view(copy, told):
    [view] = (path.parent for path in copy.folder.glob("cache/*/qa/*/view.json"))
    before = [row["input_ids"].tolist() for row in open_cache(view, "train")]
    others = [cache["name"] for cache in json.loads(told("list", "--json", folder=copy.folder))]
    others.remove("/".join(view.parts[-3:]))
    told("clear", *others, "--yes", folder=copy.folder)
    assert [row["input_ids"].tolist() for row in open_cache(view, "train")] == before


def test_clear_asks(copy, told, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    said = told("clear", "one", folder=copy.folder)
    assert "frees" in said and "that other caches need" in said and "nothing was deleted" in said
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    assert "deleted: 3 caches" in told("clear", "one", folder=copy.folder)
    assert names(copy.folder) == ["two/qa/32"]
    assert "name the caches" in told("clear", folder=copy.folder, fails=True)


def test_with_a_cache_that_does_not_say_what_it_needs_token_shards_stay(copy, told):
    [two] = copy.folder.glob("cache/two/qa/32-*")
    (two / "cache.json").write_text("")
    shards = copy.token_shards()
    assert "no token shard goes" in told("clear", "one", "--yes", folder=copy.folder)
    assert copy.token_shards() == shards and names(copy.folder) == ["two/qa/32"]
    assert "delete it first" in told("gc", folder=copy.folder, fails=True)


def test_clear_looks_again_after_the_answer(copy, told, monkeypatch):
    [two] = (name for name in copy.targets() if name.startswith("two/"))

    def answer(prompt):
        announce(copy.folder, caches=[two])
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    told("clear", "two", folder=copy.folder, fails=True)
    assert two in copy.targets() and copy.token_shards()


def test_checkpoints_of_a_workflow_that_runs_stay(copy, told):
    """Its training was stopped long ago, and waits for its turn."""
    left = stopped(copy.folder / "results/one/qa/32-0123456789ab")
    announce(copy.folder, runs=[left.with_name("32-0123456789ab")])
    told("gc", "--delete", "--unfinished", folder=copy.folder)
    assert left.exists()
    announce(copy.folder)
    told("gc", "--delete", "--unfinished", folder=copy.folder)
    assert not left.exists()


def stopped(run, key="0123456789ab"):
    """Checkpoints of a training that was stopped long ago."""
    left = checkpoints_path(run)
    write_json(left / "checkpoint-5/tokencache.json", {"key": key + "0" * 20})
    for path in (*left.rglob("*"), left):
        os.utime(path, (10**9, 10**9))
    return left


def test_unfinished_trainings_of_other_configurations_stay_unless_asked_for(copy, told):
    left = stopped(copy.folder / "results/one/qa/32-0123456789ab")
    said = told("gc", "--delete", folder=copy.folder)
    assert left.exists() and "stays: 1 unfinished run, " in said and "add --unfinished" in said
    dry = json.loads(told("gc", "--json", folder=copy.folder))
    assert dry["unfinished"] == [str(left)]
    assert "unfinished run" in told("gc", "--unfinished", folder=copy.folder) and left.exists()
    told("gc", "--delete", "--unfinished", folder=copy.folder)
    assert not left.exists()


def test_gc_takes_what_killed_jobs_left(copy, told):
    [run] = copy.folder.glob("results/two/qa/32-*")
    key = run.name.partition("-")[2]
    work = copy.folder / ".tokencache"
    dead = f"{process_tag().rpartition('-')[0]}-1"  # this process's number, another start
    gone = [
        stopped(run, key),  # killed after publication
        work / f"plans/.20200101-000000-abcdef.json.{dead}.abc.tmp",
        copy.folder / f"results/two/qa/.{run.name}.{dead}.abc.tmp",
        copy.folder / f"cache/tokenizers/.{'a' * 32}.{dead}.abc.tmp",
        work / "done/20200101-000000-abcdef",
        work / "progress/20200101-000000-abcdef",
    ]
    stays = [
        copy.folder / f"results/two/qa/.{run.name}.{process_tag()}.abc.tmp",
        work / "done/mine",
    ]
    for folder in [*gone, *stays]:
        folder.mkdir(parents=True, exist_ok=True)
    told("gc", "--delete", folder=copy.folder)
    assert not [path for path in gone if path.exists()]
    assert all(path.exists() for path in stays) and run.exists()


def foreign(folder):
    """What only looks as if tokencache had made it, by path; with what it is in."""
    found = [
        "cache/gpt/lr3/20240115-a1b2c3d4e5f6/model.pt",
        f"cache/sources/{'5' * 32}/mydata.arrow",
        f"cache/tokenizers/{'6' * 32}/tokenizer.json",
        f"cache/tokens/{'7' * 32}/88/{'8' * 32}.arrow",
        f"cache/tokens/{'7' * 32}/photo.jpg",
        "cache/.workflow-notes/thesis.tex",
        "cache/m/d/.workflow-mine/photo.jpg",
        f"cache/quarantine/20240115-101010-a1b2c3/{'9' * 32}.arrow",
        "results/gpt/lr3/20240115-a1b2c3d4e5f6/model.pt",
        "results/gpt/lr3/.20240115-a1b2c3d4e5f6.checkpoints/model.pt",
    ]
    paths = [folder / name for name in found]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        for made in (path, path.parent):
            os.utime(made, (10**9, 10**9))
    [run] = folder.glob("results/two/qa/32-*")
    backup = folder / "results/backup/qa" / run.name
    shutil.copytree(run, backup)
    [cache] = folder.glob("cache/two/qa/32-*")
    (cache / "notes.txt").write_text("mine")
    return [*paths, *backup.iterdir(), cache / "notes.txt", cache / "cache.json"]


def test_only_what_our_records_name_is_deleted(copy, told):
    mine = foreign(copy.folder)
    shutil.rmtree(copy.folder / "results/two")
    write_rows(copy.folder / "data/a.jsonl", rows(3))  # so no cache is that of config.yaml
    told("clear", "--all", "--yes", folder=copy.folder)
    said = told("gc", "--delete", "--unfinished", folder=copy.folder)
    assert not [path for path in mine if not path.exists()]
    assert names(copy.folder) == ["two/qa/32"]
    assert "it holds notes.txt, which has no record" in said
    assert f"sources/{'5' * 32}: it has no manifest.json" in said
    # Whoever names one means it, but not a folder that is no cache.
    assert "it has no cache.json" in told("clear", "gpt", "--yes", folder=copy.folder, fails=True)
    told("clear", "two", "--yes", folder=copy.folder)
    assert not names(copy.folder)


def test_of_what_lost_its_manifest_only_files_that_are_called_as_ours_go(copy):
    [run] = copy.folder.glob("results/two/qa/32-*")
    tokenizer = next(copy.folder.glob("cache/tokenizers/*"))
    for folder, proof in ((run, ours.why_not_a_run), (tokenizer, ours.why_not_a_tokenizer)):
        (folder / "manifest.json").unlink(missing_ok=True)
        assert proof(folder) is None
        (folder / "photo.jpg").touch()
        assert proof(folder) == "it holds photo.jpg, which has no record"


def test_token_shards_without_their_records_are_known_by_their_columns(copy, told):
    for shard in copy.folder.glob("cache/tokens/*/*/*.arrow"):
        shard.with_suffix(".json").unlink()
    [strange] = list(copy.folder.glob("cache/tokens/*/*/*.arrow"))[:1]
    strange.write_text("damaged")
    said = told("clear", "--all", "--yes", folder=copy.folder)
    assert "stays: 1 token shard not known to be made by tokencache\n" in said
    assert copy.token_shards() == {strange.name}


def test_all_output_deletes_what_the_configuration_made(copy, capsys):
    with chdir(copy.folder):
        config = load(ONES)
        mine = foreign(copy.folder)
        shards = copy.token_shards()
        found = AllOutput(config, resolved(config))
        paths = found.asked(("caches", "runs"), None)
        assert sorted(path.partition("-")[0] for path in paths) == [
            "cache/one/qa/32",
            "cache/one/qa/48",
        ]
        said = capsys.readouterr().err
        assert "to be deleted: 2 caches, " in said and "in all " in said
        assert "what other configurations made stays: 1 cache, " in said
        everything = AllOutput(config, None)
        delete(everything)
    assert [path for path in mine if not path.exists()] == []
    assert names(copy.folder) == ["two/qa/32"]
    # What the cache that stays needs.
    assert copy.token_shards() == shards | {mine[3].name}
    [cache] = copy.folder.glob("cache/two/qa/32-*")
    (cache / "notes.txt").unlink()
    with chdir(copy.folder):
        delete(AllOutput(config, None))
    assert not names(copy.folder) and copy.token_shards() == {mine[3].name}
    assert not list(copy.folder.glob("results/two"))


def delete(found):
    """As Snakemake does, with what it asks."""
    for path in found.asked(("caches", "runs"), None):
        found.remove(path)


def test_all_output_keeps_what_is_pinned_and_what_that_needs(copy, told):
    [view] = (path.parent for path in copy.folder.glob("cache/*/qa/*/view.json"))
    told("pin", str(view), folder=copy.folder)
    before = [row["input_ids"].tolist() for row in open_cache(view, "train")]
    with chdir(copy.folder):
        delete(AllOutput(load(CONFIG), None))
    assert names(copy.folder) == ["one/qa/32"]
    assert [row["input_ids"].tolist() for row in open_cache(view, "train")] == before


def test_all_output_waits_for_others(copy):
    with chdir(copy.folder):
        announce(copy.folder)
        with pytest.raises(UserError, match="somebody works with these folders: process"):
            AllOutput(load(CONFIG), None)
        [said] = copy.folder.glob("cache/.workflow-*")
        said.unlink()
        held = lease.take(
            building_path(Path("results/two/qa/32-0123456789ab")), {"host": "here", "pid": 1}
        )
        with pytest.raises(UserError, match="process 1 on here, which makes results/two/qa/32-"):
            AllOutput(load(CONFIG), None)
        held.release()
        AllOutput(load(CONFIG), None)


def test_all_output_that_is_stopped_leaves_nothing_half_deleted(copy, monkeypatch):
    """After so many files that it has removed."""
    whole = {path.parent: sorted(path.parent.iterdir())
             for record in ("cache/*/qa/*/cache.json", "results/*/qa/*/run.json")
             for path in copy.folder.glob(record)}  # fmt: skip
    unlink, killed = os.unlink, 0

    def stopped(path, *, dir_fd=None):
        if next(budget, None) is None:
            raise KeyboardInterrupt
        return unlink(path, dir_fd=dir_fd)

    for after in (0, 1, 2, 5, 10, 20):
        budget = iter(range(after))
        with chdir(copy.folder), monkeypatch.context() as patch:
            found = AllOutput(load(CONFIG), None)
            patch.setattr(os, "unlink", stopped)
            patch.setattr(shutil, "rmtree", lambda path, **_: [
                os.unlink(file) for file in Path(path).rglob("*") if file.is_file()
            ])  # fmt: skip
            try:
                delete(found)
            except KeyboardInterrupt:
                killed += 1
        for folder, files in whole.items():
            assert not folder.exists() or sorted(folder.iterdir()) == files
    assert killed > 3


def test_all_output_leaves_what_came_while_it_looked(copy, told):
    """A file of somebody's, a cache of a workflow that has ended, a pin, and a workflow."""
    [view] = (path.parent for path in copy.folder.glob("cache/*/qa/*/view.json"))
    before = [row["input_ids"].tolist() for row in open_cache(view, "train")]
    aside = view.rename(copy.folder / "aside")
    with chdir(copy.folder):
        found = AllOutput(load(CONFIG), None)
        listed = found.asked(("caches", "runs"), None)
        assert "cache/two" in listed and "cache/tokens" in listed
        announce(copy.folder)
        with pytest.raises(UserError, match="somebody works with these folders"):
            found.remove("cache/two")
        assert "two/qa/32" in names(copy.folder)
        [said] = copy.folder.glob("cache/.workflow-*")
        said.unlink()
        mine = Path("cache/two/qa/notes.txt")
        mine.touch()
        aside.rename(view)
        [pinned] = copy.folder.glob("cache/one/qa/48-*")
        told("pin", str(pinned), folder=copy.folder)
        delete(found)
        assert [path.name for path in Path("cache/two").rglob("*")] == ["qa", "notes.txt"]
    assert names(copy.folder) == ["one/qa/32", "one/qa/48"]
    assert [row["input_ids"].tolist() for row in open_cache(view, "train")] == before


def test_nothing_goes_where_a_folder_is_closed(copy, told, monkeypatch):
    """Nobody knows what the caches in it need."""
    scan = os.scandir

    def closed(path="."):
        if str(path).endswith("two/qa"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert "two/qa can't be looked into" in told("gc", "--delete", folder=copy.folder, fails=True)
    shards = copy.token_shards()
    told("clear", "one", "--yes", folder=copy.folder)
    assert copy.token_shards() == shards


def test_a_results_folder_is_no_cache_folder(copy, told):
    copy.configure(CONFIG | {"cache": "results"})
    assert "cache and results need a folder each" in told("list", folder=copy.folder, fails=True)
    assert json.loads(told("list", "--cache", "results", "--json", folder=copy.folder)) == []


def test_what_is_pinned_stays(copy, told):
    assert told("pin", "two", "qa", "32", folder=copy.folder).startswith("pinned: two/qa/32-")
    copy.configure(ONES)
    assert "pinned" in told("list", "two", folder=copy.folder)
    assert "is pinned" in told("clear", "--all", "--yes", folder=copy.folder)
    assert names(copy.folder) == ["two/qa/32"]
    shutil.rmtree(copy.folder / "results")
    assert "stays: 1 cache pinned" in told("gc", "--delete", folder=copy.folder)
    [two] = copy.folder.glob("cache/two/qa/32-*")
    told("unpin", str(two), folder=copy.folder)
    assert "deleted: 1 cache" in told("clear", "--all", "--yes", folder=copy.folder)


def test_what_a_model_is_trained_on_stays(copy, told):
    """By a job that is left of a workflow that was killed, which holds a lease still."""
    [run] = copy.folder.glob("results/two/qa/32-*")
    place = building_path(run)
    shutil.rmtree(run)
    held = lease.take(place, {"host": "here", "pid": 1})
    copy.configure(ONES)
    assert "process 1 on here makes" in told(
        "clear", "two", "--yes", folder=copy.folder, fails=True
    )
    assert "of runs that are trained now" in told("gc", "--delete", folder=copy.folder)
    assert "two/qa/32" in names(copy.folder)
    held.release()
    told("clear", "two", "--yes", folder=copy.folder)
    assert "two/qa/32" not in names(copy.folder)


def test_a_kill_while_a_cache_is_deleted_leaves_none_of_it_under_its_name(copy, told, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as far as a killed one came
    told("clear", "two", "--yes", folder=copy.folder)
    assert "two/qa/32" not in names(copy.folder)
    [left] = copy.folder.glob("cache/two/qa/.32-*.tmp")
    monkeypatch.undo()
    assert "leftover" not in told("gc", folder=copy.folder), "this process lives"
    tag = re.search(r"-\d+(-\d+\.)", left.name)
    left.rename(left.with_name(left.name.replace(tag[0], f"-{2**22 + 1}{tag[1]}")))
    assert "leftover" in told("gc", "--delete", folder=copy.folder)
    assert not list(copy.folder.glob("cache/two/qa/.32-*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_what_other_users_made_stays(copy, told):
    [theirs] = copy.folder.glob("cache/one/qa/48-*")
    for path in [theirs, *theirs.rglob("*")]:
        os.chown(path, 4321, 4321)
    said = told("clear", "one", "--yes", folder=copy.folder, fails=True)
    assert "what other users made stays" in said and "deleted: 2 caches" in said
    assert "one/qa/48" in names(copy.folder) and "one/qa/32" not in names(copy.folder)
    copy.configure(CONFIG)
    assert "stays: 1 cache of other users" in told("gc", "--delete", folder=copy.folder)
    assert "one/qa/48" in names(copy.folder)


def test_gc_goes_by_configurations_and_finished_runs(copy, told):
    assert "nothing may go" in told("gc", "--configfile", "config.yaml", "--older", "1d",
                                    folder=copy.folder)  # fmt: skip
    for name, config in (("ones.yaml", ONES), ("view.yaml", VIEW)):
        (copy.folder / name).write_text(yaml.safe_dump(config))
    said = told("gc", "--configfile", "ones.yaml", "--configfile", "view.yaml", folder=copy.folder)
    assert "stays: 1 cache of finished runs" in said and "nothing may go" in said
    dry = json.loads(told("gc", "--configfile", "ones.yaml", "--json", folder=copy.folder))
    assert [thing["name"].partition("-")[0] for thing in dry["may_go"]] == ["one/qa/32"]
    assert len(names(copy.folder)) == 4
    ones = str(copy.folder / "ones.yaml")
    told("gc", "--configfile", ones, "--delete", folder=copy.folder.parent)
    assert names(copy.folder) == ["one/qa/32", "one/qa/48", "two/qa/32"]
    assert len(copy.token_shards()) == 10 * 1


def test_gc_keeps_what_a_cache_needs_that_was_published_meanwhile(copy, told, monkeypatch):
    """By a workflow that has ended already."""
    [view] = (path.parent for path in copy.folder.glob("cache/*/qa/*/view.json"))
    before = [row["input_ids"].tolist() for row in open_cache(view, "train")]
    aside = view.rename(copy.folder / "aside")
    shutil.rmtree(copy.folder / "results")
    write_rows(copy.folder / "data/a.jsonl", rows(3))
    run = gc._delete

    def publish(chosen, cache):
        assert [thing for thing in chosen if thing.kind == "token shard"]
        aside.rename(view)
        return run(chosen, cache)

    monkeypatch.setattr(gc, "_delete", publish)
    told("gc", "--delete", folder=copy.folder)
    assert names(copy.folder) == ["one/qa/32"]
    assert [row["input_ids"].tolist() for row in open_cache(view, "train")] == before


def test_gc_frees_up_to_a_size_the_least_recently_used_first(copy, told):
    shutil.rmtree(copy.folder / "results")
    write_rows(copy.folder / "data/a.jsonl", rows(3))
    order = ["one/qa/48", "two/qa/32", "one/qa/32"]
    for age, name in enumerate(reversed(order)):
        for folder in copy.folder.glob(f"cache/{name}-*"):
            for file in (folder / "cache.json", folder / ".last_used"):
                file.touch()
                os.utime(file, (10**9 - age, 10**9 - age))
    whole = json.loads(told("gc", "--json", folder=copy.folder))
    assert [thing["name"].partition("-")[0] for thing in whole["may_go"][:2]] == order[:2]
    size = sum(p.stat().st_size for p in copy.folder.glob("cache/**/*") if p.is_file())
    some = json.loads(told("gc", "--keep", str(size - 1), "--json", folder=copy.folder))
    assert [thing["name"].partition("-")[0] for thing in some["may_go"]] == order[:1]
    told("gc", "--delete", folder=copy.folder)
    assert not names(copy.folder) and not copy.token_shards()


def test_while_a_workflow_runs_what_it_works_on_stays(copy, told):
    """It packs two new caches from token shards that are there, and is held up before that."""
    place = "src/tokencache/caches/dataset.py"
    copy.edit(place, "    splits, counts = split_rows(cache, tokens)\n",
              "    import os, time\n    while not os.path.exists('go'):\n        time.sleep(0.05)\n"
              "    splits, counts = split_rows(cache, tokens)\n")  # fmt: skip
    copy.configure(ONES | {"max_length": [40, 48]})
    process = copy.start("caches")
    while not list(copy.folder.glob("cache/.workflow-*.json")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    shards = copy.token_shards()
    assert len(json.loads(told("list", "--json", folder=copy.folder))) == 4
    assert json.loads(told("stats", "--json", folder=copy.folder))["caches"]["count"] == 4
    stays = json.loads(told("clear", "--all", "--yes", "--json", folder=copy.folder))["stays"]
    assert ["a workflow works on it" in why for why in stays.values()] == [True]
    assert names(copy.folder) == ["one/qa/48"] and copy.token_shards() == shards
    copy.configure(CONFIG)
    assert "of workflows that run now" in told("gc", "--delete", folder=copy.folder)
    assert copy.token_shards() == shards
    (copy.folder / "go").touch()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert names(copy.folder) == ["one/qa/40", "one/qa/48"]
    assert not list(copy.folder.glob("cache/.*"))
