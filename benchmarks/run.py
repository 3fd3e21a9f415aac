"""Measure this project and its peers side by side.

python benchmarks/run.py [--size small] [--rounds 3] [--corpora …] [--tokenizers …] [--peers …]

Corpora, runs and results.json are kept in benchmarks/data; report.py makes the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import corpora
import measure
import ours
import peers
import report
import scale

DATA = Path(__file__).parent / "data"
OURS = ("tokencache jobs", "tokencache workflow")
# Which tokenizers each corpus is measured with, where there are these.
WORK = {
    "instruct": ("gpt2", "mistral-v3-spm", "bert-base-uncased", "bpe", "wordpiece"),
    "code": ("gpt2", "qwen2.5", "bpe"),
    "multilingual": ("qwen2.5", "mistral-v3-spm", "bpe"),
}
# The same with ten times the data, where the start of a process counts for less.
MORE_WORK = {"instruct": ("gpt2", "bpe")}
MORE_PEERS = ["datasets.map, all cores"]
PARTS = ("where", "scale", "compare", "tenfold")


class Bench:
    """One (corpus, tokenizer) for all that takes part."""

    def __init__(self, corpus: Path, tokenizer: Path, max_length: int) -> None:
        self.corpus, self.tokenizer, self.max_length = corpus, tokenizer, max_length
        self.folder = DATA / "runs" / f"{corpus.name}-{tokenizer.name}"
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, name: str) -> dict[str, Any]:
        """One run from nothing; what it made stays until its next one."""
        out = self.folder / name.replace(" ", "-").replace(",", "")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        log = self.folder / "logs" / f"{out.name}.log"
        if name not in OURS:
            command = self._peer("make", name, out)
            return measure.run(command, measure.ROOT, log) | {"out": str(out)}
        ours.experiment(out, corpora.files(self.corpus), self.tokenizer, [self.max_length])
        command = ours.snakemake("--cores", "all", "caches")
        if name == "tokencache jobs":
            plan = ours.ask(out, "plan", "config.yaml")
            measure.run(ours.jobs(plan, "materialize-tokenizer"), out, log)
            command = ours.jobs(plan, "tokenize", "pack")
        return measure.run(command, out, log) | {"out": str(out)}

    def check(self, name: str, out: Path) -> dict[str, Any]:
        """The hash over all ids, and the bytes that the finished result takes."""
        if name in OURS:
            made = next((out / "cache" / "model").glob("*/*/cache.json")).parent
            size = measure.bytes_on_disk(made)
        else:
            kept = [out / part for part in ("saved", "tokens") if (out / part).exists()]
            size = measure.bytes_on_disk(kept[0] if kept else out)
        command = self._peer("ids", name, out)
        return json.loads(measure.output(command, measure.ROOT)) | {"bytes": size}

    def _peer(self, action: str, name: str, out: Path) -> list[str]:
        given = [action, name, self.corpus, self.tokenizer, self.max_length, out]
        return [sys.executable, str(Path(peers.__file__)), *map(str, given)]


def compare(bench: Bench, names: list[str], rounds: int, enough: float) -> dict[str, Any]:
    """Medians of all that take part and agree on the ids; why not, of the others.

    Who has taken `enough` seconds in all takes no more turns.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    left_out: dict[str, str] = {}
    checked: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        # Each round begins with another one, so that none always has the same before it.
        for name in [*names[number % len(names) :], *names[: number % len(names)]]:
            if name in left_out or sum(run["seconds"] for run in runs[name]) > enough:
                continue
            try:
                runs[name].append(bench.run(name))
                if name not in checked:
                    checked[name] = bench.check(name, Path(runs[name][-1]["out"]))
            except measure.Failed as error:
                left_out[name] = str(error)[-300:]
                print(f"  {name}: {error}", file=sys.stderr)
                continue
            print(f"  {name}: {runs[name][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    agreed = checked.get("encode_batch loop") or next(iter(checked.values()))
    found = {}
    for name in [name for name in names if name not in left_out]:
        if checked[name]["ids"] != agreed["ids"]:
            left_out[name] = f"other ids: {checked[name]['tokens']:,} tokens"
            continue
        of = {key: [run[key] for run in runs[name]] for key in ("seconds", "cpu_seconds")}
        found[name] = {key: median(values) for key, values in of.items()} | {
            "all_seconds": of["seconds"],
            "peak_bytes": max(run["peak_bytes"] for run in runs[name]),
            "bytes": checked[name]["bytes"],
        }
    return {"tokens": agreed["tokens"], "found": found, "left_out": left_out}


def compared(
    arguments: argparse.Namespace, part: str, size: str, work: dict[str, tuple[str, ...]],
    wanted: list[str] | None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A part of the results, again with each (corpus, tokenizer) that is done."""
    known = corpora.tokenizers(DATA / "tokenizers")
    entries = []
    for name in arguments.corpora:
        corpus = corpora.corpus(name, size, DATA / "corpora")
        about = json.loads((corpus / "corpus.json").read_text())
        for tokenizer in work.get(name, ()):
            if tokenizer not in known or tokenizer not in (arguments.tokenizers or known):
                continue
            print(f"{name} ({size}), {tokenizer}", file=sys.stderr)
            bench = Bench(corpus, known[tokenizer], corpora.MAX_LENGTH[name])
            names = [*OURS, *taking_part(wanted, known[tokenizer])]
            told = compare(bench, names, arguments.rounds, arguments.enough)
            about_run = {"tokenizer": tokenizer, "max_length": bench.max_length}
            entries.append({"corpus": about} | about_run | told)
            shutil.rmtree(bench.folder)
            yield {part: entries}


def where_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Where the time of tokenizing goes."""
    known = corpora.tokenizers(DATA / "tokenizers")
    tokenizer = known.get("gpt2") or known["bpe"]
    found = []
    for name in [name for name in ("instruct", "code") if name in arguments.corpora]:
        corpus = corpora.corpus(name, arguments.size, DATA / "corpora")
        folder = DATA / "runs" / "where"
        shutil.rmtree(folder, ignore_errors=True)
        ours.experiment(folder, corpora.files(corpus), tokenizer, [corpora.MAX_LENGTH[name]])
        plan = ours.ask(folder, "plan", "config.yaml")
        measure.run(ours.jobs(plan, "materialize-tokenizer"), folder, folder / "log")
        command = [sys.executable, str(Path(__file__).with_name("where.py"))]
        words = (plan["path"], plan["batches"][0], plan["folders"][0])
        job = json.loads(measure.output([*command, "job", *words[:2]], folder))
        alone = json.loads(measure.output([*command, "engine", *words], folder))
        found.append({"corpus": name, "tokenizer": tokenizer.name, "seconds": job | alone,
                      "bytes": plan["bytes_to_tokenize"]})  # fmt: skip
        shutil.rmtree(folder)
    return found


def taking_part(wanted: list[str] | None, tokenizer: Path) -> list[str]:
    """Dolma puts no special tokens around documents, so it is asked for BPE without them only."""
    content = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    template = (content["post_processor"] or {}).get("type") == "TemplateProcessing"
    no_dolma = peers.dolma_command() is None or template or not content["model"].get("merges")
    names = [name for name in peers.PEERS if name != "dolma" or not no_dolma]
    return [name for name in names if wanted is None or name in wanted]


def parts(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is found, as soon as it is."""
    size = arguments.size
    if "where" in arguments.parts:
        yield {"where": where_all(arguments)}
    if "scale" in arguments.parts:
        yield scale.all_of(size, arguments.rounds, DATA)
    if "compare" in arguments.parts:
        yield from compared(arguments, "compare", size, WORK, arguments.peers)
    if "tenfold" in arguments.parts:
        yield from compared(arguments, "tenfold", corpora.TENFOLD[size], MORE_WORK, MORE_PEERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", default="full", choices=[*corpora.SIZES][:3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--corpora", nargs="+", default=[*WORK], choices=[*WORK])
    parser.add_argument("--tokenizers", nargs="+", help="default: all that there are")
    parser.add_argument(
        "--enough", type=float, default=40, help="seconds after which one takes no more turns"
    )
    parser.add_argument("--peers", nargs="+", choices=[*peers.PEERS], help="default: all")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    arguments = parser.parse_args()
    os.environ.setdefault("DOLMA_BIN", str(measure.ROOT / ".venv-bench-dolma" / "bin"))
    results: dict[str, Any] = {"machine": measure.machine(), "rounds": arguments.rounds}
    for found in parts(arguments):
        # Kept at once, whatever becomes of the rest of an hour's work.
        results |= found
        (DATA / "results.json").write_text(json.dumps(results, indent=1))
        report.write(results, Path(__file__).parent)


if __name__ == "__main__":
    main()
