"""Nets for what must never go wrong: a seeded slice in `make test`, all of it in `make trust`."""

from collections.abc import Callable
from typing import TypeVar

Test = TypeVar("Test", bound=Callable)


def all_or_nothing(test: Test) -> Test:
    """Of a net whose every trial takes long: there is no slice."""
    test.whole = True
    return test
