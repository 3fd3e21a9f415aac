"""What a training run says of itself: lines for people, metrics.jsonl, loss.svg."""

from __future__ import annotations

import json
import math
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from . import ranks

Record = dict[str, Any]

# Random weights predict every token alike, so the first loss is ln(vocabulary).
FIRST_LOSS_TOLERANCE = 0.1


def say(line: str) -> None:
    """A line of the log, from one of a run's processes."""
    if ranks.first():
        print(line, file=sys.stderr, flush=True)


def perplexity(loss: float) -> float | None:
    """exp(loss), or None where that is more than a float can hold."""
    return math.exp(loss) if loss < 700 else None


def is_training(record: Record) -> bool:
    return "loss" in record


def line(record: Record, steps: int, seconds_left: float | None) -> str:
    """A record of metrics.jsonl as a line of the log."""
    parts = [f"step {record['step']}/{steps}"]
    if is_training(record):
        norm = record["grad_norm"]
        parts += [
            f"loss {record['loss']:.4f}",
            f"lr {record['learning_rate']:.3g}",
            f"grad norm {'infinite' if norm is None else format(norm, '.3g')}",
            f"{record['tokens_per_second']:,.0f} tokens/s",
        ]
        if seconds_left is not None and record["step"] < steps:
            parts.append(f"ETA {timedelta(seconds=round(seconds_left))}")
    else:
        found = record["validation_perplexity"]
        parts.append(f"validation loss {record['validation_loss']:.4f}")
        parts.append(f"perplexity {'too large' if found is None else format(found, ',.2f')}")
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


def plot(path: Path, records: list[Record], title: str) -> None:
    """loss.svg: the losses against the step; the same bytes for the same records."""
    import matplotlib
    from matplotlib.figure import Figure

    training = [(r["step"], r["loss"]) for r in records if is_training(r)]
    validation = [(r["step"], r["validation_loss"]) for r in records if not is_training(r)]
    with matplotlib.rc_context({"svg.hashsalt": "tokencache", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name, points, style in (("train", training, "-"), ("validation", validation, "o-")):
            if points:
                axes.plot(*zip(*points, strict=True), style, label=name, markersize=4)
        axes.set(title=title, xlabel="step", ylabel="loss (nats per token)")
        axes.grid(alpha=0.3)
        if training or validation:
            axes.legend()
        figure.savefig(path, format="svg", metadata={"Date": None})
