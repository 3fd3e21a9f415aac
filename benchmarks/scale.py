"""What must not grow with the data: warm starts, reruns, dry runs, memory."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

import corpora
import measure
import ours

# Of a dry run with nothing stale: shards and caches.
GRAPHS = [(100, 10), (1000, 100), (10000, 1000)]

BARE = """
rule all:
    input: expand("out/{{i}}", i=range({jobs}))
rule one:
    input: "in/{{i}}"
    output: "out/{{i}}"
    shell: "cp {{input}} {{output}}"
"""


def all_of(size: str, rounds: int, data: Path) -> dict[str, Any]:
    tokenizers = corpora.tokenizers(data / "tokenizers")
    tokenizer = tokenizers.get("gpt2") or tokenizers["bpe"]
    folder = data / "runs" / "scale"
    shutil.rmtree(folder, ignore_errors=True)
    found = {
        "growth": [growth(s, tokenizer, rounds, data) for s in (size, corpora.TENFOLD[size])],
        "append": append(size, tokenizer, data),
        "graphs": [graph(shards, caches, tokenizer, rounds, data) for shards, caches in GRAPHS],
    }
    shutil.rmtree(folder)
    return found


def growth(size: str, tokenizer: Path, rounds: int, data: Path) -> dict[str, Any]:
    """A corpus from nothing, its warm start, and one more max_length, as a view too."""
    corpus = corpora.corpus("instruct", size, data / "corpora")
    folder = data / "runs" / "scale" / size
    files = corpora.files(corpus)
    ours.experiment(folder, files, tokenizer, [2048])
    plan = ours.ask(folder, "plan", "config.yaml")
    log = folder / "log"
    measure.run(ours.jobs(plan, "materialize-tokenizer"), folder, log)
    tokenized = measure.run(ours.jobs(plan, "tokenize"), folder, log)
    packed = measure.run(ours.jobs(plan, "pack"), folder, log)
    cache = plan["caches"][0]
    first = [ours.ask(folder, "first", cache)["seconds"] for _ in range(max(5, rounds))]
    made = json.loads((folder / cache / "cache.json").read_text())
    hashed = [ours.ask(folder, "hash", file) for file in files]
    again = ours.ask(folder, "plan", "config.yaml")
    ours.experiment(folder, files, tokenizer, [1024])
    other = ours.ask(folder, "plan", "config.yaml")
    length = measure.run(ours.jobs(other, "tokenize", "pack"), folder, log)
    ours.experiment(folder, files, tokenizer, [1024], format="view")
    viewed = ours.ask(folder, "plan", "config.yaml")
    view = measure.run(ours.jobs(viewed, "tokenize", "pack"), folder, log)
    told = {
        "corpus": json.loads((corpus / "corpus.json").read_text()),
        "tokens": sum(split["tokens"] for split in made["splits"].values()),
        "seconds": tokenized["seconds"] + packed["seconds"],
        "tokenize_peak_bytes": tokenized["peak_bytes"],
        "pack_peak_bytes": packed["peak_bytes"],
        "first_batch_seconds": median(first),
        "plan_seconds": plan["seconds"],
        "hash_bytes_per_second": sum(h["bytes"] for h in hashed)
        / sum(h["seconds"] for h in hashed),
        "second_plan_seconds": again["seconds"],
        "new_length_seconds": length["seconds"],
        "new_length_bytes_tokenized": other["bytes_to_tokenize"],
        "view_seconds": view["seconds"],
    }
    print(f"  {size}: {told}", file=sys.stderr, flush=True)
    return told


def append(size: str, tokenizer: Path, data: Path) -> dict[str, Any]:
    """How many bytes are tokenized again after 1 % more rows at the end of the last file."""
    corpus = corpora.corpus("instruct", size, data / "corpora")
    folder = data / "runs" / "scale" / "append"
    folder.mkdir(parents=True)
    copies = [shutil.copy(file, folder) for file in corpora.files(corpus)]
    whole = sum(Path(file).stat().st_size for file in copies)
    # Shards as large beside the corpus as 64 MiB are beside 10 GB.
    small = max(4096, whole // 150)
    ours.experiment(folder, copies, tokenizer, [2048], shard_size=small)
    ours.ask(folder, "pretend", "config.yaml")
    lines = Path(copies[0]).read_bytes().splitlines(keepends=True)
    with open(copies[-1], "ab") as stream:
        written = 0
        while written < whole / 100:
            written += stream.write(lines.pop())
    stale = ours.ask(folder, "plan", "config.yaml")["bytes_to_tokenize"]
    return {"bytes": whole, "appended": written, "tokenized_again": stale, "shard_size": small}


def graph(shards: int, caches: int, tokenizer: Path, rounds: int, data: Path) -> dict[str, Any]:
    """`snakemake -n` with nothing stale, and a bare Snakemake with as many plain jobs."""
    folder = data / "runs" / "scale" / f"{shards}-{caches}"
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "rows.jsonl"
    source.parent.mkdir(parents=True)
    with open(source, "w") as stream:
        for number in range(shards * 40):
            stream.write(json.dumps({"text": f"row {number} " + "x" * 80}) + "\n")
    # Shards are about as large as they are asked to be; this finds out what gives that many.
    wanted, experiment = source.stat().st_size // shards, {}
    lengths = [64 + 8 * number for number in range(caches // 10)]
    experiment["models"] = [f"model{number}" for number in range(10)]
    ours.experiment(folder, [str(source)], tokenizer, lengths, shard_size=wanted, **experiment)
    made = ours.ask(folder, "pretend", "config.yaml")
    bare = folder / "bare"
    for name in ("in", "out"):  # inputs first, so that outputs are newer
        (bare / name).mkdir(parents=True)
        for number in range(shards + caches):
            (bare / name / str(number)).touch()
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        commands = {"tokencache": (folder, ours.snakemake("-n", "caches"))}
        for jobs in (caches, shards + caches):
            snakefile = bare / f"{jobs}.smk"
            snakefile.write_text(BARE.format(jobs=jobs))
            command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), "-n"]
            commands[f"bare, {jobs:,} jobs"] = (bare, command)
        for name, (where, command) in commands.items():
            told = measure.run(command, where, folder / "log", memory=False)
            seconds.setdefault(name, []).append(told["seconds"])
    found = made | {"seconds": {name: median(times) for name, times in seconds.items()}}
    print(f"  {found}", file=sys.stderr, flush=True)
    return found
