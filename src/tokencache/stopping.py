"""When a run makes a checkpoint out of turn: it is told to stop, or the last one is long ago."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import collectives

# What schedulers send before they take a job's machine away. Ctrl-C stops at once.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interruptions:
    """Of all ranks together: whichever is told, each learns of it at the end of the same step.

    minutes: between two checkpoints at most, by the first rank's clock, or None.
    """

    def __init__(self, minutes: float | None) -> None:
        self._told = 0
        self._seconds = None if minutes is None else 60 * minutes
        self._saved = time.monotonic()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """In here a signal ends nothing: who asks learns of it."""
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _: Any) -> None:
        self._told = number

    def saved(self) -> None:
        """A checkpoint was made."""
        self._saved = time.monotonic()

    def asked(self) -> tuple[signal.Signals | None, bool]:
        """The signal to stop, and whether a checkpoint is due. Every rank calls this."""
        late = self._seconds is not None and time.monotonic() - self._saved >= self._seconds
        told, due = collectives.highest([self._told, int(late)])
        return (signal.Signals(told) if told else None), bool(due)
