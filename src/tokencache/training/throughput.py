"""What a training run has seen, how long it took, and what follows from both."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Embedding
from transformers import PreTrainedModel, TrainerCallback

from ..base.progress import Progress
from ..plan.experts import Experts, experts
from . import collectives, ranks

COUNTED = ("tokens", "targets", "documents")  # since the run's start; the rest since a record


def model_flops(model: PreTrainedModel) -> dict[str, float]:
    """FLOPs of a training step for each of what is counted in a batch, by its name.

    tokens: of each token; squares: of each pair of tokens in a document. 6 N and 12 L H Q,
    as in appendix B of PaLM (Chowdhery et al. 2022, arXiv:2204.02311): N weights that are
    multiplied with, L layers of H heads of Q dimensions. Each weight takes 2 in the forward
    pass and 4 in the backward pass, of which 2 are for its own gradient; one that is not
    trained has none. Of a mixture's experts, those count that compute a token. What is computed
    twice for activation checkpointing is not counted, nor is padding.

    Of an encoder with a decoder: sources and targets, of each token of theirs; squares, of each
    pair of tokens in a source; crossed, of each token of a target and one that it attends to.
    What the decoder makes of the sources' tokens is counted as if there were as many of them
    as of the targets'.
    """
    output = model.get_output_embeddings()
    head = set() if output is None else {id(output.weight)}
    looked_up = {id(part.weight) for part in model.modules() if isinstance(part, Embedding)} - head
    config = model.config.get_text_config()
    mixture = experts(lambda name: getattr(config, name, None))
    flops = {
        id(weight): weight.numel()
        * (6 if weight.requires_grad else 4)
        * _share(name, weight, mixture)
        for name, weight in model.named_parameters()
        if id(weight) not in looked_up
    }
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):  # no attention, or another in each layer
        return {"tokens": sum(flops.values()), "squares": 0}
    hidden, layers = config.hidden_size, config.num_hidden_layers
    a_layer = 12 * heads * (getattr(config, "head_dim", None) or hidden // heads)
    if not model.config.is_encoder_decoder:
        return {"tokens": sum(flops.values()), "squares": layers * a_layer}
    encoder = set(map(id, model.get_encoder().parameters())) - head
    names = ("decoder_layers", "num_decoder_layers")
    decoder_layers = next((getattr(config, n) for n in names if getattr(config, n, None)), layers)
    return {
        "sources": sum(found for weight, found in flops.items() if weight in encoder),
        "targets": sum(found for weight, found in flops.items() if weight not in encoder),
        "squares": layers * a_layer,
        "crossed": decoder_layers * a_layer,
    }


def _share(name: str, weight: torch.Tensor, mixture: Experts | None) -> float:
    """How much of a weight a token is multiplied with. Experts are a module each, or one tensor
    for all of a layer."""
    if mixture is None:
        return 1
    stacked = weight.ndim == 3 and weight.shape[0] == mixture.count
    return mixture.share if stacked or "experts" in name.split(".") else 1


class Meter:
    """Counts what this rank sees, and makes of it, for all ranks, what a record says.

    counts: tokens (without padding), targets and documents of all ranks, as of the last
    record. before: seconds trained before this process, up to the checkpoint that it goes
    on from. peak: FLOPs per second that a rank's device can do, or None.
    """

    def __init__(self, model: PreTrainedModel, peak: float | None) -> None:
        self.counts = dict.fromkeys(COUNTED, 0)
        self.before = 0.0
        self._peak = peak
        self._flops = None if peak is None else model_flops(model)
        self._own: Counter[str] = Counter()

    def start(self, step: int = 0, counts: dict[str, int] | None = None, before: float = 0) -> None:
        self.counts |= counts or {}
        self.before, self._first_step = before, step
        self._began = self._since = time.monotonic()
        self._aside = self._aside_since = self._waited = 0.0

    def unlogged(self) -> dict[str, Any]:
        """What this rank has seen since the last record, and how long it took."""
        return {"own": dict(self._own), "waited": self._waited, "took": self._took()}

    def go_on(self, unlogged: list[dict[str, Any]]) -> None:
        """Take up what each rank had seen, of as many ranks as there were."""
        mine = unlogged[ranks.rank() :: ranks.count()]
        for part in mine:
            self._own.update(part["own"])
            self._waited += part["waited"]
        self._since -= max(part["took"] for part in unlogged)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in here, such as validation, is no part of the rates."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._aside += time.monotonic() - began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Batches are fetched in here."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - began

    def add(self, counts: dict[str, int]) -> None:
        self._own.update(counts)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self._began

    def record(self) -> dict[str, Any]:
        """The counts, and the rates and shares since the last record. Every rank calls this."""
        seconds = max(self._took(), 1e-9)
        amounts = {"waited": self._waited} | self._own
        found = collectives.summed(amounts)
        for name in COUNTED:
            self.counts[name] += int(found[name])
        self._own.clear()
        self._since, self._aside_since, self._waited = time.monotonic(), self._aside, 0.0
        return {
            "useful_share": round(found["targets"] / found["computed"], 6),
            **self.counts,
            "tokens_per_second": round(found["tokens"] / seconds, 1),
            "useful_tokens_per_second": round(found["targets"] / seconds, 1),
            "data_wait_share": round(found["waited"] / seconds / ranks.count(), 4),
            "mfu": self._utilization(found, seconds),
            "seconds": round(self.seconds, 3),
        }

    def _took(self) -> float:
        """Seconds since the last record, but for what was no part of the rates."""
        return time.monotonic() - self._since - (self._aside - self._aside_since)

    def _utilization(self, found: dict[str, float], seconds: float) -> float | None:
        if self._peak is None:
            return None
        done = sum(flops * found[name] for name, flops in self._flops.items())
        return round(done / seconds / (self._peak * ranks.count()), 4)

    def left(self, step: int, steps: int) -> float | None:
        """Seconds to the last step, validation included, as they were so far."""
        done = step - self._first_step
        return (time.monotonic() - self._began) / done * (steps - step) if done else None


class ShowSteps(TrainerCallback):
    """Shows how far a run is, on its first rank and between the records."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._progress: Progress | None = None
        self._tokens = 0

    def count(self, tokens: int) -> None:
        """Of this rank's batch; the others' are as large."""
        self._tokens += tokens * ranks.count()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if ranks.first():
            self._progress = Progress(
                state.max_steps, "steps", self._label, before=state.global_step, passing=True
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._progress:
            self._progress.update(1, tokens=self._tokens)
            self._tokens = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self._progress:
            self._progress.said()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._progress:
            self._progress.close()
