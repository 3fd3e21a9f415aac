"""The check that a model predicts a token without seeing it, or any later one."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ..errors import UserError
from . import attention
from .collate import COUNTS, Collator
from .model import short
from .translation import PairCollator

LENGTH = 24
# In units of the logits' spread. Rows that begin alike have the same logits there, mostly to the
# bit; those of a small model of random weights that sees all tokens move by 0.005 and more.
TOLERANCE, HALF_TOLERANCE = 1e-4, 0.02
# Keys that make a causal model of an architecture that sees all tokens otherwise.
SWITCHES = ("is_decoder", "causal")


def check(
    model: PreTrainedModel,
    run: dict[str, Any],
    collate: Collator | PairCollator,
    precision: str = "float32",
) -> None:
    """Change later tokens of made-up rows: the logits before them must stay.

    Of an encoder with a decoder, tokens of the target. Raises UserError where logits change, for
    such a model would learn to copy what it should predict.
    """
    length = min(LENGTH, run["max_length"])
    size = model.get_input_embeddings().weight.shape[0]
    # Of so many tokens each changed row is like the first one; then it differs.
    same = sorted({1, length // 2, length - 1} - {0, length})
    if not same or size < 2:
        return
    ids, places = np.arange(1, length + 1) * 31 % size, np.arange(length)
    later = places + run["pairs"]  # where a decoder gets its labels
    changed = [np.where(later < seen, ids, (ids + size // 2) % size) for seen in same]
    rows = [_row(ids, found, run) for found in (ids, *changed)]
    batch = collate(rows)
    batch.pop(COUNTS), batch.pop("labels")
    where = f"models.{run['model']} on datasets.{run['dataset']}"
    half = attention.base(model).config._attn_implementation in attention.IN_HALF
    try:
        logits = attention.logits_of(model, batch, precision, half)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(
            f"{where}: this model can't be used with the rows of a cache ({short(error)})"
        ) from None
    # Logits that are not finite say nothing, for NaN goes through a mask too. The loss will tell.
    finite, found = logits.isfinite().all(-1), [0.0]
    for number, seen in enumerate(same, start=1):
        kept = (finite[0] & finite[number])[:seen]
        if kept.any():
            moved, first = logits[number, :seen][kept], logits[:1, :seen][:, kept]
            found.append(attention.off(moved, first, half))
    worst = max(found)
    if worst > (HALF_TOLERANCE if half else TOLERANCE):
        raise UserError(
            f"{where}: {'the decoder of ' * run['pairs']}this model ({model.config.model_type}) "
            "sees the tokens that it should predict: a change of later ones moves earlier logits "
            f"by {worst:.2g} of their spread; {_advice(model, run)}"
        )


def _row(ids: np.ndarray, changed: np.ndarray, run: dict[str, Any]) -> dict[str, np.ndarray]:
    if run["pairs"]:
        return {"input_ids": ids, "labels": changed}
    whole = {"position_ids": np.arange(len(ids)), "seq_lengths": np.array([len(ids)])}
    return {"input_ids": changed, "labels": changed} | whole


def _advice(model: PreTrainedModel, run: dict[str, Any]) -> str:
    if run["pairs"]:
        return "take another one, such as marian, bart or t5"
    for name in SWITCHES:
        if getattr(model.config, name, None) is False:
            return (
                f"set {name}: true in its architecture (or in the config.json of its weights), or "
                "take a causal model such as llama or gpt2"
            )
    return "take a causal model such as llama or gpt2"
