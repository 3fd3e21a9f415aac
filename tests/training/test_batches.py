"""Which rows come into which batch: by number or by tokens, on any number of processes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencache.caches import windows
from tokencache.config.schema import Training
from tokencache.training.batches import Batches, share
from tokencache.training.collate import padded_width

MAX_LENGTH = 2048


def batches(lengths, packed=False, processes=1, rank=0, max_length=MAX_LENGTH, **training):
    made = Training(**training).model_dump()
    return Batches(made, np.asarray(lengths), max_length, packed, processes, rank)


def instruct_like(count, seed=0):
    """Lengths as in data sets of instructions and answers: many short ones and a long tail."""
    drawn = np.random.default_rng(seed).lognormal(5.4, 0.8, count)
    return np.clip(drawn, 8, MAX_LENGTH).astype(np.int64)


def epoch_of(found, epoch=0):
    found.set_epoch(epoch)
    return list(found)


def computed(lengths, batch):
    return len(batch) * padded_width(max(lengths[row] for row in batch), MAX_LENGTH)


SETTINGS = st.fixed_dictionaries({
    "gradient_accumulation_steps": st.sampled_from([4, 8]),
    "group_by_length": st.sampled_from([None, True, False]),
    "seed": st.integers(0, 5),
})  # fmt: skip
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, SETTINGS, st.booleans(), st.sampled_from([None, 40, 100]), st.integers(0, 3))
def test_a_step_has_the_same_rows_on_any_number_of_processes(
    lengths, given, packed, max_tokens, epoch
):
    size = {"max_tokens": max_tokens} if max_tokens else {"per_device_train_batch_size": 2}

    def steps(processes):
        found, made = [], []
        for rank in range(processes):
            mine = batches(lengths, packed, processes, rank, max_length=40, **size, **given)
            made.append(epoch_of(mine, epoch))
            times = mine.times
        assert len({len(part) for part in made}) == 1  # or ranks would wait for each other
        for first in range(0, len(made[0]), times):
            rows = [row for part in made for batch in part[first : first + times] for row in batch]
            found.append(sorted(row for row in rows if row < len(lengths)))
        return found

    alone = steps(1)
    assert sorted(itertools.chain(*alone)) == list(range(len(lengths)))
    assert steps(2) == alone and steps(4) == alone
    assert len(alone) == batches(lengths, packed, max_length=40, **size, **given).schedule(
        Training(**size, **given).model_dump()
    ).in_epoch  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.booleans(), st.sampled_from([40, 64, 1000]))
def test_no_batch_is_over_its_budget(lengths, packed, budget):
    found = batches(lengths, packed, max_length=40, max_tokens=budget)
    for batch in epoch_of(found):
        width = int(padded_width(max(lengths[row] for row in batch), 40))
        assert len(batch) * width <= budget


def test_epochs_differ_and_are_as_long():
    lengths = instruct_like(500)
    for training in ({"max_tokens": 8192}, {"group_by_length": True}, {}):
        found = batches(lengths, **training)
        made = [epoch_of(found, epoch) for epoch in (0, 1, 0)]
        assert made[0] == made[2] != made[1] and len(made[0]) == len(made[1]) == len(found)
        assert {tuple(sorted(b)) for b in made[0]} != {tuple(sorted(b)) for b in made[1]}
        assert epoch_of(batches(lengths, seed=7, **training)) != made[0]
    widest = [max(lengths[row] for row in batch) for batch in made[0]]
    assert widest != sorted(widest) and widest != sorted(widest, reverse=True)


def test_the_order_of_older_runs():
    """That of torch's sampler, seeded with the sum of seed and epoch, as accelerate does it."""
    found = batches(np.full(21, 9), per_device_train_batch_size=4, seed=3)
    for epoch in (0, 2):
        random = torch.Generator().manual_seed(3 + epoch)
        sampler = torch.utils.data.RandomSampler(range(21), generator=random)
        expected = torch.utils.data.BatchSampler(sampler, 4, drop_last=False)
        assert epoch_of(found, epoch) == list(expected)


def waste(lengths, found):
    """Of what is computed in an epoch, the part that is no token."""
    return 1 - lengths.sum() / sum(computed(lengths, batch) for batch in epoch_of(found))


@pytest.mark.parametrize(
    "training",
    [
        {"max_tokens": 8192},
        {"max_tokens": 32768},
        {"group_by_length": True, "per_device_train_batch_size": 16},
    ],
)
def test_little_is_padding_where_rows_are_grouped_by_length(training):
    lengths = instruct_like(20_000)
    found = batches(lengths, **training)
    assert waste(lengths, found) < 0.04
    assert found.padding() == pytest.approx(waste(lengths, found))
    assert waste(lengths, batches(lengths, per_device_train_batch_size=16)) > 0.4


def test_each_side_of_pairs_is_padded_to_its_own_width():
    sources = np.minimum(instruct_like(20_000), 500)
    noise = np.random.default_rng(1).normal(1, 0.15, len(sources))
    pairs = np.stack([sources, np.clip(sources * noise, 1, 500).astype(np.int64)])

    def of(found):
        """The tokens that are computed in an epoch, of each side."""
        sides = [[padded_width(side[batch].max(), 512) for side in pairs] for batch in found]
        return np.array(sides) * np.array([len(batch) for batch in found])[:, None]

    by_tokens = batches(pairs, max_length=512, max_tokens=8192)
    assert of(epoch_of(by_tokens)).max() <= 8192
    assert sorted(itertools.chain(*by_tokens)) == list(range(20_000))
    assert "up to 8,192 tokens a side with their padding" in by_tokens.about(
        Training().model_dump()
    )
    by_rows = batches(pairs, max_length=512, per_device_train_batch_size=16)
    grouped = batches(pairs, max_length=512, per_device_train_batch_size=16, group_by_length=True)
    for found, most in ((by_tokens, 0.04), (grouped, 0.04), (by_rows, 1)):
        padding = 1 - pairs.sum() / of(epoch_of(found)).sum()
        assert found.padding() == pytest.approx(padding)
        assert padding < most
    assert padding > 0.4


def test_hardly_anything_is_padding_in_packed_rows():
    documents = instruct_like(20_000)
    zeros = np.zeros_like(documents)
    alone = windows.Windows(np.arange(len(documents)), zeros, documents)
    rows = windows.rows(alone, MAX_LENGTH, "best_fit")
    lengths = rows.sums(rows.windows.length)
    for training in ({"max_tokens": 16384}, {"per_device_train_batch_size": 8}):
        assert waste(lengths, batches(lengths, packed=True, **training)) < 0.003


def test_a_million_rows_are_planned_fast():
    import time

    lengths = instruct_like(1_000_000)
    start = time.process_time()
    first = next(iter(batches(lengths, max_tokens=16384)))
    assert time.process_time() - start < 2 and first


def test_processes_share_rows():
    training = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4}
    found = share(training, 8)
    assert (found.rows, found.times) == (8, 1)
    found = batches([9] * 99, processes=8, **training)
    assert found.shared() == "of a step's 64 rows each takes 8, 8 at once"
