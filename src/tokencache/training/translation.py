"""Training on sources and targets: their batches, and what the model makes of some of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from ..caches.rows import IGNORED
from ..caches.view import PairView
from .collate import COUNTS, NUMBER, NUMBERS, Split, lengths_of, padded, padded_width
from .trainer import CacheTrainer

SAMPLES = "translations.jsonl"
SAMPLED = 20  # pairs of the validation split


class PairCollator:
    """Pads sources and targets, each to a width: batches of (rows, width) int64 tensors.

    Names are those of transformers' DataCollatorForSeq2Seq. The decoder gets the labels one
    place later, behind the model's start token. What is padding is known from the rows'
    lengths alone, so a pad token that is also the end-of-text or the start token does no harm.

    COUNTS, NUMBERS and NO_ROW are as Collator's: targets are the labels that are not -100, and
    squares those of the sources. crossed is what the decoder attends to, the sum of the targets'
    squared lengths and of their products with the sources'.
    """

    def __init__(self, pad_id: int, max_length: int, model: PreTrainedModel) -> None:
        self.pad_id, self.max_length = pad_id, max_length
        self.start_id: int = model.config.decoder_start_token_id

    def __call__(self, rows: list[dict[str, np.ndarray]]) -> dict[str, Any]:
        sources, targets = [row["input_ids"] for row in rows], [row["labels"] for row in rows]
        lengths = np.array([list(map(len, sources)), list(map(len, targets))])
        width, target_width = map(int, padded_width(lengths.max(axis=1), self.max_length))
        # A row that attends to nothing has no softmax.
        inside = np.arange(width) < np.maximum(lengths[0], 1)[:, None]
        # As transformers does it, a label that is left out of the loss is a pad token here.
        started = [
            np.concatenate([[self.start_id], np.where(t == IGNORED, self.pad_id, t)[:-1]])
            for t in targets
        ]
        batch: dict[str, Any] = {
            "input_ids": padded(sources, width, self.pad_id),
            "attention_mask": torch.from_numpy(inside.astype(np.int64)),
            "decoder_input_ids": padded(started, target_width, self.pad_id),
            "labels": padded(targets, target_width, IGNORED),
        }
        batch[COUNTS] = {
            "tokens": int(lengths.sum()),
            "sources": int(lengths[0].sum()),
            "targets": int((batch["labels"] != IGNORED).sum()),
            "documents": int((lengths[1] > 0).sum()),
            "squares": int((lengths[0] ** 2).sum()),
            "crossed": int((lengths[1] * lengths.sum(axis=0)).sum()),
            "computed": len(rows) * (width + target_width),
        }
        if numbers := [row[NUMBER] for row in rows if NUMBER in row]:
            batch[NUMBERS] = numbers
        return batch


def split(rows: datasets.Dataset | PairView, made: dict[str, Any] | None = None) -> Split:
    """The pairs of one split that have something to predict; see `collate.split`.

    made: what cache.json says of the split; without it, all of the targets is predicted. Raises
    UserError where a token shard of a view is missing.
    """
    if isinstance(rows, PairView):
        rows.check()
        lengths = rows.lengths()
    else:
        lengths = np.stack([lengths_of(rows, name) for name in ("input_ids", "labels")])
        rows = rows.with_format("numpy")
    without = made["rows_without_targets"] if made else []
    kept = np.delete(np.arange(len(rows)), without) if without else None
    return Split(
        rows=rows if kept is None else rows.select(kept),
        packed=False,
        lengths=lengths if kept is None else lengths[:, kept],
        targets=made["targets"] if made else int(lengths[1].sum()),
        all_rows=rows,
        kept=kept,
    )


def write_samples(folder: Path, run: dict[str, Any], trainer: CacheTrainer) -> None:
    """translations.jsonl: the first pairs of the validation split, and the model's own words.

    Greedy, so that the same weights always say the same.
    """
    backend = Tokenizer.from_file(str(Path(run["tokenizer"]) / "tokenizer.json"))
    pairs = trainer.splits["validation"]
    rows = pairs.rows.__getitems__(list(range(min(SAMPLED, len(pairs)))))
    batch = trainer.data_collator(rows)
    asked = {name: batch[name].to(trainer.model.device) for name in ("input_ids", "attention_mask")}
    trainer.model.eval()
    with torch.no_grad():
        found = trainer.model.generate(
            **asked, max_new_tokens=run["max_length"], num_beams=1, do_sample=False
        )
    said = [
        {
            "source": backend.decode(row["input_ids"].tolist()),
            "target": backend.decode(row["labels"][row["labels"] != IGNORED].tolist()),
            "translation": backend.decode(ids),
        }
        for row, ids in zip(rows, found.tolist(), strict=True)
    ]
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in said)
    (folder / SAMPLES).write_text("".join(lines), encoding="utf-8")
