"""What a training run says of itself: lines for people, metrics.jsonl, plots."""

from __future__ import annotations

import json
import math
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..base import progress
from . import ranks

Record = dict[str, Any]

# Random weights predict every token alike, so the first loss is ln(vocabulary).
FIRST_LOSS_TOLERANCE = 0.1


def say(line: str) -> None:
    """A line of the log, from one of a run's processes, as long as somebody takes them."""
    if ranks.first():
        with suppress(BrokenPipeError):
            print(progress.above(line), file=sys.stderr, flush=True)


def perplexity(loss: float) -> float | None:
    """exp(loss), or None where that is more than a float can hold."""
    return math.exp(loss) if loss < 700 else None


def is_training(record: Record) -> bool:
    return "loss" in record


# Of a record, what depends on how fast the machine was.
TIMED = {
    "tokens_per_second", "useful_tokens_per_second", "data_wait_share", "mfu", "seconds"
}  # fmt: skip


def average(records: list[Record], after: int) -> float:
    """The mean loss of the steps after step `after`; each record has that of some steps."""
    total, before = 0.0, after
    for record in records:
        if is_training(record) and record["step"] > after:
            total += record["loss"] * (record["step"] - before)
            before = record["step"]
    return total / (before - after)


def epochs(records: list[Record], in_epoch: int, more: bool = False) -> list[Record]:
    """What each epoch that is over came to: losses, perplexities, and how long it took.

    more: whether the training loss has more than that of the next tokens (label smoothing, a router
    loss), so there is no perplexity.
    """
    training = [record for record in records if is_training(record)]
    losses = {r["step"]: r["validation_loss"] for r in records if not is_training(r)}
    seconds = {r["step"]: r.get("seconds") for r in training} | {0: 0.0}
    found = []
    for last in range(in_epoch, training[-1]["step"] + 1 if training else 0, in_epoch):
        loss = average([r for r in training if r["step"] <= last], last - in_epoch)
        took = seconds.get(last), seconds.get(last - in_epoch)
        found.append({
            "epoch": last // in_epoch,
            "step": last,
            "loss": loss,
            "perplexity": None if more else perplexity(loss),
            "validation_loss": losses.get(last),
            "validation_perplexity": None if last not in losses else perplexity(losses[last]),
            "seconds": None if None in took else round(took[0] - took[1], 3),
        })  # fmt: skip
    return found


def epoch_line(found: Record, epochs: int) -> str:
    """The summary of an epoch as a line of the log."""
    parts = [f"epoch {found['epoch']}/{epochs}"]
    for name, said in (("", ""), ("validation_", "validation ")):
        if found[f"{name}loss"] is not None:
            parts.append(f"{said}loss {found[f'{name}loss']:.4f}")
        if found[f"{name}perplexity"] is not None:
            parts.append(f"perplexity {found[f'{name}perplexity']:,.2f}")
    if found["seconds"] is not None:
        parts.append(f"in {timedelta(seconds=round(found['seconds']))}")
    return "  ".join(parts)


def _number(perplexity: float | None) -> str:
    return "too large" if perplexity is None else format(perplexity, ",.2f")


def line(record: Record, steps: int, seconds_left: float | None) -> str:
    """A record of metrics.jsonl as a line of the log."""
    parts = [f"step {record['step']}/{steps}"]
    if is_training(record):
        norm = record["grad_norm"]
        parts += [
            f"loss {record['loss']:.4f}",
            f"average {record['average_loss']:.4f}",
            f"lr {record['learning_rate']:.3g}",
            f"grad norm {'infinite' if norm is None else format(norm, '.3g')}",
            f"{record['useful_tokens_per_second']:,.0f} useful tokens/s",
            f"{record['useful_share']:.1%} useful",
            f"{record['data_wait_share']:.1%} waiting for data",
        ]
        if record["mfu"] is not None:
            parts.append(f"MFU {record['mfu']:.1%}")
        if seconds_left is not None and record["step"] < steps:
            parts.append(f"ETA {timedelta(seconds=round(seconds_left))}")
    else:
        parts.append(f"validation loss {record['validation_loss']:.4f}")
        parts.append(f"perplexity {_number(record['validation_perplexity'])}")
    return "  ".join(parts)


def first_loss(loss: float, vocab_size: int, scratch: bool) -> dict[str, Any]:
    """Whether the loss before the first update is what it must be.

    About ln(vocabulary) for random weights; no more than that for trained ones,
    which are wrong for the tokenizer or read wrongly otherwise.
    """
    expected = math.log(vocab_size)
    low = (1 - FIRST_LOSS_TOLERANCE) * expected if scratch else 0.0
    sane = low <= loss <= (1 + FIRST_LOSS_TOLERANCE) * expected
    return {"first_loss": loss, "ln_vocab": expected, "sane": sane}


def say_first_loss(found: dict[str, Any], scratch: bool) -> None:
    loss, expected = found["first_loss"], found["ln_vocab"]
    against = f"first loss {loss:.4f}, ln(vocabulary) {expected:.4f}"
    if found["sane"]:
        say(f"{against}: as it should be")
    elif scratch:
        say(
            f"WARNING: {against}: a model with random weights should start within "
            f"{FIRST_LOSS_TOLERANCE:.0%} of it; look at the architecture (initializer_range) and "
            "at the labels of the cache"
        )
    else:
        say(
            f"WARNING: {against}: trained weights should start below it; the tokenizer may not be "
            "the one of these weights"
        )


def dumps(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def write(path: Path, records: list[Record]) -> None:
    """metrics.jsonl: one record a line, in the order of the steps."""
    path.write_text("".join(map(dumps, records)), encoding="utf-8")


def plot_losses(path: Path, records: list[Record], title: str) -> None:
    """loss.svg: the losses against the step; the same bytes for the same records."""
    training = [(r["step"], r["loss"]) for r in records if is_training(r)]
    validation = [(r["step"], r["validation_loss"]) for r in records if not is_training(r)]
    lines = {"train": training, "validation": validation}
    _plot(path, [("loss (nats per token)", lines)], title)


def plot_rates(path: Path, records: list[Record], title: str) -> None:
    """throughput.svg: how fast each step was, and how much of it was of use."""
    names = {"useful share": "useful_share", "waiting for data": "data_wait_share", "MFU": "mfu"}
    timed = [r for r in records if is_training(r) and r.get("useful_tokens_per_second")]
    shares = {
        label: [(r["step"], r[name]) for r in timed if r[name] is not None]
        for label, name in names.items()
    }
    rates = {"": [(r["step"], r["useful_tokens_per_second"]) for r in timed]}
    _plot(path, [("useful tokens per second", rates), ("share", shares)], title)


def _plot(
    path: Path, panels: list[tuple[str, dict[str, list[tuple[int, float]]]]], title: str
) -> None:
    """Panels below each other: what is on the y axis, and lines of (step, value) by name."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "tokencache", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 1 + 3 * len(panels)), layout="constrained")
        every = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (label, lines) in zip(every, panels, strict=True):
            for name, points in lines.items():
                style = "o-" if len(points) < 2 or name == "validation" else "-"
                if points:
                    axes.plot(*zip(*points, strict=True), style, label=name, markersize=4)
            axes.set(ylabel=label)
            axes.grid(alpha=0.3)
            if any(name and points for name, points in lines.items()):
                axes.legend()
        every[0].set(title=title)
        every[-1].set(xlabel="step")
        figure.savefig(path, format="svg", metadata={"Date": None})
