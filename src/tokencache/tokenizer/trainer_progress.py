"""Progress of the trainers of Hugging Face `tokenizers`, which draw bars on terminals only.

So they get one: a pty in the place of stdout and stderr, whose reader says what the bars
say in the words of progress.Progress. What comes that is no bar is passed on to stderr.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TextIO

from ..base.progress import Progress

BAR = re.compile(r"\[\d\d:\d\d:\d\d\] (?P<stage>\S.*?) +[^\w\s]* *(?P<done>\d+) */ *(?P<total>\d+)")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# A bar is drawn over the last one, and now and then without a line's end before it.
ENDS = re.compile(rb"[\r\n]+|(?=\[\d\d:\d\d:\d\d\] )")

# Texts are read by Python, which shows bytes and a total: this bar knows neither.
READING = "Pre-processing sequences"
UNITS = {"Compute merges": "merges", "EM training": "rounds"}
WAIT_SECONDS = 5.0  # for the reader, should a child process keep the pty open


@contextmanager
def shown(label: str) -> Iterator[TextIO]:
    """Show the stages of what runs inside, and yield the stream to write own progress to.

    Where there is no pty, all runs on without the stages.
    """
    terminal, kind = None, os.environ.get("TERM")
    with suppress(OSError, ImportError, AttributeError):
        terminal = _Terminal(label)
        os.environ["TERM"] = "xterm"  # a batch job has none or a dumb one, which gets no bars
    try:
        yield terminal.stream if terminal else sys.stderr
    finally:
        if terminal:
            terminal.close()
            os.environ.pop("TERM")
            if kind is not None:
                os.environ["TERM"] = kind


def _flush() -> None:
    for standard in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            standard.flush()


def _is_descriptor(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError, AttributeError):
        return False


class _Terminal:
    """A pty that stands in the place of the process's stdout and stderr until `close`.

    `stream` goes where stderr went before.
    """

    def __init__(self, label: str) -> None:
        import pty  # not on every system

        self._saved = {1: os.dup(1), 2: os.dup(2)}
        try:
            self._master, slave = pty.openpty()
        except OSError:
            self._close_saved()
            raise
        self.stream = sys.stderr
        if _is_descriptor(sys.stderr, 2):
            self.stream = open(  # noqa: SIM115
                self._saved[2], "w", encoding="utf-8", errors="replace", closefd=False
            )
        self._reader = Thread(target=self._read, args=(label,), daemon=True)
        self._reader.start()
        _flush()
        for descriptor in self._saved:
            os.dup2(slave, descriptor)
        os.close(slave)

    def close(self) -> None:
        """Put stdout and stderr back and wait until all that was written is passed on."""
        _flush()
        for descriptor, saved in self._saved.items():
            os.dup2(saved, descriptor)
        self._reader.join(WAIT_SECONDS)
        if self._reader.is_alive():  # a child process has the pty: it keeps its reader
            return
        os.close(self._master)
        with suppress(OSError, ValueError):
            self.stream.flush()
        self._close_saved()

    def _close_saved(self) -> None:
        for saved in self._saved.values():
            os.close(saved)

    def _read(self, label: str) -> None:
        """Pass on what is written, until the last descriptor of the pty is closed.

        Reading goes on whatever happens: the trainer would stand still before a full pty.
        """
        bars, rest = Bars(label, self.stream), b""
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # Linux says so of a pty that nobody writes to any more
                data = b""
            *lines, rest = ENDS.split(rest + data) if data else (rest, b"")
            for line in lines:
                with suppress(OSError, ValueError):
                    bars.line(line.decode("utf-8", "replace"))
            if not data:
                break
        with suppress(OSError, ValueError):
            bars.close()


class Bars:
    """Reads lines of a terminal: bars become progress, other lines are written to `stream`."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self._label, self._stream = label, stream
        self._stage = ""
        self._progress: Progress | None = None
        self._done = self._total = self._before = 0

    def line(self, text: str) -> None:
        text = ESCAPES.sub("", text).rstrip()
        found = BAR.fullmatch(text)
        if found is None:
            if text:
                self._stream.write(text + "\n")
                self._stream.flush()
        elif found["stage"] != READING:
            self._show(found["stage"], int(found["done"]), int(found["total"]))

    def close(self) -> None:
        """End the stage: its last bar is full, unless an error broke it off."""
        if self._progress is None:
            return
        if self._done == self._total:
            self._advance()
        self._progress.close()
        self._progress = None

    def _show(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self.close()
            self._stage, self._before = stage, self._done
            name, unit = f"{self._label}: {stage.lower()}", UNITS.get(stage, "words")
            self._progress = Progress(total, unit, name, self._stream)
        self._done, self._total = done, total
        # A bar gets its new name first and starts from 0 after that.
        if done < self._before or not self._before:
            self._before = 0
            self._advance()

    def _advance(self) -> None:
        self._progress.total = self._total
        self._progress.update(self._done - self._progress.done)
