"""transformers.Trainer as a run needs it: exact losses, own records, whole checkpoints."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from . import checkpoints as saved
from . import collectives, metrics, ranks
from .collate import COUNTS, IGNORED, NO_ROW, Collator, Split
from .errors import UserError
from .metrics import say


class _Clock:
    """Seconds of training, with those of validation and checkpoints kept apart."""

    def start(self, tokens: int = 0, step: int = 0) -> None:
        self._first = self._since = time.monotonic()
        self._aside = self._aside_since = 0.0
        self._tokens, self._first_step = tokens, step

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._aside += time.monotonic() - began

    def elapsed(self) -> float:
        return time.monotonic() - self._first

    def rate(self, tokens: int) -> float:
        """Tokens per second since this was last asked."""
        now = time.monotonic()
        seconds = now - self._since - (self._aside - self._aside_since)
        found = (tokens - self._tokens) / max(seconds, 1e-9)
        self._since, self._aside_since, self._tokens = now, self._aside, tokens
        return found

    def left(self, step: int, steps: int) -> float | None:
        """Seconds to the last step, validation included, as they were so far."""
        done = step - self._first_step
        return self.elapsed() / done * (steps - step) if done else None


def _token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of each token but the first of each row, flat; 0 where it is no target."""
    return functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )


def _loss_of_tokens(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
    return _token_losses(outputs["logits"], labels).sum() / num_items_in_batch


class Rows:
    """The rows of a data set, and after its end NO_ROW as often as it is asked for."""

    def __init__(self, rows: Dataset) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        there = [place for place in places if place < len(self)]
        return self._rows.__getitems__(there) + [NO_ROW] * (len(places) - len(there))


class Filled(Sampler):
    """The places of another sampler, and some after the end to make up a multiple."""

    def __init__(self, sampler: Sampler, multiple: int) -> None:
        self._sampler, self._multiple = sampler, multiple

    def __len__(self) -> int:
        return -(-len(self._sampler) // self._multiple) * self._multiple

    def __iter__(self) -> Iterator[int]:
        yield from self._sampler
        yield from range(len(self._sampler), len(self))

    def set_epoch(self, epoch: int) -> None:
        self._sampler.set_epoch(epoch)


class LogWithCheckpoints(TrainerCallback):
    """Log at each checkpoint and at the end: a resumed run has the same records."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save or control.should_evaluate or control.should_training_stop:
            control.should_log = True


class CacheTrainer(Trainer):
    """transformers.Trainer with an exact validation loss, own records, whole checkpoints."""

    def __init__(
        self,
        run: dict[str, Any],
        model: transformers.PreTrainedModel,
        arguments: TrainingArguments,
        splits: dict[str, Split],
        collator: Collator,
    ) -> None:
        self.planned, self.splits = run, splits
        self.counts = {"tokens": 0, "documents": 0}  # of all ranks, as of the last record
        self._own_counts = Counter(self.counts)  # of this one, since then
        self.seconds_before = 0.0  # trained before this process, up to the checkpoint
        self.resumed_from: int | None = None
        self.first: dict[str, Any] | None = None
        self._run_folder: str | None = None
        self._clock = _Clock()
        super().__init__(
            model,
            arguments,
            data_collator=collator,
            train_dataset=Rows(splits["train"].rows),
            eval_dataset=splits["validation"].rows if "validation" in splits else None,
            callbacks=[LogWithCheckpoints()],
        )
        self.remove_callback(PrinterCallback)
        if not self.model_accepts_loss_kwargs:
            # Its own loss is a mean over a batch: wrong where batches are accumulated.
            self.compute_loss_func = _loss_of_tokens
            self._loss_shifts_labels = True

    @property
    def scratch(self) -> bool:
        return self.planned["weights"] is None

    def run_from(self, checkpoint: saved.Checkpoint | None, turn: saved.Turn) -> None:
        """Train to the end from a checkpoint, or from the start."""
        self._turn = turn
        if checkpoint is None:
            self._clock.start()
            self._write_live([])
            self.train()
            return
        self.resumed_from = checkpoint.step
        self.counts, self.seconds_before = dict(checkpoint.counts), checkpoint.seconds
        self._clock.start(self.counts["tokens"], checkpoint.step)
        self.args.eval_on_start = False
        state = TrainerState.load_from_json(str(checkpoint.folder / "trainer_state.json"))
        self._write_live(state.log_history)
        self._set_first(state.log_history, quiet=True)
        say(f"goes on from the checkpoint at step {checkpoint.step}")
        if checkpoint.step >= state.max_steps:
            # Only the results are missing. The trainer would make one step more.
            self._load_from_checkpoint(str(checkpoint.folder))
            self.state = state
        else:
            self.train(resume_from_checkpoint=str(checkpoint.folder))

    @property
    def seconds(self) -> float:
        return self.seconds_before + self._clock.elapsed()

    # Training

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this rank. A step has the rows that it has on one process.

        Left alone, the loader would fill the last step of an epoch up with rows from
        the epoch's beginning, so that ranks have equally many.
        """
        loader = super().get_train_dataloader()
        if ranks.count() > 1:
            multiple = self.args.per_device_train_batch_size * ranks.count()
            loader.set_sampler(Filled(loader.get_sampler(), multiple))
        return loader

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        self._own_counts.update(inputs.pop(COUNTS))
        return super().training_step(model, inputs, *rest, **more)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The validation loss, averaged over every target token of the split."""
        with self._clock.paused():
            rows, size = self.splits["validation"].rows, self.args.per_device_eval_batch_size
            total = torch.zeros((), dtype=torch.float64)
            self.model.eval()
            with torch.no_grad():
                for start in range(ranks.rank() * size, len(rows), ranks.count() * size):
                    batch = self.data_collator(
                        rows.__getitems__(list(range(start, min(len(rows), start + size))))
                    )
                    del batch[COUNTS]
                    batch = self._prepare_inputs(batch)
                    labels = batch.pop("labels")
                    losses = _token_losses(self.model(**batch).logits, labels)
                    total += losses.double().sum().cpu()
            self.model.train()
            total = collectives.summed({"loss": total.item()})["loss"]
        found = total / self.splits["validation"].targets
        self.log({"validation_loss": found, "validation_perplexity": metrics.perplexity(found)
                  if math.isfinite(found) else None})  # fmt: skip
        result = {"eval_loss": found}
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, result
        )
        return result

    # Records

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        place = {"step": self.state.global_step, "epoch": round(self.state.epoch or 0.0, 6)}
        if "validation_loss" in logs:
            self._check(place["step"], validation_loss=logs["validation_loss"])
            record = place | logs
        elif "loss" in logs:
            norm = {} if self.args.fp16 else {"grad_norm": logs["grad_norm"]}
            self._check(place["step"], loss=logs["loss"], **norm)
            record = place | self._training_record(logs)
        else:
            return  # the summary at the end, which run.json has
        self.state.log_history.append(record)
        if ranks.first():
            self._turn.check()
            with open(self._live, "a", encoding="utf-8") as stream:
                stream.write(metrics.dumps(record))
        left = self._clock.left(self.state.global_step, self.state.max_steps)
        say(metrics.line(record, self.state.max_steps, left))
        if self.first is None:
            self._set_first([record])
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, record)

    def _training_record(self, logs: dict[str, Any]) -> dict[str, Any]:
        for name, count in collectives.summed(self._own_counts).items():
            self.counts[name] += int(count)
            self._own_counts[name] = 0
        rate = self._clock.rate(self.counts["tokens"])
        norm = logs["grad_norm"]
        return {
            "loss": logs["loss"],
            "perplexity": metrics.perplexity(logs["loss"]),
            "learning_rate": logs["learning_rate"],
            # In float16 the loss scaler makes infinite ones, and skips those steps.
            "grad_norm": norm if math.isfinite(norm) else None,
            "tokens_per_second": round(rate, 1),
            **self.counts,
        }

    def _check(self, step: int, **values: float) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"models.{self.planned['model']} on datasets.{self.planned['dataset']}: "
                    f"{name.replace('_', ' ')} is {value} at step {step}, so the training is "
                    "stopped; a lower training.learning_rate, training.warmup_ratio or "
                    "training.max_grad_norm: 1.0 may help"
                )

    def _set_first(self, records: list[dict[str, Any]], quiet: bool = False) -> None:
        losses = [record["loss"] for record in records if metrics.is_training(record)]
        if losses:
            size = self.model.get_input_embeddings().weight.shape[0]
            self.first = metrics.first_loss(losses[0], size, self.scratch)
            if not quiet:
                metrics.say_first_loss(self.first, self.scratch)

    @property
    def _live(self) -> Path:
        return Path(self.args.output_dir, "metrics.jsonl")

    def _write_live(self, records: list[dict[str, Any]]) -> None:
        if ranks.first():
            self._live.parent.mkdir(parents=True, exist_ok=True)
            metrics.write(self._live, records)

    def store_flos(self) -> None:
        """Nothing: nobody asks for them, and ranks would wait for each other here."""

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return self._run_folder or super()._get_output_dir(trial)

    def _random_states(self) -> dict[str, bytes]:
        """By file name, the states of all ranks' random numbers."""
        with tempfile.TemporaryDirectory() as folder:
            super()._save_rng_state(folder)
            own = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
        return {
            name: state for states in collectives.gathered(own) for name, state in states.items()
        }

    def _save_rng_state(self, output_dir: str) -> None:
        # Not each rank its own: a machine may see late what another one put into a folder.
        for name, state in self._random_states().items():
            Path(output_dir, name).write_bytes(state)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not ranks.first():
            self._random_states()
            return
        with self._clock.paused():
            about = {"key": self.planned["key"], "counts": self.counts, "seconds": self.seconds}
            step, turn = self.state.global_step, self._turn
            with saved.saving(self.args.output_dir, step, about, turn) as folder:
                self._run_folder = str(folder.parent)
                try:
                    super()._save_checkpoint(model, trial)
                finally:
                    self._run_folder = None
            saved.rotate(self.args.output_dir, self.planned["training"]["save_total_limit"])
