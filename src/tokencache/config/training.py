"""Training settings that fit each other in each run, whichever section they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from .schema import Config

LOWEST_RATE = 1e-7  # of transformers' polynomial schedule


def check(config: Config) -> None:
    """Raises UserError, which names the model."""
    _check_processes(config)
    _check_budgets(config)
    _check_parted(config)
    _check_rates(config)


def _check_processes(config: Config) -> None:
    """The processes of each run must be able to share a step equally."""
    for name in config.models:
        training = config.training_of(name)
        processes = training.nodes * training.processes_per_node
        batches = training.gradient_accumulation_steps
        rows = training.per_device_train_batch_size * batches
        shared, of = f"the {rows} rows", "per_device_train_batch_size × gradient_accumulation_steps"
        if training.max_tokens is not None:
            shared, of = f"the {batches} batches", "gradient_accumulation_steps"
        if (rows if training.max_tokens is None else batches) % processes:
            raise UserError(
                f"training of models.{name}: {processes} processes (nodes × processes_per_node) "
                f"can't share {shared} of a step ({of}) equally; change one of them"
            )


def _check_budgets(config: Config) -> None:
    """A batch must have room for a row."""
    for model, _, length in config.combinations():
        tokens = config.training_of(model).max_tokens
        if tokens is not None and tokens < length:
            raise UserError(
                f"training of models.{model}: max_tokens: {tokens} is too small for a row of "
                f"max_length: {length}; raise it"
            )


def _check_parted(config: Config) -> None:
    """What a model that is parted among processes can't be trained with."""
    for name in config.models:
        training = config.training_of(name)
        other = "torch_compile" if training.torch_compile else "precision: float16"
        if training.fsdp and (training.torch_compile or training.precision == "float16"):
            raise UserError(
                f"training of models.{name}: fsdp can't be used with {other}; leave one of them out"
            )


def _check_rates(config: Config) -> None:
    """A rate must be above what its schedule ends at."""
    for name in config.models:
        training = config.training_of(name)
        if training.lr_scheduler_type == "polynomial" and training.learning_rate <= LOWEST_RATE:
            raise UserError(
                f"training of models.{name}: learning_rate: {training.learning_rate:g} is not "
                f"above {LOWEST_RATE:g}, at which lr_scheduler_type: polynomial ends; raise it"
            )
