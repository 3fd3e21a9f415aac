"""Publication by one rename, and what killed processes leave."""

import errno
import os
import shutil
import stat
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest import mock

import psutil
import pytest

from tokencache.base import publish
from tokencache.base.hashing import KEY_DIGITS, key_of
from tokencache.errors import UserError


def test_keys_depend_on_values_and_not_on_the_order_of_keys():
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": "1"})
    assert len(key_of(None)) == KEY_DIGITS


def test_nothing_is_there_until_all_is(tmp_path):
    final = tmp_path / "a" / "target"
    with publish.published(final, folder=True) as made:
        (made / "file").write_text("x")
        assert not final.exists()
    assert (final / "file").read_text() == "x"
    assert list(final.parent.iterdir()) == [final]


def test_an_error_leaves_what_was_there(tmp_path):
    final = tmp_path / "file"
    final.write_text("before")
    with pytest.raises(RuntimeError), publish.published(final) as made:
        made.write_text("half")
        raise RuntimeError
    assert final.read_text() == "before"
    assert list(tmp_path.iterdir()) == [final]


def test_a_full_disk_is_said(tmp_path):
    final = tmp_path / "file"
    with pytest.raises(UserError, match="the disk is full"), publish.published(final):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said_with_what_is_needed_and_what_helps(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    for needs, said in ((9_000_000, "about 9.0 MB, and there is room for 3.0"), (None, "than 3.0")):
        with (
            pytest.raises(UserError, match=said) as caught,
            publish.published(tmp_path / "file", needs=needs) as made,
        ):
            made.write_bytes(b"x" * 1_000_000)
            raise OSError(errno.ENOSPC, "No space left on device")
        assert "`tokencache gc`" in str(caught.value) and "delete-all" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("links", [True, False])
def test_a_file_of_a_key_is_not_replaced_under_those_who_read_it(tmp_path, monkeypatch, links):
    """On NFS, who has it open on another machine would lose it."""
    if not links:
        monkeypatch.setattr(os, "link", mock.Mock(side_effect=OSError(errno.EPERM, "no links")))
    final = tmp_path / "key.arrow"
    with publish.published(final, keyed=True) as slow:
        slow.write_text("same bytes")
        with publish.published(final, keyed=True) as quick:
            quick.write_text("same bytes")
        first = final.stat().st_ino
    assert final.stat().st_ino == first and final.stat().st_nlink == 1
    with publish.published(final) as other:
        other.write_text("other bytes")
    assert final.read_text() == "other bytes"
    assert list(tmp_path.iterdir()) == [final]


def test_the_first_of_two_folders_stays(tmp_path):
    final = tmp_path / "target"
    with publish.published(final, folder=True) as slow:
        (slow / "file").write_text("same bytes")
        with publish.published(final, folder=True) as quick:
            (quick / "file").write_text("same bytes")
        first = final.stat().st_ino
    assert final.stat().st_ino == first
    assert list(tmp_path.iterdir()) == [final]


def test_files_are_open_to_whom_the_umask_opens_them(tmp_path):
    before = os.umask(0o027)
    try:
        with publish.published(tmp_path / "target", folder=True) as made:
            (made / "file").touch(mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "target" / "file").stat().st_mode) == 0o640


PUBLISH_FOR_EVER = """
import sys, time
from tokencache.base import publish
with publish.published(sys.argv[1], folder=True) as made:
    print("ready", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_makes_stays(tmp_path):
    final = tmp_path / "target"
    command = [sys.executable, "-c", PUBLISH_FOR_EVER, str(final)]
    killed, living = (subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2))
    try:
        for process in (killed, living):
            assert process.stdout.readline() == b"ready\n"
        killed.kill()  # and not waited for: a zombie is dead, too
        while psutil.Process(killed.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        other = tmp_path / ".target.elsewhere-1-2-3.abc.tmp"
        other.mkdir()
        with publish.published(final, folder=True):
            pass
        left = {path.name.split("-")[-2] for path in tmp_path.glob(".target.*.tmp")}
        assert left == {str(living.pid), "2"}
    finally:
        for process in (killed, living):
            process.kill()
            process.wait()


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_what_is_published_is_as_open_as_its_folder(tmp_path, umask):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2770)
    before = os.umask(umask)
    try:
        for name in ("shared", "own"):
            with publish.published(tmp_path / name / "new" / "target", folder=True) as made:
                (made / "split").mkdir(mode=0o700)
                (made / "split" / "file").touch(mode=0o600)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    found = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
    }
    folder, file = 0o777 & ~umask, 0o666 & ~umask
    assert found == {
        "shared": 0o2770,
        "shared/new": folder | 0o2070,
        "shared/new/target": folder | 0o2070,
        "shared/new/target/.snakemake_timestamp": file | 0o060,
        "shared/new/target/split": 0o2770,
        "shared/new/target/split/file": file | 0o040,
        "own": folder,
        "own/new": folder,
        "own/new/target": folder,
        "own/new/target/split": 0o700,
        "own/new/target/split/file": file,
    }


def test_what_was_left_on_another_machine_goes_when_nobody_wrote_for_long(tmp_path):
    final = tmp_path / "target"
    left = {}
    for name, days in (("old", 8), ("new", 6)):
        left[name] = tmp_path / f".target.another-machine-1-1000-160000{len(left)}000.{name}.tmp"
        (left[name] / "target").mkdir(parents=True)
        for path in (left[name] / "target", left[name]):
            os.utime(path, (time.time() - days * 86400,) * 2)
    with publish.published(final):
        final.touch()
        (next(tmp_path.glob(f".target.*-{os.getpid()}-*")) / "target").touch()
    assert not left["old"].exists() and not left["new"].exists(), "the target is there now"


@pytest.mark.parametrize(("days", "left"), [(6, False), (8, True)])
def test_an_empty_temporary_of_an_earlier_version_goes_by_its_age_alone(tmp_path, days, left):
    """Nobody knows what it is of: its job may compute before its first byte."""
    (tmp_path / "target").touch()
    temporary = tmp_path / ".target.another-machine-1-1000-1600000000.abc.tmp"
    temporary.mkdir()
    os.utime(temporary, (time.time() - days * 86400,) * 2)
    assert publish.is_left(temporary) == left


def test_a_process_that_stood_still_finds_made_what_it_was_making(tmp_path):
    final = tmp_path / "target"

    def made_meanwhile():
        [mine] = tmp_path.glob(".target.*")
        shutil.rmtree(mine)
        final.mkdir()
        (final / "file").write_text("same bytes")

    with publish.published(final, folder=True) as slow:
        (slow / "file").write_text("same bytes")
        made_meanwhile()
    assert (final / "file").read_text() == "same bytes"
    shutil.rmtree(final)
    with (
        pytest.raises(UserError, match="another process made it while this one stood still"),
        publish.published(final, folder=True) as slow,
    ):
        made_meanwhile()
        (slow / "file").write_text("same bytes")
