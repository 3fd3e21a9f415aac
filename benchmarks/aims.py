"""What this project aims at, and what of it was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tables import table

NEEDED = {"compare", "growth", "append", "graphs"}
OURS = "tokencache jobs"
USUAL = "datasets.map, all cores"
BYTE_LEVEL, SENTENCEPIECE = ("gpt2", "qwen2.5", "bpe"), ("mistral-v3-spm",)
HUGGING_FACE_ONLY = ("bert-base-uncased", "wordpiece")
RATIOS = [  # corpus, tokenizers, what these are called, how many times faster
    ("instruct", BYTE_LEVEL, "byte-level BPE", 25),
    ("code", BYTE_LEVEL, "byte-level BPE", 40),
    (None, SENTENCEPIECE, "SentencePiece-style BPE", 6),
    (None, HUGGING_FACE_ONLY, "only Hugging Face can run it", 1.3),
]
MB = 1e6


def table_of(results: dict[str, Any]) -> str:
    rows = [[work, aim, found, "yes" if met else "no"] for work, aim, found, met in _all(results)]
    head = ["work", "aim", "measured", "met"]
    return "## What it is to show\n\n" + table(head, rows)


Row = tuple[str, str, str, bool]


def _all(results: dict[str, Any]) -> Iterator[Row]:
    compared = [*results["compare"], *results.get("tenfold", [])]
    for corpus, tokenizers, kind, aim in RATIOS:
        for entry in compared:
            if entry["tokenizer"] in tokenizers and corpus in (None, entry["corpus"]["name"]):
                yield from _faster(entry, [USUAL], f" ({kind})", aim)
    for entry in compared:
        yield from _faster(entry, ["datatrove", "dolma"], "", 5)
    small, large = results["growth"]
    peaks = [entry["tokenize_peak_bytes"] / MB for entry in (small, large)]
    told = f"{peaks[0]:,.0f} MB, {peaks[1]:,.0f} MB"
    met = max(peaks) < 1500 and peaks[1] < 1.2 * peaks[0]
    yield "peak memory of tokenization, also of ten times the data", "< 1,500 MB", told, met
    first = [1000 * entry["first_batch_seconds"] for entry in (small, large)]
    told = f"{first[0]:.0f} ms, {first[1]:.0f} ms"
    yield "a warm cache to the first batch", "< 100 ms", told, max(first) < 100
    millions = f"another max_length over {large['tokens'] / 1e6:,.0f} million tokens"
    for what, key, aim in (("a dataset", "new_length_seconds", 10), ("a view", "view_seconds", 1)):
        yield f"{millions}, as {what}", f"< {aim} s", f"{large[key]:.2f} s", large[key] < aim
    again = results["append"]["tokenized_again"] / results["append"]["bytes"]
    yield "1 % of rows appended: bytes tokenized again", "< 3 %", f"{again:.1%}", again < 0.03
    graph = results["graphs"][-1]
    mine, *_, bare = graph["seconds"].values()
    work = f"`snakemake -n`, {graph['shards']:,} shards and {graph['caches']:,} caches"
    yield work, f"< {2 * bare + 1:.1f} s (2 × bare + 1 s)", f"{mine:.1f} s", mine < 2 * bare + 1


def _faster(entry: dict[str, Any], peers: list[str], kind: str, aim: float) -> Iterator[Row]:
    for peer in peers:
        if peer in entry["found"] and OURS in entry["found"]:
            ratio = entry["found"][peer]["seconds"] / entry["found"][OURS]["seconds"]
            size = f"{entry['corpus']['bytes'] / MB:,.0f} MB"
            work = f"{entry['corpus']['name']} ({size}), {entry['tokenizer']}{kind}, against {peer}"
            yield work, f"{aim} ×", f"{ratio:.1f} ×", ratio >= aim
