"""transformers.Trainer as a run needs it: exact losses, own records, whole checkpoints."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainingArguments

from ..base.progress import Progress
from ..errors import UserError
from . import collectives, losses, metrics, ranks, router
from .batches import Batches, Rows, evaluation_batches
from .collate import COUNTS, LENGTHS, NO_ROW, NUMBERS, Collator, Split
from .metrics import say
from .nonfinite import Watch, describe
from .resumable import ResumableTrainer
from .stopping import GoOn, Interruptions, LogWithCheckpoints, leave_to_parent
from .throughput import Meter, ShowSteps


class CacheTrainer(ResumableTrainer):
    """transformers.Trainer with exact losses, own records, whole checkpoints."""

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
        # Never the model's own, which may be a mean over a batch, or of labels that it does not
        # shift. `num_items_in_batch` counts the targets of all batches of a step, on all ranks.
        self.compute_loss_func = self._loss_of_step
        self._loss_shifts_labels = not run["pairs"]
        self._summed = losses.summed
        if run["training"]["torch_compile"]:  # or its float32 logits would be a copy of their own
            self._summed = torch.compile(losses.summed)
        self.router: router.Router | None = None
        self._of_step: list[dict[str, Any]] = []  # batches whose experts are not counted yet
        self._choices: router.Choices | None = None

    @property
    def scratch(self) -> bool:
        return self.planned["weights"] is None

    @property
    def _is_more(self) -> bool:
        """Whether the loss of training is not that of the next tokens alone."""
        return self.smoothing > 0 or self.router is not None

    # Training

    def balance(self, found: router.Router | None) -> None:
        """Add a router loss to that of the tokens."""
        self.router = found
        if found:
            self.data_collator.tell_lengths = True

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
        self._of_step = batches
        return batches, self._get_num_items_in_batch(batches, device)

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        # Not when the batches are read: a run that goes on has its random numbers back only now.
        if self.router and self._of_step:
            self._choices, self._of_step = self._choices_of_step(self._of_step), []
        counts = inputs.pop(COUNTS)
        self.meter.add(counts)
        self._steps.count(counts["tokens"])
        rows = inputs.pop(NUMBERS, [])
        self._lengths = inputs.pop(LENGTHS, [])
        loss = super().training_step(model, inputs, *rest, **more)
        self._watch.add_batch(rows, loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._watch.end_step(self.state.global_step + 1, norm)
        return norm

    def _loss_of_step(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any
    ) -> torch.Tensor:
        """What a batch adds to the mean loss of a step's targets."""
        shifts = not self.planned["pairs"]
        loss = self._summed(outputs["logits"], labels, shifts, self.smoothing) / num_items_in_batch
        if self.router is None:
            return loss
        inside = router.inside(self._lengths, labels.shape[1], labels.device)
        step = self._choices or self.router.choices(outputs.router_logits, inside)
        return loss + self.router.coefficient * self.router.loss(
            outputs.router_logits, inside, step
        )

    def _choices_of_step(self, batches: list[dict[str, Any]]) -> router.Choices | None:
        """What the routers choose in all batches of a step; None where the only one will tell."""
        if len(batches) == 1 and ranks.count() == 1:
            return None
        self.model.train()
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        found = []
        # With the random numbers that the batches get again when they are trained on.
        with torch.no_grad(), torch.random.fork_rng(devices):
            for batch in batches:
                given = self._prepare_inputs(
                    {k: v for k, v in batch.items() if k not in (COUNTS, NUMBERS, "labels")}
                )
                inside = router.inside(
                    given.pop(LENGTHS), given["input_ids"].shape[1], self.args.device
                )
                found.append(self.router.choices(self.model(**given).router_logits, inside))
        return router.over_ranks(found)

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
                    for name in (COUNTS, LENGTHS):
                        batch.pop(name, None)
                    batch = self._prepare_inputs(batch)
                    labels = batch.pop("labels")
                    logits, shifts = self.model(**batch).logits, not self.planned["pairs"]
                    total += losses.of_tokens(logits, labels, shifts).double().sum().cpu()
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
            "perplexity": None
            if self.smoothing or self.router
            else metrics.perplexity(logs["loss"]),
            "learning_rate": logs["learning_rate"],
            # In float16 the loss scaler makes infinite ones, and skips those steps.
            "grad_norm": norm if math.isfinite(norm) else None,
            **self.meter.record(),
        }

    def epochs(self) -> list[dict[str, Any]]:
        """Summaries of the epochs that are over."""
        return metrics.epochs(self.state.log_history, self.in_epoch, self._is_more)

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
