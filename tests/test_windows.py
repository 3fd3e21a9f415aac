"""Which documents are kept for validation."""

import numpy as np
import pytest
from shards import write_shard

from tokencache import windows
from tokencache.token_shards import Documents


def some_documents(shard_lengths, folder, length=1):
    paths = [
        write_shard(
            folder / f"{n}-{count}-{length}.arrow",
            [([5] * length, [True] * length)] * count,
            batch=1000,
        )
        for n, count in enumerate(shard_lengths)
    ]
    return Documents(paths)


@pytest.mark.parametrize(
    ("count", "fraction", "kept"),
    [(1000, 0.05, 50), (1000, 0.0004, 1), (10, 0.99, 9), (2, 0.5, 1), (1, 0.5, 0), (0, 0.5, 0),
     (7, 0.0, 0), (1001, 0.5, 500)],
)  # fmt: skip
def test_fraction_is_exact_and_leaves_something_on_each_side(tmp_path, count, fraction, kept):
    found = some_documents([count], tmp_path)
    assert windows.draw_validation(found, ["a"], fraction, 1).sum() == kept


def test_the_same_documents_are_drawn_for_every_model_and_length(tmp_path):
    one = some_documents([300, 200], tmp_path)
    other = some_documents([300, 200], tmp_path, length=9)
    kept = windows.draw_validation(one, ["a", "b"], 0.1, 42)
    assert np.array_equal(kept, windows.draw_validation(other, ["a", "b"], 0.1, 42))
    assert not np.array_equal(kept, windows.draw_validation(one, ["a", "b"], 0.1, 43))
    assert not np.array_equal(kept, windows.draw_validation(one, ["a", "c"], 0.1, 42))


def test_what_is_drawn_is_the_same_on_every_machine(tmp_path):
    kept = windows.draw_validation(some_documents([12, 8], tmp_path), ["a", "b"], 0.25, 42)
    assert np.flatnonzero(kept).tolist() == [0, 6, 8, 12, 19]


def test_what_is_drawn_hardly_depends_on_other_shards(tmp_path):
    few = windows.draw_validation(some_documents([1000, 1000], tmp_path), ["a", "b"], 0.1, 42)
    more = some_documents([1000, 1000, 500], tmp_path)
    grown = windows.draw_validation(more, ["a", "b", "c"], 0.1, 42)
    assert (few != grown[:2000]).sum() <= 30  # a fresh draw changes some 360
    first = some_documents([500, 1000, 1000], tmp_path)
    moved = windows.draw_validation(first, ["c", "a", "b"], 0.1, 42)
    assert np.array_equal(moved, np.concatenate([grown[2000:], grown[:2000]]))


def test_rows_added_to_a_shard_leave_its_others_drawn(tmp_path):
    few = windows._draws(42, "a", 10)
    assert np.array_equal(windows._draws(42, "a", 15)[:10], few)
