"""transformers.Trainer that stops, goes on and keeps the best, by checkpoints that are whole."""

from __future__ import annotations

import math
import signal
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState

from ..errors import Stopped, UserError
from . import checkpoints as saved
from . import collectives, ranks
from .collate import Split
from .metrics import say
from .nonfinite import Watch
from .stopping import Interruptions
from .throughput import Meter


class ResumableTrainer(Trainer):
    """A run that is stopped anywhere and started again ends with the same weights to the byte.

    A trainer of this kind has what it keeps in checkpoints: the run of the plan, its splits,
    what it has seen and what it watches.
    """

    planned: dict[str, Any]
    splits: dict[str, Split]
    meter: Meter
    interruptions: Interruptions
    _watch: Watch
    _turn: saved.Turn

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
        """What the last record of the run that this one goes on from did not say yet.

        How often there are records, validations and checkpoints is this run's own, and not that
        of the one that it goes on from.
        """
        self.state.compute_steps(self.args, self.state.max_steps)
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
                "weights would be lost here; remove this folder, and the run starts again"
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
