"""Which documents are kept for validation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencache.caches.windows import _equal_before, draw_validation


def hashes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)


def draw(found, fraction=0.1, seed=42, there=None):
    there = np.arange(len(found)) if there is None else np.asarray(there)
    return draw_validation(found, there, fraction, seed)


def test_about_the_fraction_is_drawn():
    for count, fraction in ((100_000, 0.05), (100_000, 0.5), (10_000, 0.9)):
        spread = (count * fraction * (1 - fraction)) ** 0.5
        assert abs(draw(hashes(count), fraction).sum() - count * fraction) < 4 * spread


@pytest.mark.parametrize("fraction", [1e-9, 0.01, 0.5, 0.99, 1 - 1e-9])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
def test_something_is_left_on_each_side(count, fraction):
    for seed in range(20):
        kept = draw(hashes(count, seed), fraction, seed)
        if count > 1:
            assert 0 < kept.sum() < count
        else:
            assert not kept.any(), "a single document is trained on"


def test_what_has_no_window_counts_on_neither_side():
    """Empty documents, and those that are dropped."""
    found = hashes(1000)
    for there in ([3], [3, 500], [1, 2, 999]):
        for fraction in (1e-6, 1 - 1e-6):
            kept = draw(found, fraction, there=there)[there]
            assert kept.sum() == (0 if len(there) == 1 else 1 if fraction < 0.5 else len(there) - 1)


def test_what_is_drawn_is_the_same_on_every_machine():
    kept = draw(np.arange(40, dtype=np.uint64) // np.uint64(2), 0.25)
    assert np.flatnonzero(kept).tolist() == [4, 6, 9, 15, 18, 28, 29, 32, 34, 36]
    assert not np.array_equal(kept, draw(np.arange(40, dtype=np.uint64) // np.uint64(2), 0.25, 43))
    assert draw(hashes(9), seed=-1).shape == draw(hashes(9), seed=2**70).shape == (9,)


@given(st.lists(st.integers(0, 5), max_size=30))
def test_equal_rows_are_counted(rows):
    found = _equal_before(np.array(rows, np.uint64))
    assert found.tolist() == [rows[:place].count(row) for place, row in enumerate(rows)]


@given(
    st.lists(st.integers(0, 40), min_size=40, max_size=80),
    st.lists(st.integers(30, 60), max_size=5), st.integers(0, 79), st.integers(0, 3),
)  # fmt: skip
def test_an_edit_moves_only_what_was_edited(rows, more, at, gone):
    """As many of each kind of row are kept as before, whatever is added, removed or changed."""
    before = np.array(rows, np.uint64)
    after = np.array([*rows[:at], *more, *rows[at + gone :]], np.uint64)
    kept = [draw(found, 0.4) for found in (before, after)]
    for row in set(rows) & set(after.tolist()):
        one, other = (mine[found == row] for mine, found in zip(kept, (before, after), strict=True))
        both = min(len(one), len(other))
        assert one[:both].tolist() == other[:both].tolist()


def test_appended_rows_move_none():
    found = hashes(2000)
    grown = np.concatenate([found, hashes(1, 5), found[:100]])
    assert np.array_equal(draw(grown)[:2000], draw(found))
    # The second of two equal ones is drawn by itself.
    assert 0 < draw(grown)[2001:].sum() < 30
