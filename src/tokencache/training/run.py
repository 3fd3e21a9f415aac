"""Train a model on a cache with transformers.Trainer, resumable at every checkpoint."""

from __future__ import annotations

import math
import os
import platform
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import TrainingArguments

from ..base import limits, manifest, signals
from ..base.json_files import read_json, write_json
from ..base.publish import published
from ..base.records import PROVENANCE_FILE
from ..base.version import __version__
from ..caches.view import open_cache
from ..errors import UserError
from ..plan.plan import records_path
from ..plan.run_keys import decisive, made_of
from ..tokenizer import files
from . import (
    attention,
    causality,
    collectives,
    hardware,
    metrics,
    ranks,
    router,
    sharded,
    translation,
)
from . import checkpoints as saved
from . import lora as adapters
from . import model as models
from .batches import Batches, Schedule
from .collate import Collator, Split, split
from .hardware import Hardware
from .metrics import say
from .tracking import Tracking
from .trainer import CacheTrainer


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
    where another process took this one, which was held up, for dead. Raises Stopped, with
    a checkpoint, where SIGTERM or SIGUSR1 came before the last step.
    """
    signals.listen()
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
    chosen = hardware.choose(run["training"])
    vocab = models.vocabulary(Path(run["tokenizer"]))
    model = adapters.added(models.load(run, vocab), run)
    use_cache = model.config.use_cache if hasattr(model.config, "use_cache") else None
    one = splits["train"]
    batches = Batches(
        run["training"], one.lengths, run["max_length"], one.packed, ranks.count(), ranks.rank()
    )
    schedule = batches.schedule(run["training"])
    arguments = _arguments(run, splits, batches, chosen, checkpoints)
    if run["pairs"]:
        collator = translation.PairCollator(vocab.pad, run["max_length"], model)
    else:
        collator = Collator(vocab.pad, run["max_length"], one.packed)
    kind = sharded.ShardedTrainer if sharded.wanted(run) else CacheTrainer
    trainer = kind(run, model, arguments, splits, collator, batches, chosen.peak)
    # In float32, which an attention that is chosen may not take.
    routed = router.find(model, run)
    attends = attention.choose(model, run, collator, one.packed, chosen.precision)
    causality.check(model, run, collator, chosen.precision)
    trainer.balance(routed)
    _say_start(run, trainer, schedule, chosen, attends)
    newest = saved.newest(checkpoints, run["key"]) if ranks.first() else None
    # A signal that comes after the last step changes nothing.
    with trainer.interruptions.heard():
        with _tracked(run, out, trainer):
            trainer.run_from(collectives.from_first(newest), turn)
        if not ranks.first():
            return
        if run["training"]["load_best_model_at_end"]:
            trainer.load_best()
        if use_cache is not None:
            model.config.use_cache = use_cache  # the trainer turns it off
        with saved.disk_full_said(out), published(out, folder=True) as folder:
            _write_results(folder, run, trainer, chosen)
            turn.check()
    say(f"{out}: done")


@contextmanager
def _tracked(run: dict[str, Any], out: Path, trainer: CacheTrainer) -> Iterator[None]:
    """In here MLflow gets the run's records, if config.yaml says so."""
    settings = run["training"]["mlflow"]
    if settings is None or not ranks.first():
        yield
        return
    about = {name: run[name] for name in ("model", "dataset", "max_length", "cache")}
    about |= decisive(run["training"], trainer.splits["train"].packed)
    tracking = Tracking(settings, run, records_path(out), about)
    trainer.add_callback(tracking)
    try:
        yield
    except BaseException:
        tracking.end("FAILED")
        raise
    tracking.end("FINISHED")


def _quiet() -> None:
    """No bars, no dictionaries, no advice meant for developers: the log is ours."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module=r"(torch|transformers|accelerate|datasets|peft)\b")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _splits(run: dict[str, Any]) -> dict[str, Split]:
    folder = Path(run["cache"])
    cache = open_cache(folder)
    about = read_json(folder / "cache.json")
    key = about.get("key")
    if key != run["cache_key"]:
        raise UserError(
            f"{folder}: this is the cache {key}, but the plan is for {run['cache_key']}; "
            "run snakemake again, which makes a new plan"
        )
    made = {name: about["splits"][name] for name in ("train", "validation") if name in cache}
    if run["pairs"]:
        found = {name: translation.split(cache[name], counts) for name, counts in made.items()}
    else:
        found = {name: split(cache[name], counts) for name, counts in made.items()}
    if not len(found["train"]):
        raise UserError(f"{folder}: no row of train has a token to predict; look at loss: and "
                        "document: of the data set")  # fmt: skip
    if "validation" in found and not len(found["validation"]):
        say("validation: no row has a token to predict; there will be no validation loss")
        del found["validation"]
    if run["training"]["load_best_model_at_end"] and "validation" not in found:
        raise UserError(f"training.load_best_model_at_end: {folder} has no validation rows to tell "
                        "the best by; look at validation: of the data set")  # fmt: skip
    return found


SAME_NAME = (
    "num_train_epochs", "max_steps", "per_device_eval_batch_size", "learning_rate", "weight_decay",
    "max_grad_norm", "seed", "logging_steps", "save_steps",
    "adam_beta1", "adam_beta2", "adam_epsilon",
)  # fmt: skip


def _arguments(
    run: dict[str, Any], splits: dict[str, Split], batches: Batches, chosen: Hardware, folder: Path
) -> TrainingArguments:
    training, cuda = run["training"], torch.cuda.is_available()
    schedule, validate = batches.schedule(training), "validation" in splits
    # A ratio of 1.0 would be read as one step.
    warmup = training["warmup_steps"] or math.ceil(training["warmup_ratio"] * schedule.total)
    # Of a run that only warms up nothing is left to decay over, by which polynomial would divide.
    rate = training["lr_scheduler_type"]
    if rate == "polynomial" and warmup >= schedule.total:
        rate = "constant_with_warmup"
    arguments = TrainingArguments(
        output_dir=str(folder),
        **{name: training[name] for name in SAME_NAME},
        **chosen.arguments(training["torch_compile"]),
        per_device_train_batch_size=batches.rows or 1,
        gradient_accumulation_steps=batches.times,
        lr_scheduler_type=rate,
        warmup_steps=warmup,
        # Or it asks for a GPU.
        use_cpu=not cuda and (chosen.precision == "bfloat16" or ranks.count() > 1),
        activation_checkpointing=training["gradient_checkpointing"],
        # By steps and never by epochs: what happens after an epoch's last checkpoint would
        # be lost to a run that goes on from that checkpoint.
        eval_strategy="steps" if validate else "no",
        eval_steps=training["eval_steps"] or schedule.in_epoch,
        eval_on_start=validate and training["eval_on_start"],
        save_strategy="steps",
        logging_first_step=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
    )
    if cuda:
        arguments._setup_devices  # noqa: B018 - finds the GPUs, so that one can be chosen
        arguments._n_gpu = min(arguments._n_gpu, 1)  # DataParallel would change the batches
    return arguments


def _say_start(
    run: dict[str, Any], trainer: CacheTrainer, schedule: Schedule, chosen: Hardware,
    attends: list[str],
) -> None:  # fmt: skip
    model, splits = trainer.model, trainer.splits
    say(f"train {run['model']} on {run['dataset']}, max_length {run['max_length']}")
    say(
        f"device {chosen.device}, {torch.get_num_threads()} threads, "
        f"{model.num_parameters():,} parameters"
    )
    said = {name: f"{name} {line}" for name, line in chosen.lines.items()}
    batches = f"batches {trainer.batches.about(run['training'])}"
    for line in (said["precision"], *attends, said["optimizer"], said["workers"], batches):
        say(line)
    if run["lora"]:
        trained = model.num_parameters(only_trainable=True)
        say(f"LoRA: {trained:,} of the parameters are trained")
    if ranks.count() > 1:
        machines = ranks.count() // ranks.local()[1]
        on = f"{machines} nodes" if machines > 1 else "1 node"
        holds = "; each holds a part of the model (FSDP2)" * sharded.wanted(run)
        say(f"{ranks.count()} processes on {on}: {trainer.batches.shared()}{holds}")
    for split_name, part in splits.items():
        kind = "packed rows" if part.packed else "rows"
        without = f"; {part.left_out:,} more without a target" if part.left_out else ""
        say(f"{split_name}: {len(part):,} {kind}, {part.tokens:,} tokens, "
            f"{part.targets:,} of them targets{without}")  # fmt: skip
    if "validation" not in splits:
        say("validation: none in this cache, so there is no validation loss")
    say(f"steps {schedule.total:,}, {schedule.in_epoch:,} an epoch")


LIBRARIES = ("numpy", "pyarrow", "tokenizers", "datasets", "transformers", "accelerate", "torch",
             "safetensors")  # fmt: skip
NOT_THE_TOKENIZER = {"facts.json", "tokencache.json", manifest.MANIFEST}


def _write_templates(folder: Path, run: dict[str, Any]) -> None:
    """The chat templates, as transformers saves them."""
    if run["chat_template"] is not None:
        (folder / "chat_template.jinja").write_text(run["chat_template"], encoding="utf-8")
    if run["tool_template"] is not None:
        named = folder / "additional_chat_templates" / "tool_use.jinja"
        named.parent.mkdir()
        named.write_text(run["tool_template"], encoding="utf-8")


def _write_results(
    folder: Path, run: dict[str, Any], trainer: CacheTrainer, chosen: Hardware
) -> None:
    """Weights or the adapter, tokenizer, metrics.jsonl, plots, run.json and other records."""
    records, by_epoch = trainer.state.log_history, trainer.epochs()
    facts = _facts(run, trainer, chosen.precision, by_epoch)  # of a model that is not merged yet
    adapters.save(trainer.model, folder, run)
    for file in sorted(Path(run["tokenizer"]).iterdir()):
        if file.is_file() and file.name not in NOT_THE_TOKENIZER and not file.name.startswith("."):
            shutil.copyfile(file, folder / file.name)
    file = folder / files.CONFIG_FILE
    write_json(file, read_json(file) | run["tokenizer_settings"])
    _write_templates(folder, run)
    if run["pairs"] and "validation" in trainer.splits:
        translation.write_samples(folder, run, trainer)
    metrics.write(folder / "metrics.jsonl", records)
    title = f"{run['model']} on {run['dataset']}, max_length {run['max_length']}"
    metrics.plot_losses(folder / "loss.svg", records, title)
    metrics.plot_rates(folder / "throughput.svg", records, title)
    write_json(folder / "run.json", facts)
    meter = trainer.meter
    seconds = meter.seconds
    timing = {
        "seconds": round(seconds, 3),
        "seconds_by_epoch": [epoch["seconds"] for epoch in by_epoch],
        "tokens_per_second": round(meter.counts["tokens"] / max(seconds, 1e-9), 1),
        "useful_tokens_per_second": round(meter.counts["targets"] / max(seconds, 1e-9), 1),
        "device": chosen.device,
        "peak_memory_bytes": hardware.peak_memory(),
        "threads": torch.get_num_threads(),
        "processes": ranks.count(),
        "resumed_from_step": trainer.resumed_from,
    }
    write_json(folder / "timing.json", timing)
    write_json(folder / PROVENANCE_FILE, _provenance(run))
    manifest.write(folder)


def _provenance(run: dict[str, Any]) -> dict[str, Any]:
    """provenance.json: what made a run, where and when; unlike run.json, of this one time."""
    return {
        "cache": {"path": run["cache"], "key": run["cache_key"]},
        "tokenizer": run["tokenizer"],
        "config": run.get("config"),
        "image": limits.image(),
        "machine": ranks.machine(),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        # A container has no metadata of tokencache: its code is the checkout's.
        "versions": {"python": platform.python_version(), "tokencache": __version__}
        | {name: version(name) for name in LIBRARIES},
    }


def _facts(
    run: dict[str, Any], trainer: CacheTrainer, precision: str, by_epoch: list[dict[str, Any]]
) -> dict[str, Any]:
    """run.json: what the run is made of and what came out, and nothing of when or how fast."""
    records, splits, lora = trainer.state.log_history, trainer.splits, run["lora"] is not None
    last = [record for record in records if metrics.is_training(record)][-1]
    facts = {name: run[name] for name in ("key", "model", "dataset", "max_length")}
    facts["made_of"] = made_of(run, splits["train"].packed)
    facts |= {
        "steps": trainer.state.global_step,
        "weights_of_step": trainer.weights_of_step,
        "epochs": last["epoch"],
        "by_epoch": [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in by_epoch],
        "seen": trainer.meter.counts,
        "rows": {name: len(part) for name, part in splits.items()},
        "rows_without_targets": {name: part.left_out for name, part in splits.items()},
        "packed": splits["train"].packed,
        "parameters": trainer.model.num_parameters(),
        "trained_parameters": trainer.model.num_parameters(only_trainable=True),
        "precision": precision,
        "attention": trainer.model.config._attn_implementation,
        "loss": last["loss"],
        "validation_loss_before": _validated(records, 0)["validation_loss"],
        **_validated(records, trainer.weights_of_step),
        "versions": {"tokencache": __version__}
        | {name: version(name) for name in ("transformers", "torch", *(["peft"] * lora))},
    }
    return facts | (trainer.first or {})


def _validated(records: list[dict[str, Any]], step: int) -> dict[str, float | None]:
    """What the validation said of the weights that the results have, which are of this step."""
    found = [r for r in records if r["step"] == step and not metrics.is_training(r)]
    names = ("validation_loss", "validation_perplexity")
    return {name: found[-1][name] if found else None for name in names}
