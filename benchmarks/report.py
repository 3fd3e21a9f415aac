"""From what was measured to RESULTS.md and results.svg."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aims
import sections
from tables import table

OURS = ("tokencache jobs", "tokencache workflow")
MB = 1e6


def write(results: dict[str, Any], folder: Path) -> None:
    sections.write(folder / "RESULTS.md", sections.FIRST, markdown(results))
    if results.get("compare"):
        plot(results, folder / "results.svg")


def markdown(results: dict[str, Any]) -> str:
    parts = [_head(results["machine"], results["rounds"])]
    parts += [aims.table_of(results)] if results.keys() >= aims.NEEDED else []
    for part in ("compare", "tenfold"):
        parts += [_comparison(entry) for entry in results.get(part, [])]
    if "where" in results:
        parts.append(_where(results["where"]))
    if "growth" in results:
        parts.append(_growth(results["growth"], results["append"]))
    if "graphs" in results:
        parts.append(_graphs(results["graphs"]))
    return "\n\n".join(parts) + "\n"


def _head(machine: dict[str, Any], rounds: int) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    busy = ""
    if machine["busy"] > 0.1:
        busy = f"\n\n**Preliminary:** others used {machine['busy']:.0%} of the cores at the start."
    return f"""# Measured side by side

Made by `{machine["command"].strip()}` on {machine["date"]}, commit {machine["commit"]}: \
{machine["processor"]}, {machine["cores"]} cores, {machine["memory_gb"]} GB, {machine["system"]}, \
Python {machine["python"]}; {versions}.{busy}

Each figure is the median of up to {rounds} rounds in which all took their turns (who had taken \
long took no more of them), of whole processes from their start to their end: from JSON Lines to \
a result on disk. Nothing is listed that does not give the same ids for every document, cut to \
max_length. Memory is the peak of all processes together. "tokencache jobs" are `tokencache \
tokenize` and `tokencache pack` with checksums and fsync, by a plan that is there; "tokencache \
workflow" is all of `snakemake caches`, with Snakemake's own start, hashing and the plan. Its \
caches hold labels too, and no peer's do."""


def _comparison(entry: dict[str, Any]) -> str:
    corpus, found = entry["corpus"], entry["found"]
    base = found.get(OURS[0], {}).get("seconds")
    rows = []
    for name, took in found.items():
        ratio = f"{took['seconds'] / base:.1f}" if base else ""
        rows.append([
            name, str(len(took["all_seconds"])), f"{took['seconds']:.2f}",
            f"{took['cpu_seconds']:.2f}", ratio,
            f"{corpus['bytes'] / MB / took['seconds']:.1f}",
            f"{took['peak_bytes'] / MB:,.0f}", f"{took['bytes'] / MB:,.1f}",
        ])  # fmt: skip
    head = ["", "runs", "seconds", "CPU seconds", "times tokencache jobs", "MB of text a second",
            "peak MB", "MB on disk"]  # fmt: skip
    said = [
        f"## {corpus['name']}, {entry['tokenizer']}",
        f"{corpus['documents']:,} documents, {corpus['bytes'] / MB:,.1f} MB, made from "
        f"{corpus['made_from']}; {entry['tokens']:,} tokens at max_length {entry['max_length']:,}.",
        table(head, rows),
    ]
    if entry["left_out"]:
        left = (f"- {name}: {why.splitlines()[-1]}" for name, why in entry["left_out"].items())
        said.append("Left out:\n\n" + "\n".join(left))
    return "\n\n".join(said)


def _where(entries: list[dict[str, Any]]) -> str:
    steps = list(entries[0]["seconds"])
    rows = [[step, *(f"{entry['seconds'][step]:.2f}" for entry in entries)] for step in steps]
    head = [""] + [f"{e['corpus']} ({e['bytes'] / MB:,.0f} MB), {e['tokenizer']}" for e in entries]
    said = (
        "One job, in seconds. Reading goes on in a thread beside the other steps, so only waiting "
        "for it shows. The last line is no part of the job: the engine alone, on texts in memory, "
        "in a process of its own, its first time over them."
    )
    return "\n\n".join(["## Where the time of `tokencache tokenize` goes", said, table(head, rows)])


def _growth(entries: list[dict[str, Any]], append: dict[str, Any]) -> str:
    rows = [
        ["tokens"] + [f"{e['tokens'] / 1e6:,.1f} million" for e in entries],
        ["JSON Lines to cache, s"] + [f"{e['seconds']:.2f}" for e in entries],
        ["peak memory of tokenization, MB"]
        + [f"{e['tokenize_peak_bytes'] / MB:,.0f}" for e in entries],
        ["peak memory of packing, MB"]
        + [f"{e['pack_peak_bytes'] / MB:,.0f}" for e in entries],
        ["warm cache to first batch, imports aside, ms"]
        + [f"{1000 * e['first_batch_seconds']:.1f}" for e in entries],
        ["first plan (hashing, the tokenizer's facts), s"]
        + [f"{e['plan_seconds']:.2f}" for e in entries],
        ["cutting and hashing, MB a second"]
        + [f"{e['hash_bytes_per_second'] / MB:,.0f}" for e in entries],
        ["second plan, nothing changed, s"]
        + [f"{e['second_plan_seconds']:.2f}" for e in entries],
        ["another max_length, s"] + [f"{e['new_length_seconds']:.2f}" for e in entries],
        ["the same as a view, s"] + [f"{e['view_seconds']:.2f}" for e in entries],
        ["its bytes tokenized again"] + [f"{e['new_length_bytes_tokenized']}" for e in entries],
    ]  # fmt: skip
    head = [""] + [f"{e['corpus']['bytes'] / MB:,.1f} MB of instruct" for e in entries]
    again = append["tokenized_again"] / append["bytes"]
    return "\n\n".join(
        [
            "## With the size of the data",
            table(head, rows),
            f"1 % more rows ({append['appended'] / MB:.2f} MB after {append['bytes'] / MB:.1f} MB, "
            f"shards of {append['shard_size'] / 1000:,.0f} kB): {again:.1%} of the bytes are "
            "tokenized again.",
        ]
    )


def _graphs(entries: list[dict[str, Any]]) -> str:
    rows = []
    for entry in entries:
        mine, *bare = entry["seconds"].values()
        limit = f"{(mine - 1) / bare[-1]:.2f}"
        numbers = [f"{seconds:.2f}" for seconds in (mine, *bare)]
        rows.append([f"{entry['shards']:,} shards, {entry['caches']:,} caches", *numbers, limit])
    head = ["", "`snakemake -n`, s", "bare, a job a cache, s", "bare, a job a shard and cache, s",
            "(ours - 1 s) : bare"]  # fmt: skip
    return "\n\n".join(["## Dry run, nothing stale", table(head, rows)])


def plot(results: dict[str, Any], path: Path) -> None:
    """A panel for each corpus and tokenizer: seconds, from the fastest down."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tokencache"
    import matplotlib.pyplot as plt

    entries = results["compare"]
    columns = min(2, len(entries))
    lines = -(-len(entries) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(6 * columns, 2.6 * lines), squeeze=False)
    for axis, entry in zip(axes.flat, entries, strict=False):
        found = sorted(entry["found"].items(), key=lambda item: -item[1]["seconds"])
        names = [name for name, _ in found]
        seconds = [took["seconds"] for _, took in found]
        colours = ["#1b6ca8" if name in OURS else "#b8b8b8" for name in names]
        bars = axis.barh(names, seconds, color=colours)
        axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        axis.margins(x=0.15)
        axis.tick_params(labelsize=8)
        corpus = entry["corpus"]
        axis.set_title(
            f"{corpus['name']} ({corpus['bytes'] / MB:.0f} MB), {entry['tokenizer']}", fontsize=9
        )
        axis.set_xlabel("seconds, whole process", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(entries) :]:
        axis.set_visible(False)
    machine = results["machine"]
    figure.suptitle(
        f"JSON Lines to finished ids on disk: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['date']}, commit {machine['commit']}",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
