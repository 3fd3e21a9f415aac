"""What each part of a good training set-up is worth: a ladder from a slow one, one change an arm.

python benchmarks/training.py [--size tiny] [--rounds 3] [--steps 4] [--arms …]

Every arm trains the same model on the same documents, with steps of about as many useful tokens
(tokens that are predicted), each in a process of its own; repeats are interleaved. Arms that need
a GPU, or kernels that are not there, are not run, and said to be so. The last arm is the workflow's
own train stage. Results go to benchmarks/data/training.json, and a table is printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import corpora
import measure
import ours
import yaml

DATA = Path(__file__).parent / "data"
MAX_LENGTH = 1024
MODEL = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 384,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip
WARM_UP = 1  # steps that are not timed
OURS = {"tokencache train, rows": "rows", "tokencache train, packed": "packed"}


@dataclass(frozen=True)
class Arm:
    """The slow set-up, by default: what the guides of the field say to move away from."""

    tf32: bool = False
    precision: str = "float32"
    attention: str = "eager"
    padded: bool = True  # each row to max_length, else to the longest of its batch
    cached: bool = False  # rows come from a cache, else they are tokenized in the loader
    grouped: bool = False
    packed: bool = False
    workers: int = 0
    compiled: bool = False


# Name, what changes, and what it needs that not every machine has.
LADDER: list[tuple[str, dict[str, Any], str | None]] = [
    ("slow set-up", {}, None),
    ("TF32", {"tf32": True}, "gpu"),
    ("bfloat16", {"precision": "bfloat16"}, "gpu"),
    ("SDPA", {"attention": "sdpa"}, None),
    ("dynamic padding", {"padded": False}, None),
    ("rows from the cache", {"cached": True}, None),
    ("length grouping", {"grouped": True}, None),
    ("packed", {"packed": True, "grouped": False}, None),
    ("varlen", {"attention": "flash_attention_2"}, "flash_attn"),
    ("a loader's worker", {"workers": 1}, None),
    ("compiled", {"compiled": True}, "gpu"),
]


def arms() -> dict[str, tuple[Arm, str | None]]:
    """Each with the changes before it; one that can't be had everywhere is left again."""
    found, arm, gpu = {}, Arm(), _has("gpu")
    for name, change, needs in LADDER:
        changed = replace(arm, **change)
        found[name] = changed, needs
        if needs is None or (needs == "gpu" and gpu) or (needs != "gpu" and _has(needs)):
            arm = changed
    return found


def _has(needs: str | None) -> bool:
    import importlib.util

    import torch

    if needs == "gpu":
        return torch.cuda.is_available()
    return needs is None or importlib.util.find_spec(needs) is not None


def experiment(size: str, steps: int, max_tokens: int) -> Path:
    """A folder with the caches, of rows and of packed rows, and a plan to train on both."""
    corpus = corpora.corpus("instruct", size, DATA / "corpora")
    folder = DATA / "training" / size
    shutil.rmtree(folder / "results", ignore_errors=True)
    common = {"files": corpora.files(corpus), "document": {"text": "text"},
              "validation": {"fraction": 0.02}}  # fmt: skip
    training = {"max_steps": steps, "max_tokens": max_tokens, "logging_steps": 1,
                "learning_rate": 1e-3}  # fmt: skip
    config = {
        "tokenizers": {"bpe": {"dataset": "rows", "vocab_size": 4096}},
        "models": {"model": {"tokenizer": "bpe", "architecture": MODEL}},
        "datasets": {"rows": common, "packed": common | {"packing": "best_fit"}},
        "max_length": MAX_LENGTH,
        "training": training,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    measure.run(ours.snakemake("--cores", "all", "caches"), folder, folder / "caches.log")
    return folder


# One arm, in its own process


def run_arm(folder: Path, arm: Arm, steps: int, useful: int, rows_at_once: int) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    from tokencache import hardware, meter
    from tokencache.collate import COUNTS
    from tokencache.train import _quiet

    _quiet()
    torch.backends.fp32_precision = "tf32" if arm.tf32 else "ieee"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    caches = {p.parent.name: p for p in folder.glob("cache/model/*/*") if p.name[0] != "."}
    tokenizer = next(p for p in folder.glob("cache/tokenizers/*") if p.is_dir())
    set_seed(0)
    config = AutoConfig.for_model(**MODEL, vocab_size=4096, max_position_embeddings=MAX_LENGTH)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=arm.attention).to(device)
    compiled = torch.compile(model, dynamic=True) if arm.compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    peak = hardware.peak(torch.cuda.get_device_name()) if device.type == "cuda" else None
    batches = _batches(arm, folder, caches, tokenizer, rows_at_once, device)
    counts = dict.fromkeys(("tokens", "targets", "squares", "computed"), 0)
    started = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            _wait(device)
            started, counts = time.perf_counter(), dict.fromkeys(counts, 0)
        done, parts = 0, []
        while done < useful:
            parts.append(next(batches))
            done += parts[-1][COUNTS]["targets"]
        for batch in parts:
            for name in counts:
                counts[name] += batch[COUNTS][name]
            _loss(compiled, batch, arm.precision, device).div(done).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    _wait(device)
    seconds = time.perf_counter() - started
    of_each = meter.model_flops(model)
    flops = of_each["tokens"] * counts["targets"] + of_each["squares"] * counts["squares"]
    return {
        "useful_tokens_per_second": counts["targets"] / seconds,
        "useful_share": counts["targets"] / counts["computed"],
        "mfu": flops / seconds / peak if peak else None,
        "peak_bytes": hardware.peak_memory(),
        "loss": _validate(model, caches["rows"], device),
    }


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def _loss(model: Any, batch: dict[str, Any], precision: str, device: Any) -> Any:
    """The sum over all targets."""
    import torch

    from tokencache.collate import COUNTS, NUMBERS
    from tokencache.trainer import _token_losses

    given = {k: v for k, v in batch.items() if k not in (COUNTS, NUMBERS, "labels")}
    given = {k: v.to(device) if torch.is_tensor(v) else v for k, v in given.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(**given).logits
    return _token_losses(logits, batch["labels"].to(device)).sum()


def _batches(
    arm: Arm, folder: Path, caches: dict[str, Path], tokenizer: Path, rows: int, device: Any
) -> Iterator[dict[str, Any]]:
    """Batches without an end, in the arm's way."""
    from torch.utils.data import DataLoader

    from tokencache.batching import Batches, Rows
    from tokencache.collate import Collator, split
    from tokencache.config import Training
    from tokencache.models import vocabulary
    from tokencache.view import open_cache

    found = split(open_cache(caches["packed" if arm.packed else "rows"], "train"))
    size = {"per_device_train_batch_size": rows}
    if arm.grouped or arm.packed:
        size = {"max_tokens": rows * MAX_LENGTH}
    order = Batches(Training(**size).model_dump(), found.lengths, MAX_LENGTH, found.packed)
    collate: Any = Collator(vocabulary(tokenizer).pad, MAX_LENGTH, found.packed)
    if arm.padded:
        collate = _Wide(collate)
    source: Any = Rows(found) if arm.cached else _Texts(folder, tokenizer, len(found))
    loader = DataLoader(
        source, batch_sampler=order, collate_fn=collate, num_workers=arm.workers,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    epoch = 0
    while True:
        order.set_epoch(epoch)
        yield from loader
        epoch += 1


class _Texts:
    """Documents that are tokenized when a batch of them is asked for."""

    def __init__(self, folder: Path, tokenizer: Path, count: int) -> None:
        import yaml
        from transformers import AutoTokenizer

        config = yaml.safe_load((folder / "config.yaml").read_text())
        files = config["datasets"]["rows"]["files"]
        lines = (line for file in files for line in Path(file).read_bytes().splitlines())
        self._texts = [json.loads(line)["text"] for line in islice(lines, count)]
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        import numpy as np

        texts = [self._texts[place] for place in places]
        found = self._tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        return [{"input_ids": np.array(ids), "labels": np.array(ids)} for ids in found]


class _Wide:
    """A collator whose batches are as wide as max_length."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        from tokencache.collate import COUNTS, IGNORED

        batch = self._collate(rows)
        fill = {"input_ids": self._collate.pad_id, "labels": IGNORED, "attention_mask": 0}
        for name, value in fill.items():
            more = MAX_LENGTH - batch[name].shape[1]
            batch[name] = torch.nn.functional.pad(batch[name], (0, more), value=value)
        batch[COUNTS]["computed"] = len(rows) * MAX_LENGTH
        return batch


def _validate(model: Any, cache: Path, device: Any) -> float:
    import torch

    from tokencache.collate import Collator, split
    from tokencache.view import open_cache

    found = split(open_cache(cache, "validation"))
    collate, total = Collator(0, MAX_LENGTH, False), 0.0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(found), 8):
            places = list(range(start, min(start + 8, len(found))))
            batch = collate(found.rows.__getitems__(places))
            total += _loss(model, batch, "float32", device).item()
    return total / found.targets


# The train stage of the workflow


def run_ours(folder: Path, dataset: str) -> dict[str, Any]:
    shutil.rmtree(folder / "results", ignore_errors=True)
    path = max(folder.glob(".tokencache/plans/*.json"))
    plan = json.loads(path.read_text())
    [target] = [run for run, about in plan["runs"].items() if about["dataset"] == dataset]
    command = [
        sys.executable,
        "-m",
        "tokencache",
        "train",
        "--plan",
        str(path.relative_to(folder)),
        target,
    ]
    measure.run(command, folder, folder / "train.log", memory=False)
    lines = (folder / target / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    timed = [r for r in records if "loss" in r][WARM_UP:]
    timing = json.loads((folder / target / "timing.json").read_text())
    seconds = sum(r["targets"] / r["useful_tokens_per_second"] for r in _differences(timed))
    return {
        "useful_tokens_per_second": sum(r["targets"] for r in _differences(timed)) / seconds,
        "useful_share": median(r["useful_share"] for r in timed),
        "mfu": median(r["mfu"] for r in timed) if timed[0]["mfu"] else None,
        "peak_bytes": timing["peak_memory_bytes"],
        "loss": records[-1].get("validation_loss"),
    }


def _differences(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records with the targets since the record before, but for the first."""
    pairs = pairwise(records)
    return [after | {"targets": after["targets"] - before["targets"]} for before, after in pairs]


def table(results: dict[str, Any]) -> str:
    """Medians and ranges as Markdown."""
    names = ("arm", "useful tokens/s", "range", "against the slow one", "useful share", "MFU",
             "peak MB", "validation loss")  # fmt: skip
    lines = [f"| {' | '.join(names)} |", f"| --- |{' --: |' * (len(names) - 1)}"]
    slow = results["arms"].get("slow set-up")
    base = median(r["useful_tokens_per_second"] for r in slow) if slow else None
    for name, runs in results["arms"].items():
        rates = sorted(run["useful_tokens_per_second"] for run in runs)
        last, rate = runs[-1], median(rates)
        times = f"{rate / base:.1f}×" if base else "-"
        mfu = "-" if last["mfu"] is None else f"{last['mfu']:.1%}"
        lines.append(
            f"| {name} | {rate:,.0f} | {rates[0]:,.0f} to {rates[-1]:,.0f} | {times} | "
            f"{last['useful_share']:.1%} | {mfu} | {last['peak_bytes'] / 1e6:,.0f} | "
            f"{last['loss']:.3f} |"
        )
    lines += [
        "",
        *(f"- {name}: not run, it needs {why}" for name, why in results["not_run"].items()),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", default="tiny", choices=[*corpora.SIZES][:3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="that are timed, of each arm")
    parser.add_argument("--useful", type=int, default=4096, help="useful tokens a step, about")
    parser.add_argument("--rows", type=int, default=4, help="rows of max_length at once")
    parser.add_argument("--arms", nargs="+", help="default: all")
    parser.add_argument("--arm", help=argparse.SUPPRESS)  # from this to itself
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm:
        arm = Arm(**json.loads(given.arm))
        print(json.dumps(run_arm(given.folder, arm, given.steps, given.useful, given.rows)))
        return
    folder = experiment(given.size, WARM_UP + given.steps + 1, given.useful)
    measure.run([sys.executable, str(Path(ours.__file__)), "plan", "config.yaml"], folder,
                folder / "plan.log")  # fmt: skip
    results: dict[str, Any] = {"machine": measure.machine(), "arms": {}, "not_run": {}}
    wanted = {name: a for name, a in arms().items() if not given.arms or name in given.arms}
    for _ in range(given.rounds):
        for name, (arm, needs) in wanted.items():
            if not _has(needs):
                results["not_run"][name] = "a GPU" if needs == "gpu" else needs
                continue
            words = ["--arm", json.dumps(asdict(arm)), "--folder", str(folder)]
            words += [f"--{n}={getattr(given, n)}" for n in ("steps", "useful", "rows")]
            found = measure.output([sys.executable, __file__, *words], measure.ROOT)
            results["arms"].setdefault(name, []).append(json.loads(found.splitlines()[-1]))
            print(f"{name}: {results['arms'][name][-1]}", file=sys.stderr, flush=True)
        for name, dataset in OURS.items():
            if not given.arms or name in given.arms:
                results["arms"].setdefault(name, []).append(run_ours(folder, dataset))
                print(f"{name}: {results['arms'][name][-1]}", file=sys.stderr, flush=True)
    (DATA / "training.json").write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
