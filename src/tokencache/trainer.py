"""transformers.Trainer as a run needs it: exact losses, own records, whole checkpoints."""

from __future__ import annotations

import itertools
import math
import signal
import tempfile
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.data_loader import prepare_data_loader
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments

from . import checkpoints as saved
from . import collectives, metrics, ranks
from .batching import Batches, Rows, evaluation_batches
from .collate import COUNTS, IGNORED, NO_ROW, NUMBERS, Collator, Split
from .errors import Stopped, UserError
from .meter import Meter, ShowSteps
from .metrics import say
from .progress import Progress
from .stopping import GoOn, Interruptions, LogWithCheckpoints, leave_to_parent
from .watch import Watch, describe


class CacheTrainer(Trainer):
    """transformers.Trainer with an exact validation loss, own records, whole checkpoints."""

    def __init__(
        self,
        run: dict[str, Any],
        model: transformers.PreTrainedModel,
        arguments: TrainingArguments,
        splits: dict[str, Split],
        collator: Collator,
        batches: Batches,
        peak: float | None = None,
    ) -> None:
        self.planned, self.splits, self.batches = run, splits, batches
        self.smoothing: float = run["training"]["label_smoothing_factor"]
        self.in_epoch = batches.schedule(run["training"]).in_epoch
        self.meter = Meter(model, peak)
        self.resumed_from: int | None = None
        self.first: dict[str, Any] | None = None
        self._run_folder: str | None = None
        self._best: int | None = None
        self._watch = Watch()
        self._label = f"{run['model']} {run['dataset']} {run['max_length']}"
        self._steps = ShowSteps(f"train {self._label}")
        self.interruptions = Interruptions(run["training"]["save_minutes"])
        self._unlogged: list[dict[str, Any]] = []
        self._saved: int | None = None
        super().__init__(
            model,
            arguments,
            data_collator=collator,
            train_dataset=Rows(splits["train"]),
            eval_dataset=splits["validation"].rows if "validation" in splits else None,
            callbacks=[LogWithCheckpoints(self.in_epoch), self._steps, GoOn(self.take_up)],
        )
        self.remove_callback(PrinterCallback)
        if run["pairs"] or self.smoothing or not self.model_accepts_loss_kwargs:
            # Its own loss is a mean over a batch: wrong where batches are accumulated.
            self.compute_loss_func = self._loss_of_tokens
            self._loss_shifts_labels = not run["pairs"]

    @property
    def scratch(self) -> bool:
        return self.planned["weights"] is None

    def run_from(self, checkpoint: saved.Checkpoint | None, turn: saved.Turn) -> None:
        """Train to the end from a checkpoint, or from the start.

        Raises Stopped where a signal that `interruptions` hears came before the last step.
        """
        self._turn = turn
        if checkpoint is None:
            self.meter.start()
            self._write_live([])
            self.train()
            return
        self.resumed_from = checkpoint.step
        self.meter.start(checkpoint.step, checkpoint.counts, checkpoint.seconds)
        state = TrainerState.load_from_json(str(checkpoint.folder / "trainer_state.json"))
        self.args.eval_on_start = self._lacks_validation(state)
        self._unlogged = checkpoint.unlogged
        self._write_live(state.log_history)
        self._set_first(state.log_history, quiet=True)
        say(f"goes on from the checkpoint at step {checkpoint.step}")
        if checkpoint.step >= state.max_steps:
            # Only the results are missing. The trainer would make one step more.
            self._load_from_checkpoint(str(checkpoint.folder))
            self.state = state
        else:
            self.train(resume_from_checkpoint=str(checkpoint.folder))

    def take_up(self) -> None:
        """What the last record of the run that this one goes on from did not say yet."""
        if self._unlogged:
            self.meter.go_on(self._unlogged)
            mine = self._unlogged[ranks.rank() % len(self._unlogged)]
            if len(self._unlogged) == ranks.count():
                loss = mine["loss"]
            else:
                loss = sum(part["loss"] for part in self._unlogged) / len(self._unlogged)
            self._tr_loss += loss
            self._globalstep_last_logged = mine["logged"]

    def _lacks_validation(self, state: TrainerState) -> bool:
        """Whether the run that this one goes on from was stopped before the validation."""
        done = {record["step"] for record in state.log_history if "validation_loss" in record}
        step = state.global_step
        due = "validation" in self.splits and step % int(self.args.eval_steps) == 0
        return due and step not in done

    # Training

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this rank: `Batches` alone says which, and the loader shares none out."""
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            worker_init_fn=leave_to_parent,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True,
            non_blocking=self.args.dataloader_pin_memory,
        )  # fmt: skip

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        with self.meter.waiting():
            batches = list(itertools.islice(epoch_iterator, num_batches))
        return batches, self._get_num_items_in_batch(batches, device)

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        counts = inputs.pop(COUNTS)
        self.meter.add(counts)
        self._steps.count(counts["tokens"])
        rows = inputs.pop(NUMBERS, [])
        loss = super().training_step(model, inputs, *rest, **more)
        self._watch.add_batch(rows, loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._watch.end_step(self.state.global_step + 1, norm)
        return norm

    def _token_losses(
        self, logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0
    ) -> torch.Tensor:
        """The loss of each token, flat; 0 where it is no target.

        A causal model predicts a row's own next tokens, so none predicts its first one; a
        decoder gets the labels one place later.
        """
        if not self.planned["pairs"]:
            logits, labels = logits[:, :-1], labels[:, 1:]
        return functional.cross_entropy(
            logits.float().flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=smoothing,
        )

    def _loss_of_tokens(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any
    ) -> torch.Tensor:
        losses = self._token_losses(outputs["logits"], labels, self.smoothing)
        return losses.sum() / num_items_in_batch

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The validation loss, averaged over every target token of the split."""
        told, last = None, self.state.global_step >= self.state.max_steps
        with self.meter.paused():
            split, total = self.splits["validation"], torch.zeros((), dtype=torch.float64)
            batches = evaluation_batches(
                split, self.planned["training"], self.planned["max_length"]
            )
            # As many for each rank: those that hold a part of a model compute together.
            batches = [*batches, *[()] * (-len(batches) % ranks.count())]
            mine = batches[ranks.rank() :: ranks.count()]
            self.model.eval()
            with torch.no_grad(), self._validating(len(mine)) as shown:
                for numbers in mine:
                    if not last:
                        told, _ = self.interruptions.asked()
                        if told:
                            break
                    rows = split.rows.__getitems__(list(numbers)) if len(numbers) else [NO_ROW]
                    batch = self.data_collator(rows)
                    del batch[COUNTS]
                    batch = self._prepare_inputs(batch)
                    labels = batch.pop("labels")
                    losses = self._token_losses(self.model(**batch).logits, labels)
                    total += losses.double().sum().cpu()
                    if shown:
                        shown.update(1)
            self.model.train()
        if told:
            self._stop(told)
        total = collectives.summed({"loss": total.item()})["loss"]
        found = total / split.targets
        best = min(self._validation_losses().values(), default=math.inf)
        if self.planned["training"]["load_best_model_at_end"] and found < best:
            self.control.should_save = True
        self.log({"validation_loss": found, "validation_perplexity": metrics.perplexity(found)
                  if math.isfinite(found) else None})  # fmt: skip
        result = {"eval_loss": found}
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, result
        )
        return result

    def _validating(self, batches: int) -> AbstractContextManager[Progress | None]:
        """The first rank says it for all."""
        if not ranks.first():
            return nullcontext()
        return Progress(batches, "batches", f"validate {self._label}", passing=True)

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
        self._watch.clear()
        self.state.log_history.append(record)
        if ranks.first():
            self._turn.check()
            with open(self._live, "a", encoding="utf-8") as stream:
                stream.write(metrics.dumps(record))
        left = self.meter.left(self.state.global_step, self.state.max_steps)
        say(metrics.line(record, self.state.max_steps, left))
        self._say_epoch(record)
        if self.first is None:
            self._set_first([record])
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, record)

    def _training_record(self, logs: dict[str, Any]) -> dict[str, Any]:
        norm, step = logs["grad_norm"], self.state.global_step
        so_far = [*self.state.log_history, {"step": step, "loss": logs["loss"]}]
        return {
            "loss": logs["loss"],
            "average_loss": metrics.average(so_far, step - (step - 1) % self.in_epoch - 1),
            "perplexity": None if self.smoothing else metrics.perplexity(logs["loss"]),
            "learning_rate": logs["learning_rate"],
            # In float16 the loss scaler makes infinite ones, and skips those steps.
            "grad_norm": norm if math.isfinite(norm) else None,
            **self.meter.record(),
        }

    def epochs(self) -> list[dict[str, Any]]:
        """Summaries of the epochs that are over."""
        return metrics.epochs(self.state.log_history, self.in_epoch, self.smoothing > 0)

    def _say_epoch(self, record: dict[str, Any]) -> None:
        """At an epoch's end, when its last record is there."""
        if record["step"] % self.in_epoch or not record["step"]:
            return
        if metrics.is_training(record) and self.control.should_evaluate:
            return
        number = record["step"] // self.in_epoch
        summaries = self.epochs()
        if len(summaries) >= number:
            total = -(-self.state.max_steps // self.in_epoch)
            say(metrics.epoch_line(summaries[number - 1], total))

    def _check(self, step: int, **values: float) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"models.{self.planned['model']} on datasets.{self.planned['dataset']}: "
                    f"{name.replace('_', ' ')} is {value} at step {step}, so the training is "
                    "stopped; a lower training.learning_rate, training.warmup_ratio or "
                    f"training.max_grad_norm: 1.0 may help{self._blame()}"
                )

    def _blame(self) -> str:
        bad = self._watch.first_bad(norms=not self.args.fp16)
        if bad is None:
            return ""
        rows = describe(self.splits["train"], Path(self.planned["cache"]), bad.rows)
        return f". The first {bad.what} that is not finite came at step {bad.step}, from {rows}"

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

    def _maybe_log_save_evaluate(self, *given: Any, **more: Any) -> None:
        """With checkpoints out of turn: where one is due by the clock, and before a stop."""
        told, due = self.interruptions.asked()
        step, steps = self.state.global_step, self.state.max_steps
        stops = told is not None and step < steps
        if stops:
            # It may take long. The run that goes on makes up for it.
            self.control.should_evaluate = False
        if due and not stops and self._saved != step:  # at an epoch's end this is called twice
            self.control.should_save = True
        super()._maybe_log_save_evaluate(*given, **more)
        if stops:
            self._stop(told)

    def _stop(self, told: signal.Signals) -> None:
        """End the run with a checkpoint of the step that it has come to. Every rank calls this."""
        step = self.state.global_step
        there = saved.folder_of(self.args.output_dir, step).exists()
        if step and not collectives.from_first(there):
            self._save_checkpoint(self.model_wrapped, None)
        collectives.from_first(None)  # or torchrun would end the first rank while it writes
        goes_on = "with a checkpoint; started again, the run goes on from there"
        raise Stopped(
            f"stopped by {told.name} after step {step} of {self.state.max_steps}"
            + (f", {goes_on}" if step else ""),
            told,
        )

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

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # By the names that the model has: a checkpoint is loaded by these, and those of files,
        # which are others where a model keeps its experts together, would be passed over.
        names = {} if self.planned["lora"] else {"save_original_format": False}
        self.model.save_pretrained(output_dir, state_dict=state_dict, **names)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        self._check_names(load_result.unexpected_keys)

    def _check_names(self, unknown: Collection[str]) -> None:
        """Of weights in a checkpoint that this model lacks."""
        if unknown:
            raise UserError(
                f"{self.args.output_dir}: a checkpoint of another version of this program, whose "
                "weights would be lost here; remove this folder, and the run begins anew"
            )

    def _seen_since_record(self) -> list[dict[str, Any]]:
        """Of each rank. Raises UserError where a loss or gradient was not finite meanwhile."""
        if bad := self._watch.first_bad(norms=not self.args.fp16):
            self._check(bad.step, **{bad.what: math.nan})
        own = {"loss": self._tr_loss.item(), "logged": self._globalstep_last_logged}
        return collectives.gathered(own | self.meter.unlogged())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        unlogged = self._seen_since_record()
        self.interruptions.saved()
        self._saved = self.state.global_step
        if not ranks.first():
            self._random_states()
            return
        with self.meter.paused():
            about = {"key": self.planned["key"], "counts": self.meter.counts,
                     "seconds": self.meter.seconds, "unlogged": unlogged}  # fmt: skip
            step, turn = self.state.global_step, self._turn
            with saved.saving(self.args.output_dir, step, about, turn) as folder:
                self._run_folder = str(folder.parent)
                try:
                    super()._save_checkpoint(model, trial)
                finally:
                    self._run_folder = None
            limit = self.planned["training"]["save_total_limit"]
            saved.rotate(self.args.output_dir, limit, self._validation_losses())

    def _validation_losses(self) -> dict[int, float]:
        """By step, but for the one before the first."""
        return {
            record["step"]: record["validation_loss"]
            for record in self.state.log_history
            if record["step"] and "validation_loss" in record
        }

    def load_best(self) -> None:
        """Take the weights of the lowest validation loss."""
        losses = self._validation_losses()
        best = saved.best(losses, losses)
        if best != self.state.global_step:
            self._load_from_checkpoint(str(saved.whole(self.args.output_dir, best)))
        self._best = best
        say(f"the weights are those of step {best}: validation loss {losses[best]:.4f}")

    @property
    def weights_of_step(self) -> int:
        return self._best or self.state.global_step
