import io
import os
import pty
import time

import pytest

from tokencache.base import progress
from tokencache.base.progress import Progress, growing, listen


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def test_a_log_gets_a_line_every_five_seconds_and_a_last_one(clock):
    log = io.StringIO()
    with Progress(50_000, "documents", "tokenize qa", log, clock) as progress:
        for _ in range(80):
            clock.now += 0.125
            progress.update(625)
    lines = log.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == (
        "tokenize qa: 25,000/50,000 documents 50.0 % 5,000 documents/s elapsed 0:05 ETA 0:05"
    )
    assert lines[-1] == (
        "tokenize qa: 50,000/50,000 documents 100.0 % 5,000 documents/s elapsed 0:10"
    )


def test_bytes_are_megabytes_and_further_amounts_are_rates(clock):
    log = io.StringIO()
    progress = Progress(20_000_000, "bytes", "read", log, clock)
    clock.now += 5
    progress.update(5_000_000, documents=100, tokens=1_234_567)
    assert log.getvalue() == (
        "read: 5.0/20.0 MB 25.0 % 1.0 MB/s 20.0 documents/s 246,913 tokens/s elapsed 0:05 "
        "ETA 0:15\n"
    )


def test_short_work_says_one_line(clock):
    for stream in io.StringIO(), Terminal():
        with Progress(10, "documents", "pack", stream, clock) as progress:
            for _ in range(10):
                clock.now += 0.04
                progress.update(1)
        assert "10/10 documents 100.0 % 25.0 documents/s elapsed 0:00" in stream.getvalue()
        assert stream.getvalue().count("pack") == 1
        assert stream.getvalue().endswith("\n")


def test_a_terminal_gets_one_line_rewritten_at_most_ten_times_a_second(clock):
    terminal = Terminal()
    with Progress(100, "documents", "pack", terminal, clock) as progress:
        for _ in range(100):
            clock.now += 0.02
            progress.update(1)
    shown = terminal.getvalue()
    assert shown.count("\n") == 1 and shown.endswith("\n")
    assert 10 <= shown.count("\r") <= 18
    assert all(line.endswith("\x1b[K") for line in shown.rstrip("\n").split("\r")[1:])


def test_a_line_in_a_terminal_never_wraps(clock):
    terminal = Terminal()
    with Progress(None, "documents", "x" * 200, terminal, clock):
        clock.now += 1
    assert terminal.getvalue() == "\r" + "x" * 79 + "\x1b[K\n"


def test_a_real_terminal(clock):
    ours, theirs = pty.openpty()
    with open(theirs, "w") as stream, Progress(2, "rows", "a", stream, clock) as progress:
        clock.now += 1
        progress.update(1)
    assert b"\ra: 1/2 rows 50.0 % 1.0 rows/s elapsed 0:01 ETA 0:01" in os.read(ours, 4096)
    os.close(ours)


def test_an_unknown_total_has_no_percent_and_no_eta(clock):
    log = io.StringIO()
    progress = Progress(None, "documents", "read", log, clock)
    clock.now += 6
    progress.update(600)
    assert log.getvalue() == "read: 600 documents 100 documents/s elapsed 0:06\n"


def test_nothing_to_do_and_no_time(clock):
    log = io.StringIO()
    progress = Progress(0, "bytes", "hash", log, clock)
    progress.close()
    progress.close()
    assert log.getvalue() == "hash: 0.0/0.0 MB 100.0 % elapsed 0:00\n"


def test_unfinished_work_is_never_said_to_be_whole(clock):
    log = io.StringIO()
    with (
        pytest.raises(ZeroDivisionError),
        Progress(1_000_000, "rows", "a", log, clock) as progress,
    ):
        progress.update(999_999)
        clock.now += 3700
        raise ZeroDivisionError
    assert log.getvalue() == "a: 999,999/1,000,000 rows 99.9 % 270 rows/s elapsed 1:01:40\n"


def test_the_eta_follows_the_last_seconds(clock):
    log = io.StringIO()
    progress = Progress(10_000, "merges", "train", log, clock)
    for _ in range(10):  # slow at first
        clock.now += 5
        progress.update(10)
    for _ in range(8):
        clock.now += 5
        progress.update(500)
    assert log.getvalue().splitlines()[-1].endswith("100 merges/s elapsed 1:30 ETA 0:59")


def test_stderr_is_looked_up_when_it_is_used(capsys):
    Progress(1, "rows", "a").close()
    assert capsys.readouterr().err.startswith("a: 0/1 rows 0.0 %")


def test_what_was_done_before_counts_for_no_rate(clock):
    log = io.StringIO()
    with Progress(1000, "rows", "pack", log, clock, before=900) as progress:
        clock.now += 10
        progress.update(50)
    assert log.getvalue().splitlines() == [
        "pack: 950/1,000 rows 95.0 % 5.0 rows/s elapsed 0:10 ETA 0:10",
        "pack: 950/1,000 rows 95.0 % 5.0 rows/s elapsed 0:10",
    ]


def test_work_in_passing_leaves_no_line_of_its_own(clock):
    log, terminal = io.StringIO(), Terminal()
    for stream in log, terminal:
        with Progress(100, "steps", "train", stream, clock, passing=True) as progress:
            clock.now += 4
            progress.update(1)
            progress.said()  # a record, which says as much
            clock.now += 4
            progress.update(1)
    assert log.getvalue() == ""
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_who_listens_hears_now_and_then(clock):
    heard = []
    listen(heard.append)
    try:
        with Progress(100, "rows", "pack", io.StringIO(), clock) as progress:
            for _ in range(100):
                clock.now += 0.0625
                progress.update(1, tokens=10)
    finally:
        listen(None)
    assert [state["done"] for state in heard] == [0, 16, 32, 48, 64, 80, 96, 100]
    assert heard[-1]["rates"] == {"rows": 16, "tokens": 160}
    assert (heard[-1]["total"], heard[-1]["eta"]) == (100, None)


def test_a_folder_that_grows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOOK_SECONDS", 0.01)
    (tmp_path / "old").write_bytes(b"x" * 1000)
    heard = []
    listen(heard.append)
    monkeypatch.setattr(progress, "TOLD_SECONDS", 0.0)
    try:
        with growing("load qa", tmp_path, tmp_path / "nowhere", total=3000):
            (tmp_path / "new").mkdir()
            (tmp_path / "new" / "file").write_bytes(b"x" * 2000)
            while heard[-1:] == [] or heard[-1]["done"] < 2000:
                time.sleep(0.01)
            (tmp_path / "new" / "file").unlink()
    finally:
        listen(None)
    assert heard[-1]["done"] == 2000 and heard[-1]["total"] == 3000
    assert capsys.readouterr().err == ""
