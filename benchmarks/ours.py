"""This project, as the benchmarks run it: configurations, plans, and the jobs of a plan.

python benchmarks/ours.py plan CONFIG     make the plan; prints what was found, in JSON
python benchmarks/ours.py pretend CONFIG  make the plan, and empty files at all its targets
python benchmarks/ours.py hash FILE       cut a file into shards and hash them; prints the seconds
python benchmarks/ours.py first FOLDER    open a data set, print the seconds to its first batch

All run in the folder of an experiment.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import measure
import yaml

ROOT = Path(__file__).parents[1]
BATCH_ROWS = 8


def experiment(folder: Path, files: list[str], tokenizer: Path, lengths: list[int], **more) -> Path:
    """A folder with a config.yaml: one tokenizer, one data set, nothing to train."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "models": {name: {"tokenizer": str(tokenizer)} for name in more.pop("models", ["model"])},
        "datasets": {"corpus": {"files": files, "document": {"text": "text"}, "validation": None}},
        "max_length": lengths,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config | more))
    return folder


STAGES = {"materialize-tokenizer": "folders", "tokenize": "batches", "pack": "caches"}


def jobs(plan: dict, *stages: str) -> list[str]:
    """A shell line that does what is left of some stages, one job after the other."""
    start = f"{shlex.quote(sys.executable)} -m tokencache"
    lines = [
        f"{start} {stage} --plan {plan['path']} {target}"
        for stage in stages
        for target in plan[STAGES[stage]]
    ]
    return ["sh", "-ec", "\n".join(lines)]


def snakemake(*words: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *words]


def ask(folder: Path, *words: str) -> Any:
    """One of the actions above, in a process and a folder of its own."""
    return json.loads(measure.output([sys.executable, __file__, *words], folder))


def make_plan(config: str):
    from tokencache.config.load import load
    from tokencache.plan.resolve import resolve

    started = time.perf_counter()
    plan = resolve(load(yaml.safe_load(Path(config).read_text()), [config]))
    return plan, time.perf_counter() - started


def plan_of(config: str) -> dict:
    plan, seconds = make_plan(config)
    plan.write()
    return {
        "path": plan.path,
        "seconds": seconds,
        "batches": list(plan.batches),
        "caches": [path for path in plan.caches if not Path(path).exists()],
        "all_caches": list(plan.caches),
        "folders": [folder for folder in plan.tokenizers if not Path(folder).exists()],
        "bytes_to_tokenize": sum(batch["bytes"] for batch in plan.batches.values()),
        "shards": len(plan.data["shards"]),
    }


def hashing(file: str) -> dict:
    from tokencache.sources.identity import cut
    from tokencache.sources.source import Source

    started = time.perf_counter()
    shards = cut(Source(file, "jsonl", None, "line"), 64 * 2**20)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": sum(shard.bytes for shard in shards)}


def pretend(config: str) -> dict:
    """As if everything had been made: a dry run looks only at what is there."""
    plan, _ = make_plan(config)
    for folder in [*plan.caches, *plan.tokenizers]:
        Path(folder).mkdir(parents=True, exist_ok=True)
    for batch in plan.batches.values():
        for key in batch["tokens"]:
            path = Path(plan.tokens_path(key))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return {"shards": len(plan.data["shards"]), "caches": len(plan.caches)}


def first_batch(folder: str) -> dict:
    """Seconds from a cache on disk to arrays of a first batch, after the imports."""
    import datasets
    import numpy as np

    started = time.perf_counter()
    found = datasets.load_from_disk(folder)
    rows = found["train"] if isinstance(found, datasets.DatasetDict) else found
    batch = rows.with_format("numpy")[:BATCH_ROWS]
    assert len(np.concatenate(batch["input_ids"]))
    return {"seconds": time.perf_counter() - started, "rows": len(rows)}


if __name__ == "__main__":
    action = {"plan": plan_of, "pretend": pretend, "hash": hashing, "first": first_batch}[
        sys.argv[1]
    ]
    print(json.dumps(action(sys.argv[2])))
