"""How long a training takes to its first step, and with what, on caches of made-up tokens.

python benchmarks/first_step.py [--tokens 10000000 200000000]

The model is a small one of the experiment that training.py makes, whose first step is short.
Imports and the loading of the model are said, and counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import assembly
import measure

DATA = Path(__file__).parent / "data"
MAX_LENGTH = 2048
KINDS = {"packed": ("best_fit", False), "rows with a loss mask": ("none", True)}
APART = ("imports", "model")


def cache(tokens: int, masked: bool, packing: str, folder: Path, vocabulary: int) -> Path:
    """A cache of about so many random tokens."""
    from tokencache.caches import dataset

    folder.mkdir(parents=True)
    names = assembly.make_shards(folder / "shards", tokens, masked, vocabulary)
    paths = [str(folder / "shards" / f"{name}.arrow") for name in names]
    entry = {"model": "m", "dataset": "d", "max_length": MAX_LENGTH, "overflow": "truncate",
             "packing": packing, "validation": None, "key": "c" * 32}  # fmt: skip
    splits = {"train": {"paths": paths, "shards": names}}
    dataset.build(
        entry, {"prefix": 1, "suffix": 1, "splits": splits, "provenance": {}}, folder / "c"
    )
    shutil.rmtree(folder / "shards")
    return folder / "c"


def measured(run: dict[str, Any], folder: Path, counts: list[int]) -> list[dict[str, Any]]:
    """run: the plan's entry of a run, which is trained on caches of other tokens."""
    found = []
    shutil.rmtree(folder, ignore_errors=True)
    vocabulary = json.loads(Path(run["tokenizer"], "facts.json").read_text())["vocab_size"]
    for tokens in counts:
        for kind, (packing, masked) in KINDS.items():
            made = cache(tokens, masked, packing, folder / f"{tokens}-{packing}", vocabulary)
            training = run["training"] | {"max_steps": 2, "max_tokens": MAX_LENGTH}
            other = {"cache": str(made), "cache_key": "c" * 32, "max_length": MAX_LENGTH}
            (made.parent / "run.json").write_text(json.dumps(run | other | {"training": training}))
            command = [sys.executable, __file__, "--run", str(made.parent / "run.json")]
            seconds = json.loads(measure.output(command, measure.ROOT).splitlines()[-1])
            about = json.loads((made / "cache.json").read_text())["splits"]["train"]
            found.append({"kind": kind, "tokens": about["tokens"], "rows": about["rows"],
                          "seconds": seconds})  # fmt: skip
            print(f"{kind}, {about['tokens']:,} tokens: {seconds}", file=sys.stderr, flush=True)
            shutil.rmtree(made.parent)
    return found


class Clock:
    """Seconds of calls by their names; of nested ones, of the outer one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = False

    def times(self, owner: Any, method: str, name: str) -> None:
        inner = getattr(owner, method)

        def outer(*given: Any, **more: Any) -> Any:
            if self._inside:
                return inner(*given, **more)
            self._inside, began = True, time.perf_counter()
            try:
                return inner(*given, **more)
            finally:
                self._inside = False
                took = time.perf_counter() - began
                self.seconds[name] = self.seconds.get(name, 0.0) + took

        setattr(owner, method, outer)


class Done(BaseException):
    """The first step is made."""


def first_step(path: Path) -> None:
    """Train up to the end of the first step; prints where the seconds went."""
    began = time.perf_counter()
    from tokencache.training import model, trainer
    from tokencache.training import run as train
    from tokencache.training.batches import Batches

    clock = Clock()
    clock.seconds["imports"] = time.perf_counter() - began
    clock.times(model, "load", "model")
    clock.times(train, "_splits", "lengths and targets of the rows")
    clock.times(Batches, "__init__", "cutting batches")
    clock.times(Batches, "about", "order and padding of the first epoch")
    clock.times(trainer.CacheTrainer, "__init__", "transformers' trainer")
    clock.times(trainer.CacheTrainer, "get_batch_samples", "first batch")
    clock.times(trainer.CacheTrainer, "training_step", "forward and backward")
    run = json.loads(path.read_text())

    def end(*_: Any, **__: Any) -> None:
        raise Done

    trainer.CacheTrainer._maybe_log_save_evaluate = end
    try:
        train.train(run, path.parent / "out", path.parent / "checkpoints")
    except Done:
        took = time.perf_counter() - began
    clock.seconds["all but these two"] = took - sum(clock.seconds[name] for name in APART)
    print(json.dumps({name: round(seconds, 3) for name, seconds in clock.seconds.items()}))


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    words.add_argument("--tokens", type=int, nargs="+", default=[10_000_000, 200_000_000])
    words.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # from this to itself
    given = words.parse_args()
    if given.run:
        first_step(given.run)
        return
    plans = sorted(DATA.glob("training/*/.tokencache/plans/*.json"), key=os.path.getmtime)
    if not plans:
        sys.exit("run benchmarks/training.py first: it makes the tokenizer")
    os.chdir(plans[-1].parents[2])
    run = next(iter(json.loads(plans[-1].read_text())["runs"].values()))
    run["tokenizer"] = os.path.abspath(run["tokenizer"])
    print(json.dumps(measured(run, DATA / "first-step", given.tokens), indent=1))


if __name__ == "__main__":
    main()
