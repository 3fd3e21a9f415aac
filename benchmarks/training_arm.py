"""One arm of the ladder of training.py: a bare loop over the experiment's caches.

python benchmarks/training_arm.py FOLDER ARM STEPS USEFUL ROWS    prints what it came to, in JSON
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

LEARNING_RATE = 1e-3
WARM_UP = 2  # steps that are not timed, unless the first one takes as long as this:
ENOUGH_SECONDS = 20  # and a step that ends so long after the first timed one began is the last


@dataclass(frozen=True)
class Arm:
    """The slow set-up, by default: what the guides of the field say to move away from."""

    tf32: bool = False
    precision: str = "float32"
    attention: str = "eager"
    padded: bool = True  # each row to max_length, else to the longest of its batch
    cached: bool = False  # rows come from a cache, else they are tokenized in the loader
    grouped: bool = False
    by_tokens: bool = False  # batches of a step's tokens, else of so many rows
    packed: bool = False
    workers: int = 0
    compiled: bool = False


def caches_of(folder: Path) -> dict[str, Path]:
    """By data set."""
    return {p.parent.name: p for p in folder.glob("cache/model/*/*") if p.name[0] != "."}


def tokenizer_of(folder: Path) -> Path:
    return next(p for p in folder.glob("cache/tokenizers/*") if p.name[0] != ".")


def by_documents() -> str | None:
    """The attention that is told where the documents of packed rows end, if there is one."""
    import torch

    try:
        from tokencache.training.packed_attention import PER_DOCUMENT, VARLEN
    except ImportError:
        return None
    return VARLEN if torch.cuda.is_available() else PER_DOCUMENT


def config_of(folder: Path) -> dict[str, Any]:
    """The config.yaml of the experiment."""
    import yaml

    return yaml.safe_load((folder / "config.yaml").read_text())


def make_model(folder: Path, attention: str) -> Any:
    """The experiment's model with random weights, on the GPU where there is one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    from tokencache.training.model import vocabulary

    set_seed(0)
    given = config_of(folder)
    config = AutoConfig.for_model(
        **given["models"]["model"]["architecture"],
        vocab_size=vocabulary(tokenizer_of(folder)).size,
        max_position_embeddings=given["max_length"],
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def run_arm(folder: Path, arm: Arm, steps: int, useful: int, rows_at_once: int) -> dict[str, Any]:
    """Train for some steps; returns rates, peak memory and the validation loss.

    useful: targets of a step, about. rows_at_once: rows of a batch where nothing else says it;
    rows that are padded to max_length come one at a time on a GPU, whose memory they fill.
    """
    import torch

    from tokencache.training import hardware, throughput
    from tokencache.training.collate import COUNTS
    from tokencache.training.run import _quiet

    _quiet()
    by_documents()  # makes its attention known
    torch.backends.fp32_precision = "tf32" if arm.tf32 else "ieee"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arm.padded and device.type == "cuda":
        rows_at_once = 1
    model = make_model(folder, arm.attention)
    compiled = torch.compile(model, dynamic=True) if arm.compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    peak = hardware.peak(torch.cuda.get_device_name()) if device.type == "cuda" else None
    batches = _batches(arm, folder, rows_at_once, useful, device)
    names = ("tokens", "targets", "squares", "computed")
    started, counts, seen = time.perf_counter(), dict.fromkeys(names, 0), 0
    warm_up = WARM_UP
    for step in range(WARM_UP + steps):
        if step == 1 and time.perf_counter() - started > ENOUGH_SECONDS:
            warm_up = 1
        if step == warm_up:
            _wait(device)
            started, counts, seen = time.perf_counter(), dict.fromkeys(names, 0), counts["targets"]
        done, last, parts = 0, 0, []
        while useful - done > last / 2:  # as near as batches let it come
            parts.append(next(batches))
            last = parts[-1][COUNTS]["targets"]
            done += last
        for batch in parts:
            for name in names:
                counts[name] += batch[COUNTS][name]
            _loss(compiled, batch, arm.precision, device).div(done).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)
        if step >= warm_up and time.perf_counter() - started > ENOUGH_SECONDS:
            break
    seconds = time.perf_counter() - started
    of_each = throughput.model_flops(model)
    flops = of_each["tokens"] * counts["targets"] + of_each["squares"] * counts["squares"]
    return {
        "useful_tokens_per_second": counts["targets"] / seconds,
        "useful_share": counts["targets"] / counts["computed"],
        "mfu": flops / seconds / peak if peak else None,
        "peak_bytes": hardware.peak_memory(),
        "useful_tokens": seen + counts["targets"],
        "loss": validate(folder, model),
    }


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def _loss(model: Any, batch: dict[str, Any], precision: str, device: Any) -> Any:
    """The sum over all targets."""
    import torch

    from tokencache.training.collate import COUNTS, NUMBERS

    given = {k: v for k, v in batch.items() if k not in (COUNTS, NUMBERS, "labels")}
    given = {k: v.to(device) if torch.is_tensor(v) else v for k, v in given.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(**given).logits[:, :-1]
    labels = batch["labels"][:, 1:].to(device)
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="sum"
    )


def _batches(
    arm: Arm, folder: Path, rows: int, useful: int, device: Any
) -> Iterator[dict[str, Any]]:
    """Batches without an end, in the arm's way."""
    from torch.utils.data import DataLoader

    from tokencache.caches.view import open_cache
    from tokencache.config.schema import Training
    from tokencache.training.batches import Batches, Rows
    from tokencache.training.collate import Collator, split
    from tokencache.training.model import vocabulary

    caches, tokenizer = caches_of(folder), tokenizer_of(folder)
    max_length = config_of(folder)["max_length"]
    found = split(open_cache(caches["packed" if arm.packed else "rows"], "train"))
    size = {"max_tokens": useful} if arm.by_tokens else {"per_device_train_batch_size": rows}
    size |= {"group_by_length": arm.grouped}
    order = Batches(Training(**size).model_dump(), found.lengths, max_length, found.packed)
    collate: Any = Collator(vocabulary(tokenizer).pad, max_length, found.packed)
    if arm.padded:
        collate = _Wide(collate, max_length)
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
        from transformers import AutoTokenizer

        self._texts = list(islice(texts_of(folder), count))
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self._max_length = config_of(folder)["max_length"]

    def __len__(self) -> int:
        return len(self._texts)

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        import numpy as np

        texts = [self._texts[place] for place in places]
        found = self._tokenizer(texts, truncation=True, max_length=self._max_length)["input_ids"]
        return [{"input_ids": np.array(ids), "labels": np.array(ids)} for ids in found]


class _Wide:
    """A collator whose batches are as wide as max_length."""

    def __init__(self, collate: Any, max_length: int) -> None:
        self._collate, self._max_length = collate, max_length

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        from tokencache.training.collate import COUNTS, IGNORED

        batch = self._collate(rows)
        fill = {"input_ids": self._collate.pad_id, "labels": IGNORED, "attention_mask": 0}
        for name, value in fill.items():
            more = self._max_length - batch[name].shape[1]
            batch[name] = torch.nn.functional.pad(batch[name], (0, more), value=value)
        batch[COUNTS]["computed"] = len(rows) * self._max_length
        return batch


def texts_of(folder: Path) -> Iterator[str]:
    """The documents of the experiment's files, in their order."""
    for file in config_of(folder)["datasets"]["rows"]["files"]:
        for line in (folder / file).read_bytes().splitlines():
            yield json.loads(line)["text"]


def validate(folder: Path, model: Any) -> float:
    """The loss over every target of the validation split, in float32, without packing."""
    import torch

    from tokencache.caches.view import open_cache
    from tokencache.training.collate import Collator, split

    found = split(open_cache(caches_of(folder)["rows"], "validation"))
    collate, total = Collator(0, config_of(folder)["max_length"], False), 0.0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(found), 8):
            places = list(range(start, min(start + 8, len(found))))
            batch = collate(found.rows.__getitems__(places))
            total += _loss(model, batch, "float32", model.device).item()
    return total / found.targets


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the workflow's jobs have it
    numbers = map(int, sys.argv[3:])
    print(json.dumps(run_arm(Path(sys.argv[1]), Arm(**json.loads(sys.argv[2])), *numbers)))
