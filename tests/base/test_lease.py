"""The lease: one holder, and an end for those that stand still, by the observer's clock."""

import shutil
import subprocess
import sys
import time

import pytest
from helpers.workflow import ROOT, environment

from tokencache.base import lease


@pytest.fixture
def place(tmp_path):
    return tmp_path / "place"


def test_a_lease_is_one_holders(place):
    first = lease.take(place, {"who": "first"})
    assert lease.take(place, {"who": "second"}) is None
    assert lease.Watch(place, 60).look() == {"who": "first"}
    first.release()
    assert lease.Watch(place, 60).look() is None
    second = lease.take(place, {"who": "second"})
    first.release()  # once more, which takes nothing from the second
    assert lease.Watch(place, 60).look() == {"who": "second"}
    second.release()


def test_a_lease_holds_while_it_is_renewed_by_the_observers_clock(place):
    now = 0.0
    watch = lease.Watch(place, 10, clock=lambda: now)
    holder = lease.take(place, {})
    for seconds in (0.0, 9.0, 18.0, 27.0):
        now = seconds
        assert watch.look() == {}
        holder.renew()
    assert watch.look() == {}
    now = 36.0
    assert watch.look() == {}
    # One that has just come does not know since when the count stands still.
    late = lease.Watch(place, 10, clock=lambda: now)
    assert late.look() == {}
    now = 38.0
    assert watch.look() is None
    assert late.look() is None


def test_an_old_lease_is_ended_and_never_a_new_one(place):
    now = 0.0
    watches = [lease.Watch(place, 10, clock=lambda: now) for _ in range(2)]
    old = lease.take(place, {"who": "old"})
    assert [watch.look() for watch in watches] == [{"who": "old"}] * 2
    now = 11.0
    assert watches[0].look() is None
    new = lease.take(place, {"who": "new"})
    assert watches[1].look() == {"who": "new"}
    old.renew()
    old.release()
    assert watches[1].look() == {"who": "new"}
    new.release()


def test_a_failure_that_cannot_be_told_hides_no_other(place):
    holder = lease.take(place, {})
    shutil.rmtree(place)
    place.touch()
    holder.failed({"message": "why"})
    holder.release()


TAKE = """
import sys, time
from pathlib import Path
from tokencache.base import lease
time.sleep(max(0, float(sys.argv[2]) - time.time()))
print(lease.take(Path(sys.argv[1]), {}) is not None)
time.sleep(2)
"""


def test_of_many_that_take_a_lease_at_once_one_has_it(place):
    at = str(time.time() + 3)
    all_ = [
        subprocess.Popen([sys.executable, "-c", TAKE, str(place), at], stdout=subprocess.PIPE,
                         env=environment() | {"PYTHONPATH": str(ROOT / "src")}, text=True)
        for _ in range(6)
    ]  # fmt: skip
    assert sorted(p.communicate()[0].strip() for p in all_) == ["False"] * 5 + ["True"]
