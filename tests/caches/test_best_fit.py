"""Packing is best-fit decreasing, to the bin, and found in bulk."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencache.caches.best_fit import best_fit_decreasing


def naive(lengths, capacity):
    """One item after the other, longest first, into the fullest bin that it fits."""
    bins = []
    for length in sorted(lengths, reverse=True):
        fitting = [b for b in bins if sum(b) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            bins.append([length])
    return sorted(sum(b) for b in bins)


def contents(lengths, bins):
    """The lengths in each bin."""
    found = [[] for _ in range(max(bins, default=-1) + 1)]
    for length, number in zip(lengths, bins, strict=True):
        found[number].append(int(length))
    return found


@st.composite
def items(draw):
    capacity = draw(st.integers(1, 40))
    # Few distinct lengths make many equal items, which are placed together.
    pool = draw(st.lists(st.integers(1, capacity), min_size=1, max_size=6))
    one = st.one_of(st.sampled_from(pool), st.integers(1, capacity))
    return np.array(draw(st.lists(one, max_size=60)), np.int64), capacity


@settings(max_examples=400, deadline=None)
@given(items())
def test_is_best_fit_decreasing(drawn):
    lengths, capacity = drawn
    bins = best_fit_decreasing(lengths, capacity)
    assert bins.shape == lengths.shape
    found = contents(lengths, bins)
    assert all(0 < sum(b) <= capacity for b in found)
    # Of bins equally full any may be taken, which changes no sum.
    assert sorted(sum(b) for b in found) == naive(lengths.tolist(), capacity)
    first = [bins.tolist().index(number) for number in range(len(found))]
    assert first == sorted(first), "bins are numbered by their first item"
    assert np.array_equal(bins, best_fit_decreasing(lengths.copy(), capacity))


@settings(max_examples=50, deadline=None)
@given(items())
def test_type_of_the_lengths_makes_no_difference(drawn):
    lengths, capacity = drawn
    wanted = best_fit_decreasing(lengths, capacity)
    for kind in (np.int32, np.int16):
        assert np.array_equal(best_fit_decreasing(lengths.astype(kind), capacity), wanted)


@pytest.mark.parametrize(
    ("lengths", "capacity", "bins"),
    [
        ([], 8, []),
        ([8, 8, 8], 8, [0, 1, 2]),
        ([1] * 7, 3, [0, 0, 0, 1, 1, 1, 2]),
        ([1], 1, [0]),
        ([5, 3, 4, 4], 8, [0, 0, 1, 1]),
        ([3, 5, 2, 6], 8, [0, 0, 1, 1]),
        # Both bins would hold the last item: it goes where less is left.
        ([5, 6, 2], 8, [0, 1, 1]),
        ([2, 5, 6], 8, [0, 1, 0]),
    ],
)
def test_small_cases(lengths, capacity, bins):
    assert best_fit_decreasing(np.array(lengths, np.int64), capacity).tolist() == bins


def test_many_items_and_a_long_capacity_take_no_loop_over_items():
    random = np.random.default_rng(0)
    lengths = np.minimum(random.geometric(1 / 400, 300_000), 8192)
    started = time.process_time()
    bins = best_fit_decreasing(lengths, 8192)
    assert time.process_time() - started < 10  # a loop over items takes minutes
    filled = np.bincount(bins, lengths)
    assert filled.max() <= 8192
    assert filled.sum() == lengths.sum()
    assert filled.mean() > 0.999 * 8192
