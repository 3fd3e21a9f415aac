"""What schedulers send to a job before they take its machine away."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

# Ctrl-C, which stops at once, is none of them.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def listen() -> None:
    """Let signals end this process where what started it has them ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def left_to_others() -> AbstractContextManager[None]:
    """In here signals do nothing to this process and to those that it starts."""
    return handled(signal.SIG_IGN)


@contextmanager
def handled(handler: Any) -> Iterator[None]:
    """In here signals go to a handler, as `signal.signal` takes it; afterwards to those before."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
