"""Progress of long work: one live line in a terminal, a line now and then in a log.

Whoever calls `listen` hears of it too: a job's progress file, see progress_files.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

QUIET_SECONDS = 0.5  # work that ends sooner gets its closing line alone
LIVE_SECONDS = 0.1
LOG_SECONDS = 5.0
LOOK_SECONDS = 2.0  # between two looks at folders that grow
TOLD_SECONDS = 1.0  # between two words to whoever listens
WINDOW_SECONDS = 15.0  # the rate and the ETA are those of this last stretch

# How far some work is, plain JSON: label, done, total (or None), unit, rates (a second, by
# unit), elapsed and eta in seconds (eta None where it is unknown).
State = dict[str, Any]

_listener: Callable[[State], None] | None = None


def listen(listener: Callable[[State], None] | None) -> None:
    """Have all progress of this process told to a function, which must be quick; None: nobody."""
    global _listener
    _listener = listener


def above(line: str) -> str:
    """A line that is to stand above a live one, where stderr is a terminal."""
    return f"\r{line}\x1b[K" if sys.stderr is not None and sys.stderr.isatty() else line


class Progress:
    """Counts work done and says how far it is, how fast, and when it will end.

    `total` and `update(n)` are in `unit`s; a `total` of None is unknown (no percent, no
    ETA). Further amounts are named in update: `update(n, tokens=512, bytes=2048)` shows
    tokens/s and MB/s too. The unit `bytes` is shown as MB (10^6). `before` units were done
    by others and count for no rate. `stream` is stderr where none is given. Use as a context
    manager, or call `close()`, which writes the last line and may be called twice; with
    `passing` there is none, because something else says what the work came to.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        label: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        before: int = 0,
        passing: bool = False,
    ) -> None:
        self.total, self.unit, self.label = total, unit, label
        self.done = before
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream is not None and self._stream.isatty()
        self._clock, self._passing = clock, passing
        self._started = self._shown = clock()
        self._told = self._started
        self._amounts: Counter[str] = Counter({unit: 0})
        self._samples = deque([(self._started, self._amounts.copy())])
        self._closed = self._drawn = False
        if _listener is not None:
            _listener(self._recent(self._started))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def update(self, n: int, **rates: int) -> None:
        """Add `n` units done, and whatever else is counted by name."""
        self.done += n
        self._amounts.update({self.unit: n} | rates)
        now = self._clock()
        if _listener is not None and now - self._told >= TOLD_SECONDS:
            self._told = now
            _listener(self._recent(now))
        interval = LIVE_SECONDS if self._live else LOG_SECONDS
        if now - self._shown < interval or now - self._started < QUIET_SECONDS:
            return
        self._shown = now
        self._write(line(self._recent(now)))
        self._samples.append((now, self._amounts.copy()))
        while len(self._samples) > 1 and now - self._samples[1][0] >= WINDOW_SECONDS:
            self._samples.popleft()

    def said(self) -> None:
        """Something else said how far it is just now: a log needs no line of ours."""
        if not self._live:
            self._shown = self._clock()

    def close(self) -> None:
        """Write the closing line: the rates in it are those of the whole work."""
        if self._closed:
            return
        self._closed = True
        found = self._state(self._clock(), self._started, Counter()) | {"eta": None}
        if _listener is not None:
            _listener(found)
        if not self._passing:
            self._write(line(found), last=True)
        elif self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _recent(self, now: float) -> State:
        return self._state(now, *self._samples[0])

    def _state(self, now: float, since: float, before: Counter[str]) -> State:
        seconds = now - since
        rates = {name: (n - before[name]) / seconds for name, n in self._amounts.items() if seconds}
        rates = {name: rate for name, rate in rates.items() if rate > 0}
        eta = None
        if self.total is not None and self.unit in rates:
            eta = max(self.total - self.done, 0) / rates[self.unit]
        return {
            "label": self.label, "done": self.done, "total": self.total, "unit": self.unit,
            "rates": rates, "elapsed": now - self._started, "eta": eta,
        }  # fmt: skip

    def _write(self, line: str, last: bool = False) -> None:
        if self._stream is None:
            return
        if self._live:
            # A line that wraps could not be rewritten.
            line = f"\r{line[: self._width() - 1]}\x1b[K"
            self._drawn = True
        self._stream.write(line + ("" if self._live and not last else "\n"))
        self._stream.flush()

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80


@contextmanager
def growing(label: str, *folders: Path, total: int | None = None) -> Iterator[None]:
    """Show how many bytes come into folders meanwhile, written by what does not say so itself.

    total: how many it will be, where that is known.
    """
    before, through = _size(folders), threading.Event()

    def look() -> None:
        with Progress(total, "bytes", label, passing=True) as shown:
            seconds = 0.0
            # Looking takes a twentieth of the time at most.
            while not through.wait(max(LOOK_SECONDS, 20 * seconds)):
                began = time.monotonic()
                shown.update(max(0, _size(folders) - before - shown.done))
                seconds = time.monotonic() - began

    observer = threading.Thread(target=look, daemon=True)
    observer.start()
    try:
        yield
    finally:
        through.set()
        observer.join(LOOK_SECONDS)  # a network disk may hold it up


def _size(folders: Iterable[Path]) -> int:
    """Bytes of all files in some folders, as far as one can look; not in what is mounted there."""
    total, left = 0, []
    for folder in folders:
        with suppress(OSError):
            left.append((str(folder), os.stat(folder).st_dev))
    while left:
        path, device = left.pop()
        with suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                with suppress(OSError):  # gone meanwhile
                    about = entry.stat(follow_symlinks=False)
                    if about.st_dev != device:
                        continue
                    if stat.S_ISDIR(about.st_mode):
                        left.append((entry.path, device))
                    elif stat.S_ISREG(about.st_mode):
                        total += about.st_size
    return total


def line(state: State) -> str:
    """All of a state in the words of a log."""
    parts = [f"{state['label']}: {done(state)}", share(state), *rates(state)]
    parts.append(f"elapsed {duration(state['elapsed'])}")
    if state["eta"] is not None:
        parts.append(f"ETA {duration(state['eta'])}")
    return " ".join(filter(None, parts))


def done(state: State) -> str:
    """'5.0/20.0 MB', or without the total where that is unknown."""
    scale, unit, form = 1, state["unit"], ","
    if unit == "bytes":
        scale, unit, form = 1e6, "MB", ",.1f"
    numbers = [state["done"]] if state["total"] is None else [state["done"], state["total"]]
    shown = (n / scale if scale != 1 else n for n in numbers)
    return "/".join(format(n, form) for n in shown) + f" {unit}"


def percent(state: State) -> float | None:
    """100.0 is said of finished work only; None where the total is unknown."""
    total = state["total"]
    if total is None:
        return None
    found = min(state["done"] / total, 1.0) if total else 1.0
    return 100.0 if found == 1.0 else min(found * 100, 99.9)


def share(state: State) -> str:
    """'50.0 %', or '' where the total is unknown."""
    found = percent(state)
    return "" if found is None else f"{found:.1f} %"


def rates(state: State) -> list[str]:
    """'1.0 MB/s', '246,913 tokens/s'."""
    return [_rate(rate, name) for name, rate in state["rates"].items()]


def _rate(rate: float, name: str) -> str:
    if name == "bytes":
        return f"{rate / 1e6:,.1f} MB/s"
    return f"{rate:,.0f} {name}/s" if rate >= 100 else f"{rate:.1f} {name}/s"


def duration(seconds: float) -> str:
    """0:05, 12:34 or 1:02:03."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
