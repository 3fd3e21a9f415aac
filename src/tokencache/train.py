"""Train a model on a cache with transformers.Trainer, resumable at every checkpoint."""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import TrainingArguments

from . import __version__, collectives, metrics, models, ranks
from . import checkpoints as saved
from .collate import Collator, Split, split
from .errors import UserError
from .files import published, read_json, write_json
from .metrics import say
from .plan import NOT_IN_RUN_KEY
from .trainer import CacheTrainer
from .view import open_cache


def train(run: dict[str, Any], out: Path, checkpoints: Path) -> None:
    """Train a run of the plan and publish its folder `out` by one rename.

    Where torchrun started this process, it is one of several that do so together; the
    first of them writes and publishes.

    Goes on at the newest complete checkpoint in the folder `checkpoints`, with the
    same result to the byte as a run that was never stopped; the folder is removed
    after publication, and holds a live metrics.jsonl meanwhile. While another process
    trains the run this one waits, and makes nothing of a run that is there then. Raises
    UserError for a cache or weights that are not the planned ones, for a model that can't
    be made or can't be used with packed rows, where the loss becomes NaN or infinite, and
    where another process took this one, which was held up, for dead.
    """
    _quiet()
    turn = saved.Turn(out)
    with collectives.group():
        while not collectives.from_first(ranks.first() and turn.take()):
            time.sleep(saved.WAIT_SECONDS)
        with turn.held() if ranks.first() else nullcontext():
            if collectives.from_first(out.exists()):
                say(f"{out} is there: another process made it")
            else:
                _train(run, out, checkpoints, turn)
            if ranks.first():
                turn.finish(checkpoints)


def _train(run: dict[str, Any], out: Path, checkpoints: Path, turn: saved.Turn) -> None:
    splits = _splits(run)
    vocab = models.vocabulary(Path(run["tokenizer"]))
    precision = _precision(run)
    model = models.load(run, vocab)
    use_cache = model.config.use_cache if hasattr(model.config, "use_cache") else None
    schedule = _schedule(run["training"], len(splits["train"]))
    arguments = _arguments(run["training"], schedule, precision, checkpoints, len(splits) > 1)
    collator = Collator(vocab.pad, run["max_length"], splits["train"].packed)
    trainer = CacheTrainer(run, model, arguments, splits, collator)
    _say_start(run, trainer, splits, schedule, precision)
    if splits["train"].packed:
        worst = models.check_packing(model, run, collator)
        say(f"packed rows: documents are kept apart (logits differ by {worst:.0e} of their spread)")
    newest = saved.newest(checkpoints, run["key"]) if ranks.first() else None
    trainer.run_from(collectives.from_first(newest), turn)
    if not ranks.first():
        return
    if use_cache is not None:
        model.config.use_cache = use_cache  # the trainer turns it off
    with saved.disk_full_said(out), published(out, folder=True) as folder:
        _write_results(folder, run, trainer, splits, precision)
        turn.check()
    say(f"{out}: done")


def _quiet() -> None:
    """No bars, no dictionaries, no advice meant for developers: the log is ours."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module=r"(torch|transformers|accelerate|datasets)\b")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _splits(run: dict[str, Any]) -> dict[str, Split]:
    folder = Path(run["cache"])
    cache = open_cache(folder)
    key = read_json(folder / "cache.json").get("key")
    if key != run["cache_key"]:
        raise UserError(
            f"{folder}: this is the cache {key}, but the plan is for {run['cache_key']}; "
            "run snakemake again, which makes a new plan"
        )
    found = {name: split(cache[name]) for name in ("train", "validation") if name in cache}
    if not len(found["train"]):
        raise UserError(f"{folder}: no row of train has a token to predict; look at loss: and "
                        "document: of the data set")  # fmt: skip
    if "validation" in found and not len(found["validation"]):
        say("validation: no row has a token to predict; there will be no validation loss")
        del found["validation"]
    return found


def _precision(run: dict[str, Any]) -> str:
    wanted, cuda = run["training"]["precision"], torch.cuda.is_available()
    if wanted == "auto":
        return "bfloat16" if cuda and torch.cuda.is_bf16_supported() else "float32"
    if wanted == "float16" and not cuda:
        raise UserError(
            "training.precision: float16 needs a GPU, and there is none here; take auto, float32 "
            "or bfloat16"
        )
    if wanted == "bfloat16" and cuda and not torch.cuda.is_bf16_supported():
        raise UserError("training.precision: this GPU has no bfloat16; take auto or float16")
    return wanted


@dataclass(frozen=True)
class Schedule:
    """Optimizer steps in an epoch and in all."""

    in_epoch: int
    total: int


def _schedule(training: dict[str, Any], rows: int) -> Schedule:
    """As transformers.Trainer counts them; an epoch's last step may be a smaller one."""
    batches = -(-rows // training["per_device_train_batch_size"])
    in_epoch = -(-batches // training["gradient_accumulation_steps"])
    if training["max_steps"] > 0:
        return Schedule(in_epoch, training["max_steps"])
    return Schedule(in_epoch, math.ceil(training["num_train_epochs"] * in_epoch))


@dataclass(frozen=True)
class Share:
    """What one rank takes of an optimizer step: so many rows at once, so many times."""

    rows: int
    times: int


def share(training: dict[str, Any], processes: int) -> Share:
    """Ranks share the rows of a step, so that a step is the same however many they are."""
    size = training["per_device_train_batch_size"]
    rows = size * training["gradient_accumulation_steps"] // processes
    at_once = max(n for n in range(1, size + 1) if rows % n == 0)
    return Share(at_once, rows // at_once)


SAME_NAME = (
    "num_train_epochs", "max_steps", "per_device_eval_batch_size", "learning_rate",
    "lr_scheduler_type", "weight_decay", "max_grad_norm", "seed", "logging_steps", "save_steps",
)  # fmt: skip


def _arguments(
    training: dict[str, Any], schedule: Schedule, precision: str, folder: Path, validate: bool
) -> TrainingArguments:
    cuda, part = torch.cuda.is_available(), share(training, ranks.count())
    arguments = TrainingArguments(
        output_dir=str(folder),
        **{name: training[name] for name in SAME_NAME},
        per_device_train_batch_size=part.rows,
        gradient_accumulation_steps=part.times,
        data_seed=training["seed"],
        # A ratio of 1.0 would be read as one step.
        warmup_steps=math.ceil(training["warmup_ratio"] * schedule.total),
        # Or it asks for a GPU.
        use_cpu=not cuda and (precision == "bfloat16" or ranks.count() > 1),
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        activation_checkpointing=training["gradient_checkpointing"],
        # By steps and never by epochs: what happens after an epoch's last checkpoint would
        # be lost to a run that goes on from that checkpoint.
        eval_strategy="steps" if validate else "no",
        eval_steps=training["eval_steps"] or schedule.in_epoch,
        eval_on_start=validate,
        save_strategy="steps",
        logging_first_step=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
    )
    if cuda:
        arguments._setup_devices  # noqa: B018 - finds the GPUs, so that one can be chosen
        arguments._n_gpu = min(arguments._n_gpu, 1)  # DataParallel would change the batches
    return arguments


def _say_start(
    run: dict[str, Any],
    trainer: CacheTrainer,
    splits: dict[str, Split],
    schedule: Schedule,
    precision: str,
) -> None:
    model, device = trainer.model, trainer.args.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    say(f"train {run['model']} on {run['dataset']}, max_length {run['max_length']}")
    say(
        f"device {name}, {precision}, attention {model.config._attn_implementation}, "
        f"{torch.get_num_threads()} threads, {model.num_parameters():,} parameters"
    )
    if ranks.count() > 1:
        at_once = trainer.args.per_device_train_batch_size
        rows = at_once * trainer.args.gradient_accumulation_steps
        machines = ranks.count() // ranks.local()[1]
        on = f"{machines} nodes" if machines > 1 else "1 node"
        say(f"{ranks.count()} processes on {on}: of a step's {rows * ranks.count():,} rows each "
            f"takes {rows:,}, {at_once:,} at once")  # fmt: skip
    for split_name, part in splits.items():
        kind = "packed rows" if part.packed else "rows"
        without = f"; {part.left_out:,} more without a target" if part.left_out else ""
        say(f"{split_name}: {len(part):,} {kind}, {part.tokens:,} tokens, "
            f"{part.targets:,} of them targets{without}")  # fmt: skip
    if "validation" not in splits:
        say("validation: none in this cache, so there is no validation loss")
    say(f"steps {schedule.total:,}, {schedule.in_epoch:,} an epoch")


NOT_THE_TOKENIZER = {"facts.json", "tokencache.json"}


def _write_results(
    folder: Path,
    run: dict[str, Any],
    trainer: CacheTrainer,
    splits: dict[str, Split],
    precision: str,
) -> None:
    """Weights, tokenizer, metrics.jsonl, loss.svg, run.json and timing.json."""
    records = trainer.state.log_history
    trainer.model.save_pretrained(folder)
    for file in sorted(Path(run["tokenizer"]).iterdir()):
        if file.is_file() and file.name not in NOT_THE_TOKENIZER and not file.name.startswith("."):
            shutil.copyfile(file, folder / file.name)
    if run["chat_template"] is not None:
        (folder / "chat_template.jinja").write_text(run["chat_template"], encoding="utf-8")
    metrics.write(folder / "metrics.jsonl", records)
    title = f"{run['model']} on {run['dataset']}, max_length {run['max_length']}"
    metrics.plot(folder / "loss.svg", records, title)
    write_json(folder / "run.json", _facts(run, trainer, splits, precision))
    device = trainer.args.device
    timing = {
        "seconds": round(trainer.seconds, 3),
        "tokens_per_second": round(trainer.counts["tokens"] / max(trainer.seconds, 1e-9), 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": ranks.count(),
        "resumed_from_step": trainer.resumed_from,
    }
    write_json(folder / "timing.json", timing)


def _facts(
    run: dict[str, Any], trainer: CacheTrainer, splits: dict[str, Split], precision: str
) -> dict[str, Any]:
    """run.json: what the run is made of and what came out, and nothing of when or how fast."""
    records = trainer.state.log_history
    validation = [record for record in records if not metrics.is_training(record)]
    last = [record for record in records if metrics.is_training(record)][-1]
    facts = {name: run[name] for name in ("key", "model", "dataset", "max_length")}
    facts["made_of"] = {
        "cache": run["rows_key"],
        "weights": run["weights"],
        "architecture": run["architecture"],
        "training": {k: v for k, v in run["training"].items() if k not in NOT_IN_RUN_KEY},
    }
    facts |= {
        "steps": trainer.state.global_step,
        "epochs": last["epoch"],
        "seen": trainer.counts,
        "rows": {name: len(part) for name, part in splits.items()},
        "rows_without_targets": {name: part.left_out for name, part in splits.items()},
        "packed": splits["train"].packed,
        "parameters": trainer.model.num_parameters(),
        "precision": precision,
        "attention": trainer.model.config._attn_implementation,
        "loss": last["loss"],
        "validation_loss_before": validation[0]["validation_loss"] if validation else None,
        "validation_loss": validation[-1]["validation_loss"] if validation else None,
        "validation_perplexity": validation[-1]["validation_perplexity"] if validation else None,
        "versions": {"tokencache": __version__}
        | {name: version(name) for name in ("transformers", "torch")},
    }
    return facts | (trainer.first or {})
