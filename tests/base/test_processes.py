"""Whether a process still runs: told for this machine, boot and numbering, and for no other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tokencache.base import processes, publish
from tokencache.base.processes import is_running, process_tag

LIVE = """
import time
from tokencache.base.processes import process_tag
print(process_tag(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def child():
    """A process that lives, and its tag."""
    process = subprocess.Popen([sys.executable, "-c", LIVE], stdout=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def test_a_process_runs_until_it_ends(child):
    process, tag = child
    assert is_running(tag) is True
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie is dead, too
    assert is_running(tag) is False
    process.wait()
    assert is_running(tag) is False


def test_another_process_with_the_same_number_is_another_one():
    place, number, ticks = process_tag().split("-")
    assert is_running(f"{place}-{number}-{int(ticks) - 1}") is False


def test_a_step_of_the_clock_changes_nothing(child, monkeypatch):
    _, tag = child
    before = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: before(self) + 3600)
    assert is_running(tag) is True


@pytest.mark.parametrize("what", ["host", "longer host", "boot", "numbering"])
def test_of_another_place_nothing_is_known(child, monkeypatch, tmp_path, what):
    process, tag = child
    process.kill()
    process.wait()
    assert is_running(tag) is False
    own = socket.gethostname()
    if what == "host":
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    elif what == "longer host":
        monkeypatch.setattr(socket, "gethostname", lambda: f"n01.{own}")
    else:
        other = tmp_path / "other"
        other.write_text("another boot")
        monkeypatch.setattr(processes, "BOOT" if what == "boot" else "NUMBERING", other)
    assert is_running(tag) is None


IN_A_NUMBERING_OF_ITS_OWN = """
import os, subprocess, sys
from tokencache.base.processes import is_running, process_tag
assert os.getpid() < 10
print(is_running(process_tag()))
other = subprocess.run([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(is_running(process_tag().replace(f"-{os.getpid()}-", "-2-")), len(other.stdout.split("-")))
"""


def test_without_a_proc_of_its_own_a_process_knows_itself_alone():
    unshare = ["unshare", "--pid", "--fork"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("unshare is not allowed here")
    tag = "from tokencache.base.processes import process_tag; print(process_tag())"
    words = [*unshare, sys.executable, "-c", IN_A_NUMBERING_OF_ITS_OWN, tag]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "None", "3"], done.stderr


def test_of_a_tag_of_an_earlier_version_nothing_is_concluded():
    assert is_running(f"{socket.gethostname()}-4026531836-{2**22 + 1}-1600000000") is None
    assert is_running("elsewhere") is None


@pytest.mark.parametrize("final", ["target", "a.b", "0123.arrow", ".128-0123456789ab.parts"])
def test_a_temporary_says_exactly_whose_and_of_what_it_is(tmp_path, final):
    place, number, ticks = process_tag().split("-")
    dead = tmp_path / f".{final}.{place}-{number}-{int(ticks) - 1}.abc_12.tmp"
    living = tmp_path / f".{final}.{place}-{number}-{ticks}.abc_12.tmp"
    longer = tmp_path / f".{final}.more.{place}-{number}-{int(ticks) - 1}.abc_12.tmp"
    elsewhere = tmp_path / f".{final}.n01.{place}-{number}-{int(ticks) - 1}.abc_12.tmp"
    for left in (dead, living, longer, elsewhere):
        left.mkdir()
    assert publish.is_left(dead) and not publish.is_left(living)
    publish.remove_dead(tmp_path / final)
    assert sorted(tmp_path.iterdir()) == sorted([living, longer, elsewhere])


def test_a_temporary_with_something_else_in_it_is_none_of_ours(tmp_path):
    place, number, ticks = process_tag().split("-")
    left = tmp_path / f".target.{place}-{number}-{int(ticks) - 1}.abc.tmp"
    (left / "target").mkdir(parents=True)
    assert publish.is_left(left)
    Path(left, "photo.jpg").touch()
    assert not publish.is_left(left)


def test_a_temporary_of_an_earlier_version_goes_when_nobody_wrote_for_long(tmp_path):
    left = tmp_path / f".target.{socket.gethostname()}-4026531836-{2**22 + 1}-1600000000.abc.tmp"
    (left / "target").mkdir(parents=True)
    assert not publish.is_left(left)
    for hours, there in ((2, False), (24 * 8, True)):
        for path in (left / "target", left):
            os.utime(path, (path.stat().st_mtime - hours * 3600,) * 2)
        assert publish.is_left(left) == there
    for path in (left / "target", left):
        os.utime(path)
        os.utime(path, (path.stat().st_mtime - 7200,) * 2)
    assert not publish.is_left(left)
    (tmp_path / "target").mkdir()
    assert publish.is_left(left)
