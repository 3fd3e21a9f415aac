"""What each part of a good training set-up is worth: a ladder from a slow one, one change an arm.

python benchmarks/training.py [--size tiny] [--rounds 1] [--steps 2] [--tokens] [--arms …]

Every arm trains the same model on the same documents, with steps of about as many useful tokens
(tokens that are predicted), each in a process of its own; repeats are interleaved. Arms that need
a GPU, or kernels that are not there, are not run, and said to be so. The last arm is the workflow's
own train stage. Results go to benchmarks/data/training.json and to a part of RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import corpora
import first_step
import measure
import ours
import training_arm
import training_report
import yaml
from training_arm import (
    LEARNING_RATE,
    MAX_LENGTH,
    VOCABULARY,
    WARM_UP,
    Arm,
    architecture,
    by_documents,
    caches_of,
    make_model,
    tokenizer_of,
)

DATA = Path(__file__).parent / "data"
OURS = dict(zip(training_report.OURS, ("rows", "packed"), strict=True))
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")

# Name, what changes, and what it needs that not every machine has.
LADDER: list[tuple[str, dict[str, Any], str | None]] = [
    (training_report.SLOW, {}, None),
    ("TF32", {"tf32": True}, "gpu"),
    ("bfloat16", {"precision": "bfloat16"}, "gpu"),
    ("SDPA", {"attention": "sdpa"}, None),
    ("dynamic padding", {"padded": False}, None),
    (training_report.FAIR, {"cached": True}, None),
    ("length grouping", {"grouped": True}, None),
    ("batches by tokens", {"by_tokens": True}, None),
    ("packed", {"packed": True, "grouped": False}, None),
    ("attention by documents", {"attention": "by documents"}, "by documents"),
    ("a loader's worker", {"workers": 1}, None),
    ("compiled", {"compiled": True}, "gpu"),
]
NEEDED = {"gpu": "a GPU", "by documents": "an attention that is told where documents end"}


def arms() -> dict[str, tuple[Arm, str | None]]:
    """Each with the changes before it; one that can't be had here is left again."""
    found, arm = {}, Arm()
    for name, change, needs in LADDER:
        changed = replace(arm, **change)
        if changed.attention == "by documents":
            changed = replace(changed, attention=by_documents() or "sdpa")
        found[name] = changed, needs
        if has(needs):
            arm = changed
    return found


def has(needs: str | None) -> bool:
    import torch

    if needs == "by documents":
        return by_documents() is not None
    return needs is None or torch.cuda.is_available()


def experiment(size: str, steps: int, max_tokens: int) -> Path:
    """A folder with the caches, of rows and of packed rows, and a plan to train on both."""
    corpus = corpora.corpus("instruct", size, DATA / "corpora")
    folder = folder_of(size)
    shutil.rmtree(folder / "results", ignore_errors=True)
    common = {"files": corpora.files(corpus), "document": {"text": "text"},
              "validation": {"fraction": 0.02}}  # fmt: skip
    training = {"max_steps": steps, "max_tokens": max_tokens, "logging_steps": 1,
                "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant",
                "eval_on_start": False}  # fmt: skip
    config = {
        "tokenizers": {"bpe": {"dataset": "rows", "vocab_size": VOCABULARY}},
        "models": {"model": {"tokenizer": "bpe", "architecture": architecture()}},
        "datasets": {"rows": common, "packed": common | {"packing": "best_fit"}},
        "max_length": MAX_LENGTH,
        "training": training,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    measure.run(ours.snakemake("--cores", "all", "caches"), folder, folder / "caches.log")
    return folder


def folder_of(size: str) -> Path:
    return DATA / "training" / size


def plan_of(folder: Path) -> dict[str, Any]:
    newest = max(folder.glob(".tokencache/plans/*.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text()) | {"path": str(newest.relative_to(folder))}


# The train stage of the workflow


def run_ours(folder: Path, dataset: str) -> dict[str, Any]:
    shutil.rmtree(folder / "results", ignore_errors=True)
    plan = plan_of(folder)
    [target] = [run for run, found in plan["runs"].items() if found["dataset"] == dataset]
    command = [sys.executable, "-m", "tokencache", "train", "--plan", plan["path"], target]
    measure.run(command, folder, folder / "train.log", memory=False)
    lines = (folder / target / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    timing = json.loads((folder / target / "timing.json").read_text())
    timed = [record for record in records if "loss" in record]
    seconds = sum(r["targets"] / r["useful_tokens_per_second"] for r in _differences(timed))
    useful = sum(r["targets"] for r in _differences(timed))
    return {
        "useful_tokens_per_second": useful / seconds,
        "useful_share": median(r["useful_share"] for r in timed[WARM_UP:]),
        "mfu": median(r["mfu"] for r in timed[WARM_UP:]) if timed[-1]["mfu"] else None,
        "peak_bytes": timing["peak_memory_bytes"],
        "useful_tokens": timed[-1]["targets"],
        "loss": records[-1]["validation_loss"],
    }


def _differences(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records with the targets since the record before, but for the first."""
    pairs = pairwise(records)
    return [after | {"targets": after["targets"] - before["targets"]} for before, after in pairs]


def planning(lengths: Any) -> dict[str, Any]:
    """Padding with documents of these lengths, and how long a million of them take to pack."""
    import numpy as np

    from tokencache.batching import Batches
    from tokencache.config import Training
    from tokencache.packing import best_fit_decreasing

    drawn = np.random.default_rng(1).choice(lengths, 1_000_000)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        bins = best_fit_decreasing(drawn, MAX_LENGTH)
        seconds.append(time.perf_counter() - started)
    found = {"max_length": MAX_LENGTH, "max_tokens": 8 * MAX_LENGTH, "bins": int(bins.max()) + 1}
    some = drawn[:100_000]
    for name, grouped in (("grouped", True), ("random", False)):
        settings = Training(max_tokens=8 * MAX_LENGTH, group_by_length=grouped).model_dump()
        found[f"{name}_waste"] = Batches(settings, some, MAX_LENGTH, False).padding()
    return found | {
        "plan_seconds": median(seconds),
        "packed_waste": 1 - int(drawn.sum()) / (found["bins"] * MAX_LENGTH),
        "padded_waste": 1 - float(drawn.mean()) / MAX_LENGTH,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", default="small", choices=[*corpora.SIZES][:3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="that are timed, of each arm")
    parser.add_argument("--useful", type=int, help="useful tokens a step, about")
    parser.add_argument("--rows", type=int, help="rows at once, where a batch is so many rows")
    parser.add_argument("--arms", nargs="+", help="default: all")
    parser.add_argument(
        "--tokens", type=int, nargs="*", default=[10_000_000, 200_000_000],
        help="of the caches that the first step is timed on",
    )  # fmt: skip
    given = parser.parse_args()
    large = has("gpu")
    given.useful = given.useful or (32768 if large else 4096)
    given.rows = given.rows or (16 if large else 4)
    results = about(given)
    wanted = {name: a for name, a in arms().items() if not given.arms or name in given.arms}
    for _ in range(given.rounds):
        for name, (arm, needs) in wanted.items():
            if not has(needs):
                results["not_run"][name] = NEEDED[needs]
                continue
            words = [folder_of(given.size), json.dumps(asdict(arm)), given.steps, given.useful]
            command = [sys.executable, training_arm.__file__, *map(str, words), str(given.rows)]
            found = measure.output(command, measure.ROOT)
            keep(results, name, json.loads(found.splitlines()[-1]))
        for name, dataset in OURS.items():
            if not given.arms or name in given.arms:
                keep(results, name, run_ours(folder_of(given.size), dataset))
    run = {"tokenizer": str(tokenizer_of(folder_of(given.size)))}
    if given.tokens:
        results["first_steps"] = first_step.measured(
            plan_of(folder_of(given.size))["runs"].popitem()[1] | run,
            DATA / "first-step", given.tokens,
        )  # fmt: skip
    (DATA / "training.json").write_text(json.dumps(results, indent=1))
    training_report.write(results, Path(__file__).parent)
    print(training_report.markdown(results))


def keep(results: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    """At once, whatever becomes of the rest."""
    results["arms"].setdefault(name, []).append(found)
    (DATA / "training.json").write_text(json.dumps(results, indent=1))
    print(f"{name}: {found['useful_tokens_per_second']:,.0f} useful tokens/s", file=sys.stderr)


def about(given: argparse.Namespace) -> dict[str, Any]:
    """Make the experiment; what the report says of it, and of the machine."""
    import torch

    from tokencache.collate import split
    from tokencache.view import open_cache

    folder = experiment(given.size, WARM_UP + given.steps, given.useful)
    words = [sys.executable, str(Path(ours.__file__)), "plan", "config.yaml"]
    measure.run(words, folder, folder / "plan.log")
    lengths = split(open_cache(caches_of(folder)["rows"], "train")).lengths
    corpus = json.loads((DATA / "corpora" / f"instruct-{given.size}" / "corpus.json").read_text())
    cuda = torch.cuda.is_available()
    return {
        "machine": measure.machine("bench-training", LIBRARIES),
        "device": torch.cuda.get_device_name() if cuda else "no GPU",
        "given": {name: getattr(given, name) for name in ("rounds", "steps", "useful", "rows")},
        "model": architecture(), "parameters": make_model("sdpa").num_parameters(),
        "rows": len(lengths), "mean_length": float(lengths.mean()), "max_length": MAX_LENGTH,
        "made_from": corpus["made_from"],
        "planning": planning(lengths), "first_steps": [],
        "arms": {}, "not_run": {},
    }  # fmt: skip


if __name__ == "__main__":
    main()
