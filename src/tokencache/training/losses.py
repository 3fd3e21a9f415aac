"""The loss of tokens, summed over a step: the same however the step is split into batches."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..caches.rows import IGNORED


def of_tokens(
    logits: torch.Tensor, labels: torch.Tensor, shifts: bool, smoothing: float = 0.0
) -> torch.Tensor:
    """The loss of each token, flat; 0 where it is no target.

    logits: (rows, width, vocabulary); labels: (rows, width). shifts: whether the logits of a place
    predict the label of the next one, as those of causal models do; a decoder of pairs gets its
    labels one place later already.
    """
    return _cross_entropy(logits, labels, shifts, smoothing, "none")


def summed(
    logits: torch.Tensor, labels: torch.Tensor, shifts: bool, smoothing: float = 0.0
) -> torch.Tensor:
    """The sum of the same."""
    return _cross_entropy(logits, labels, shifts, smoothing, "sum")


def _cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, shifts: bool, smoothing: float, reduction: str
) -> torch.Tensor:
    if shifts:  # the labels, because a part of the logits would be a copy
        labels = functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    return functional.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction=reduction,
        label_smoothing=smoothing,
    )
