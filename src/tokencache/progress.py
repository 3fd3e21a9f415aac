"""Progress of long work: one live line in a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, TextIO

QUIET_SECONDS = 0.5  # work that ends sooner gets its closing line alone
LIVE_SECONDS = 0.1
LOG_SECONDS = 5.0
WINDOW_SECONDS = 15.0  # the rate and the ETA are those of this last stretch


class Progress:
    """Counts work done and says how far it is, how fast, and when it will end.

    `total` and `update(n)` are in `unit`s; a `total` of None is unknown (no percent, no
    ETA). Further amounts are named in update: `update(n, tokens=512, bytes=2048)` shows
    tokens/s and MB/s too. The unit `bytes` is shown as MB (10^6). `stream` is stderr
    where none is given. Use as a context manager, or call `close()`, which writes the
    last line and may be called twice.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        label: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.unit, self.label = total, unit, label
        self.done = 0
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream is not None and self._stream.isatty()
        self._clock = clock
        self._started = self._shown = clock()
        self._amounts: Counter[str] = Counter({unit: 0})
        self._samples = deque([(self._started, self._amounts.copy())])
        self._closed = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def update(self, n: int, **rates: int) -> None:
        """Add `n` units done, and whatever else is counted by name."""
        self.done += n
        self._amounts.update({self.unit: n} | rates)
        now = self._clock()
        interval = LIVE_SECONDS if self._live else LOG_SECONDS
        if now - self._shown < interval or now - self._started < QUIET_SECONDS:
            return
        self._shown = now
        since, before = self._samples[0]
        self._write(self._line(now, since, before, eta=True))
        self._samples.append((now, self._amounts.copy()))
        while len(self._samples) > 1 and now - self._samples[1][0] >= WINDOW_SECONDS:
            self._samples.popleft()

    def close(self) -> None:
        """Write the closing line: the rates in it are those of the whole work."""
        if self._closed:
            return
        self._closed = True
        self._write(self._line(self._clock(), self._started, Counter(), eta=False), last=True)

    def _line(self, now: float, since: float, before: Counter[str], eta: bool) -> str:
        seconds = now - since
        parts = [f"{self.label}: {self._done()}"]
        if self.total is not None:
            share = min(self.done / self.total, 1.0) if self.total else 1.0
            # 100.0 % is said of finished work only.
            parts.append(f"{share * 100 if share == 1.0 else min(share * 100, 99.9):.1f} %")
        rates = {name: (n - before[name]) / seconds for name, n in self._amounts.items() if seconds}
        parts += [_rate(rate, name) for name, rate in rates.items() if rate > 0]
        parts.append(f"elapsed {_duration(now - self._started)}")
        if eta and self.total is not None and rates.get(self.unit, 0) > 0:
            left = max(self.total - self.done, 0)
            parts.append(f"ETA {_duration(left / rates[self.unit])}")
        return " ".join(parts)

    def _done(self) -> str:
        scale, unit, form = (1e6, "MB", ",.1f") if self.unit == "bytes" else (1, self.unit, ",")
        numbers = [self.done] if self.total is None else [self.done, self.total]
        shown = (n / scale if scale != 1 else n for n in numbers)
        return "/".join(format(n, form) for n in shown) + f" {unit}"

    def _write(self, line: str, last: bool = False) -> None:
        if self._stream is None:
            return
        if self._live:
            # A line that wraps could not be rewritten.
            line = f"\r{line[: self._width() - 1]}\x1b[K"
        self._stream.write(line + ("" if self._live and not last else "\n"))
        self._stream.flush()

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80


def _rate(rate: float, name: str) -> str:
    if name == "bytes":
        return f"{rate / 1e6:,.1f} MB/s"
    return f"{rate:,.0f} {name}/s" if rate >= 100 else f"{rate:.1f} {name}/s"


def _duration(seconds: float) -> str:
    """0:05, 12:34 or 1:02:03."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
