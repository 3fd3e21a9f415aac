"""What each part of a good training set-up is worth: a ladder from a slow one, one change an arm.

python benchmarks/training.py [--size tiny] [--rounds 1] [--steps 2] [--tokens] [--arms …]
python benchmarks/training.py --device gpu --prepare     makes the caches alone, on any machine
python benchmarks/training.py --device gpu --prepared    measures on them, without Snakemake

Every arm trains the same model on the same documents, with steps of about as many useful tokens
(tokens that are predicted), each in a process of its own; repeats are interleaved. Arms that need
a GPU, or kernels that are missing, are not run, and the report says so. The last arms are TRL's
SFTTrainer and the workflow's own train stage. Results go to benchmarks/data/training-DEVICE.json
and to a part of RESULTS.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
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
import training_trl
import yaml
from training_arm import (
    LEARNING_RATE,
    WARM_UP,
    Arm,
    by_documents,
    caches_of,
    config_of,
    make_model,
    tokenizer_of,
)

DATA = Path(__file__).parent / "data"
# The model and the data set of each.
OURS = dict(
    zip(training_report.OURS, (("model", "rows"), ("model", "packed"), ("compiled", "packed")),
        strict=True)
)  # fmt: skip
LIBRARIES = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers", "numpy")


@dataclass(frozen=True)
class Scale:
    """A model that keeps a device busy, with documents so long that attention counts.

    useful: targets of a step, about. rows: of a batch, where nothing else says it. vocabulary:
    of a tokenizer that is trained; None for a published one of 50,000, if there is one.
    """

    architecture: dict[str, Any]
    max_length: int
    useful: int
    rows: int
    vocabulary: int | None


SCALES = {
    "cpu": Scale(
        {"model_type": "llama", "hidden_size": 128, "intermediate_size": 384,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4},
        max_length=2048, useful=4096, rows=4, vocabulary=4096,
    ),
    # 0.6 thousand million parameters with a vocabulary of 50,257.
    "gpu": Scale(
        {"model_type": "llama", "hidden_size": 1280, "intermediate_size": 3584,
         "num_hidden_layers": 24, "num_attention_heads": 20, "num_key_value_heads": 20},
        max_length=4096, useful=32768, rows=8, vocabulary=None,
    ),
}  # fmt: skip

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
NEEDED = {
    "gpu": "a GPU",
    "by documents": "an attention that is told where documents end",
    "trl": "TRL",
}


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
    if needs == "trl":
        return importlib.util.find_spec("trl") is not None
    return needs is None or torch.cuda.is_available()


def experiment(folder: Path, size: str, scale: Scale, steps: int) -> None:
    """Make the caches, of rows and of packed rows, and a plan to train on both."""
    corpus = corpora.corpus("instruct", size, DATA / "corpora")
    shutil.rmtree(folder / "results", ignore_errors=True)
    files = [os.path.relpath(file, folder) for file in corpora.files(corpus)]
    common = {"files": files, "document": {"text": "text"}, "validation": {"fraction": 0.02}}
    training = {"max_steps": steps, "max_tokens": scale.useful, "logging_steps": 1,
                "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant",
                "eval_on_start": False}  # fmt: skip
    tokenizer = "bpe"
    published = corpora.tokenizers(DATA).get("gpt2")
    if scale.vocabulary is None and published:
        tokenizer = str(published)
    model = {"tokenizer": tokenizer, "architecture": scale.architecture}
    config = {
        "tokenizers": {"bpe": {"dataset": "rows", "vocab_size": scale.vocabulary or 32768}},
        "models": {"model": model, "compiled": model | {"training": {"torch_compile": True}}},
        "datasets": {"rows": common, "packed": common | {"packing": "best_fit"}},
        "max_length": scale.max_length,
        "training": training,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    measure.run(ours.snakemake("--cores", "all", "caches"), folder, folder / "caches.log")
    words = [sys.executable, str(Path(ours.__file__)), "plan", "config.yaml"]
    measure.run(words, folder, folder / "plan.log")


def folder_of(device: str, size: str) -> Path:
    return DATA / "training" / f"{device}-{size}"


def plan_of(folder: Path) -> dict[str, Any]:
    newest = max(folder.glob(".tokencache/plans/*.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text()) | {"path": str(newest.relative_to(folder))}


# The train stage of the workflow


def run_ours(folder: Path, model: str, dataset: str) -> dict[str, Any]:
    shutil.rmtree(folder / "results", ignore_errors=True)
    plan = plan_of(folder)
    [target] = [
        path
        for path, run in plan["runs"].items()
        if (run["model"], run["dataset"]) == (model, dataset)
    ]
    command = [sys.executable, "-m", "tokencache", "train", "--plan", plan["path"], target]
    measure.run(command, folder, folder / "train.log", memory=False)
    lines = (folder / target / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    timing = json.loads((folder / target / "timing.json").read_text())
    timed = [record for record in records if "loss" in record]
    after = _differences(timed[WARM_UP - 1 :])
    seconds = sum(r["targets"] / r["useful_tokens_per_second"] for r in after)
    useful = sum(r["targets"] for r in after)
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


def planning(lengths: Any, max_length: int) -> dict[str, Any]:
    """Padding with documents of these lengths, and how long a million of them take to pack."""
    import numpy as np

    from tokencache.caches.best_fit import best_fit_decreasing
    from tokencache.config.schema import Training
    from tokencache.training.batches import Batches

    drawn = np.random.default_rng(1).choice(lengths, 1_000_000)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        bins = best_fit_decreasing(drawn, max_length)
        seconds.append(time.perf_counter() - started)
    found = {"max_length": max_length, "max_tokens": 8 * max_length, "bins": int(bins.max()) + 1}
    some = drawn[:100_000]
    for name, grouped in (("grouped", True), ("random", False)):
        settings = Training(max_tokens=8 * max_length, group_by_length=grouped).model_dump()
        found[f"{name}_waste"] = Batches(settings, some, max_length, False).padding()
    return found | {
        "plan_seconds": median(seconds),
        "packed_waste": 1 - int(drawn.sum()) / (found["bins"] * max_length),
        "padded_waste": 1 - float(drawn.mean()) / max_length,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=[*SCALES], help="default: what this machine has")
    parser.add_argument("--prepare", action="store_true", help="make the caches, and nothing else")
    parser.add_argument("--prepared", action="store_true", help="the caches are made")
    parser.add_argument("--size", default="small", choices=[*corpora.SIZES][:3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="that are timed, of each arm")
    parser.add_argument("--arms", nargs="+", help="default: all")
    parser.add_argument(
        "--tokens", type=int, nargs="*", default=[10_000_000, 200_000_000],
        help="of the caches that the first step is timed on",
    )  # fmt: skip
    given = parser.parse_args()
    given.device = given.device or ("gpu" if has("gpu") else "cpu")
    scale, folder = SCALES[given.device], folder_of(given.device, given.size)
    given.useful, given.rows = scale.useful, scale.rows
    if not given.prepared:
        experiment(folder, given.size, scale, WARM_UP + given.steps)
    if given.prepare:
        return
    kept = DATA / f"training-{given.device}.json"
    results = about(given, folder)
    wanted = arms()
    for _ in range(given.rounds):
        for name, (arm, needs) in wanted.items():
            if not chosen(given, results, name, needs):
                continue
            words = [folder, json.dumps(asdict(arm)), given.steps, given.useful]
            command = [sys.executable, training_arm.__file__, *map(str, words), str(given.rows)]
            found = measure.output(command, measure.ROOT)
            keep(results, kept, name, json.loads(found.splitlines()[-1]))
        for name, attention in training_report.TRL.items():
            if not chosen(given, results, name, "trl"):
                continue
            words = [folder, attention, given.steps, given.useful]
            command = [sys.executable, training_trl.__file__, *map(str, words)]
            found = measure.output(command, measure.ROOT)
            keep(results, kept, name, json.loads(found.splitlines()[-1]))
        for name, (model, dataset) in OURS.items():
            if chosen(given, results, name, "gpu" if model == "compiled" else None):
                keep(results, kept, name, run_ours(folder, model, dataset))
    if given.tokens:
        run = {"tokenizer": str(tokenizer_of(folder))}
        results["first_steps"] = first_step.measured(
            plan_of(folder)["runs"].popitem()[1] | run, DATA / "first-step", given.tokens
        )
    kept.write_text(json.dumps(results, indent=1))
    training_report.write(results, Path(__file__).parent, given.device)
    print(training_report.markdown(results))


def chosen(
    given: argparse.Namespace, results: dict[str, Any], name: str, needs: str | None
) -> bool:
    """Whether an arm is to be run; notes one that this machine can't run."""
    if given.arms and name not in given.arms:
        return False
    if not has(needs):
        results["not_run"][name] = NEEDED[needs]
    return has(needs)


def keep(results: dict[str, Any], file: Path, name: str, found: dict[str, Any]) -> None:
    """At once, whatever becomes of the rest."""
    results["arms"].setdefault(name, []).append(found)
    file.write_text(json.dumps(results, indent=1))
    print(f"{name}: {found['useful_tokens_per_second']:,.0f} useful tokens/s", file=sys.stderr)


def about(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What the report says of the experiment and of the machine."""
    import torch

    from tokencache.caches.view import open_cache
    from tokencache.training.collate import split

    lengths = split(open_cache(caches_of(folder)["rows"], "train")).lengths
    corpus = json.loads((DATA / "corpora" / f"instruct-{given.size}" / "corpus.json").read_text())
    cuda = torch.cuda.is_available()
    config = config_of(folder)
    return {
        "machine": measure.machine("bench-training", LIBRARIES),
        "device": torch.cuda.get_device_name() if cuda else "no GPU",
        "given": {name: getattr(given, name) for name in ("rounds", "steps", "useful", "rows")},
        "model": config["models"]["model"]["architecture"],
        "parameters": make_model(folder, "sdpa").num_parameters(),
        "rows": len(lengths), "mean_length": float(lengths.mean()),
        "max_length": config["max_length"],
        "made_from": corpus["made_from"],
        "planning": planning(lengths, config["max_length"]), "first_steps": [],
        "arms": {}, "not_run": {},
    }  # fmt: skip


if __name__ == "__main__":
    main()
