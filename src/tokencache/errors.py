"""The exceptions that are meant for the user, and how their messages are written."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MOST_NAMES = 20  # that a message lists
LONGEST_NAME = 200  # signs


def listed(names: Iterable[object], between: str = ", ", most: int = MOST_NAMES) -> str:
    """The first names of many, and how many more there are; long names are cut."""
    found = [shown(str(name)) for name in names]
    more = [f"… and {len(found) - most:,} more"] if len(found) > most else []
    return between.join([*found[:most], *more])


def shown(name: str) -> str:
    """A name from a user's file, for a message."""
    return f"{name[:LONGEST_NAME]}…" if len(name) > LONGEST_NAME else name


class UserError(Exception):
    """A user's mistake: the message says what is wrong, where, and what to do.

    The command line and the workflow print the message alone, without a
    traceback, and end with the status.
    """

    status = 1


class Stopped(UserError):
    """A run that was told to stop, and did so with a checkpoint: a start again goes on there."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.status = 128 + signal


@contextmanager
def panics_explained(what: str) -> Iterator[None]:
    """Turn a panic of a library in Rust, which is not an Exception, into a UserError.

    what: begins the message, which ends with the reason that the library gives.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{what}: {lines[0]}") from None
