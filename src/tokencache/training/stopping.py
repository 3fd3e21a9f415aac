"""When a run makes a checkpoint out of turn, and that its records stay what they would be."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from transformers import TrainerCallback

from ..base.signals import handled
from . import collectives


class Interruptions:
    """Of all ranks together: whichever is told, each learns of it at the end of the same step.

    minutes: between two checkpoints at most, by the first rank's clock, or None.
    """

    def __init__(self, minutes: float | None) -> None:
        self._told = 0
        self._seconds = None if minutes is None else 60 * minutes
        self._saved = time.monotonic()

    def heard(self) -> AbstractContextManager[None]:
        """In here a signal ends nothing: who asks learns of it."""
        return handled(self._hear)

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


def leave_to_parent(_: int) -> None:
    """In a loader's worker: only its parent ends it.

    A signal to all processes of a job is for the training, which makes a checkpoint; torch's own
    handler in a worker dies of one that others send, and the training of that.
    """
    if not hasattr(signal, "sigwaitinfo"):  # on macOS
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class LogWithCheckpoints(TrainerCallback):
    """Log at each checkpoint, at each epoch's end and at the end: a resumed run has the same
    records."""

    def __init__(self, in_epoch: int) -> None:
        self._in_epoch = in_epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        ends = state.global_step % self._in_epoch == 0 or control.should_training_stop
        if ends or control.should_save or control.should_evaluate:
            control.should_log = True


class GoOn(TrainerCallback):
    """Take up what was between two records when a checkpoint was made."""

    def __init__(self, take_up: Callable[[], None]) -> None:
        self._take_up = take_up

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._take_up()
