"""What the nets share: their size, their counts, and processes for trials."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from . import counts
from .scenes import Job, Scene, kinds
from .trials import Trials, compiled

SEED = int(os.environ.get("TRUST_SEED", "1"))
Item = TypeVar("Item")


class Net:
    """What a test tries, how much of it, and what was lost.

    full: everything, as `make trust` does; else a slice.
    """

    def __init__(self, name: str, full: bool) -> None:
        self.name, self.full = name, full
        self.draw = random.Random(SEED)
        self.tried = 0
        self.lost: list[str] = []

    def some(self, items: Sequence[Item], few: int, many: int | None = None) -> list[Item]:
        """Some of what could be tried, in order: `few` in a slice, `many` or all otherwise."""
        most = len(items) if self.full and many is None else many if self.full else few
        chosen = sorted(self.draw.sample(range(len(items)), min(most, len(items))))
        return [items[n] for n in chosen]

    def check(self, right: bool, what: str) -> None:
        """One thing was tried; it was lost if it is not right."""
        self.tried += 1
        if not right:
            self.lost.append(what)
            if log := os.environ.get("TRUST_LOG"):  # what is lost is known before the end
                with open(log, "a") as stream:
                    stream.write(f"{self.name}: {what}\n\n")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Of a net, a slice that always runs and all of it. Slices share a worker and its scene."""
    if "net" not in metafunc.fixturenames:
        return
    whole = pytest.mark.trust, pytest.mark.xdist_group(metafunc.function.__name__)
    sizes = [pytest.param("all", marks=whole, id="all")]
    if not getattr(metafunc.function, "whole", False):
        few = pytest.mark.xdist_group("trust")
        sizes.insert(0, pytest.param("slice", marks=few, id="slice"))
    metafunc.parametrize("net", sizes, indirect=True)


@pytest.fixture
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    full = request.param == "all"
    name = request.node.originalname.removeprefix("test_").replace("_", " ")
    made = Net(name, full)
    yield made
    request.node.user_properties.append((counts.PROPERTY, [name, made.tried, len(made.lost)]))
    if made.lost:
        first = [f"{len(made.lost)} of {made.tried} lost (TRUST_SEED={SEED}):", *made.lost[:10]]
        pytest.fail("\n\n".join(first), pytrace=False)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = compiled(tmp_path_factory.mktemp("faults"))
    if found is None:
        pytest.skip("faults are made by a small C library, and here is no compiler for Linux")
    return found


@pytest.fixture(scope="session")
def trials(library: Path) -> Iterator[Trials]:
    made = Trials(library)
    yield made
    made.close()


@pytest.fixture(scope="session")
def scene(trials: Trials, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene") / "s", trials)


@pytest.fixture(scope="session")
def jobs(scene: Scene) -> list[Job]:
    """The first job of each kind."""
    return kinds(scene.jobs())
