"""Batches are masked by length, and rows without a target are left out."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value

from tokencache.training.collate import COUNTS, IGNORED, NO_ROW, Collator, split

PAD = 2  # the end-of-text token as well


def row(ids, labels=None):
    return {"input_ids": np.array(ids), "labels": np.array(ids if labels is None else labels)}


def packed_row(*documents):
    ids = [token for document in documents for token in document]
    labels = [IGNORED if i == 0 else token for d in documents for i, token in enumerate(d)]
    return row(ids, labels) | {
        "position_ids": np.concatenate([np.arange(len(d)) for d in documents]),
        "seq_lengths": np.array([len(d) for d in documents]),
    }


def dataset(labels):
    features = Features({"input_ids": List(Value("uint16")), "labels": List(Value("int32"))})
    ids = [[7] * len(row) for row in labels]
    return Dataset.from_dict({"input_ids": ids, "labels": labels}, features=features)


def test_a_real_eos_stays_a_target_where_pad_is_eos():
    batch = Collator(PAD, 64, packed=False)([row([5, PAD, 6, PAD]), row([5])])
    assert batch["input_ids"].tolist() == [[5, PAD, 6, PAD] + [PAD] * 4, [5] + [PAD] * 7]
    assert batch["labels"].tolist() == [[5, PAD, 6, PAD] + [IGNORED] * 4, [5] + [IGNORED] * 7]
    assert batch["attention_mask"].sum(1).tolist() == [4, 1]
    assert batch[COUNTS] == {
        "tokens": 5, "targets": 3, "documents": 2, "squares": 17, "computed": 16
    }  # fmt: skip


def test_width_is_a_multiple_of_8_within_max_length():
    assert Collator(0, 64, packed=False)([row(range(9))])["input_ids"].shape == (1, 16)
    assert Collator(0, 10, packed=False)([row(range(9))])["input_ids"].shape == (1, 10)
    assert Collator(0, 64, packed=False)([row(range(16))])["input_ids"].shape == (1, 16)


def test_padding_of_a_packed_row_is_a_document_of_its_own():
    rows = [packed_row([5, 6, 7], [8, 9]), packed_row([5], [6])]
    batch = Collator(PAD, 64, packed=True)(rows)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], [0, 0, 0, 1, 2, 3, 4, 5]]
    assert batch["labels"][0].tolist() == [IGNORED, 6, 7, IGNORED, 9] + [IGNORED] * 3
    assert "attention_mask" not in batch and batch["use_cache"] is False
    assert batch[COUNTS] == {
        "tokens": 7, "targets": 3, "documents": 4, "squares": 9 + 4 + 1 + 1, "computed": 16
    }  # fmt: skip
    assert batch["input_ids"].dtype == torch.int64


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_that_is_not_there_counts_for_nothing(packed):
    batch = Collator(PAD, 64, packed)([NO_ROW])
    assert batch["labels"].tolist() == [[IGNORED] * 8]
    counts = batch[COUNTS]
    assert counts.pop("computed") == 8 and not any(counts.values())
    assert packed or batch["attention_mask"].sum() == 1


# What cache.json says of them, which spares the reading of all labels.
MADE = {"rows": 6, "targets": 3, "rows_without_targets": [1, 2, 3, 5]}


@pytest.mark.parametrize("made", [None, MADE, {"rows": 6, "tokens_trained": 4}])
def test_rows_without_a_target_are_left_out(made):
    rows = [[1, 2, 3], [IGNORED] * 4, [5], [], [IGNORED, 6], [7, IGNORED]]
    found = split(dataset(rows), made)
    assert [r["labels"].tolist() for r in found.rows] == [[1, 2, 3], [IGNORED, 6]]
    assert (found.tokens, found.targets, found.left_out, found.packed) == (5, 3, 4, False)
    assert found.lengths.tolist() == [3, 2] and found.in_cache([1, 0]) == [4, 0]


def test_counts_follow_the_rows_that_were_selected():
    found = split(dataset([[1, 2, 3], [4, 5], [6, 7, 8, 9]]).select([2, 0]))
    assert (len(found), found.tokens, found.targets) == (2, 7, 5)
    assert len(split(dataset([[1]]))) == 0
