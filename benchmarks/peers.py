"""One run of one peer, as a process of its own, and the ids that it left on disk.

python benchmarks/peers.py make PEER CORPUS TOKENIZER MAX_LENGTH OUT
python benchmarks/peers.py ids PEER CORPUS TOKENIZER MAX_LENGTH OUT

Every peer reads the corpus's files and leaves all ids below OUT. `ids` prints a hash over
the ids of all documents in order, each cut to MAX_LENGTH.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import corpora

CORES = os.cpu_count() or 1


# Each imports what it needs, so that none waits for another one's libraries.


def datasets_map(files: list[str], tokenizer: Path, max_length: int, out: Path, processes) -> None:
    """`datasets.map` in batches as its documentation shows it, and save_to_disk."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)

    def encode(batch):
        ids = loaded(batch["text"], truncation=True, max_length=max_length)["input_ids"]
        return {"input_ids": ids}

    rows = load_dataset("json", data_files=files, split="train", cache_dir=str(out / "temporary"))
    found = rows.map(encode, batched=True, remove_columns=rows.column_names, num_proc=processes)
    found.save_to_disk(str(out / "saved"), num_proc=processes)


def datasets_one(*given) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    datasets_map(*given, None)


def datasets_processes(*given) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    datasets_map(*given, CORES)


def datasets_threads(*given) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    datasets_map(*given, None)


def encode_batch(files: list[str], tokenizer: Path, max_length: int, out: Path) -> None:
    """The straightforward loop: the `tokenizers` library on all cores, ids to .npy."""
    import numpy as np
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    loaded.enable_truncation(max_length)
    dtype = np.uint16 if loaded.get_vocab_size() <= 2**16 else np.int32
    ids, lengths = [], []
    for file in files:
        with open(file, encoding="utf-8") as stream:
            while batch := [json.loads(line)["text"] for _, line in zip(range(1000), stream)]:  # noqa: B905
                for encoding in loaded.encode_batch(batch):
                    ids.append(np.array(encoding.ids, dtype))
                    lengths.append(len(encoding.ids))
    np.save(out / "ids.npy", np.concatenate(ids))
    np.save(out / "lengths.npy", np.array(lengths, np.int64))


def datatrove(files: list[str], tokenizer: Path, max_length: int, out: Path) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it works with processes
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    steps = [
        JsonlReader(str(Path(files[0]).parent), glob_pattern="*.jsonl"),
        DocumentTokenizer(
            str(out / "tokens"), str(tokenizer / "tokenizer.json"), shuffle_documents=False
        ),
    ]
    LocalPipelineExecutor(
        steps, tasks=len(files), workers=CORES, logging_dir=str(out / "logs")
    ).run()


def dolma(files: list[str], tokenizer: Path, max_length: int, out: Path) -> None:
    """In an environment of its own, with an older `tokenizers` library."""
    content = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    merges = content["model"].get("merges", [])
    if merges and isinstance(merges[0], list):  # it knows the older form only
        content["model"]["merges"] = [" ".join(pair) for pair in merges]
    (out / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    size = len(content["model"]["vocab"]) + len(content["added_tokens"])
    command = [
        dolma_command(), "tokens", "--documents", *files, "--destination", str(out / "tokens"),
        "--tokenizer.name_or_path", str(out / "tokenizer.json"), "--tokenizer.eos_token_id", "0",
        "--processes", str(CORES), "--dtype", "uint16" if size <= 2**16 else "uint32",
    ]  # fmt: skip
    subprocess.run(command, check=True)


def dolma_command() -> str | None:
    return shutil.which("dolma", path=os.environ.get("DOLMA_BIN", ".venv-bench-dolma/bin"))


PEERS = {
    "datasets.map, 1 process": datasets_one,
    "datasets.map, all cores": datasets_processes,
    "datasets.map, threads": datasets_threads,
    "encode_batch loop": encode_batch,
    "datatrove": datatrove,
    "dolma": dolma,
}


def ids(peer: str, files: list[str], tokenizer: Path, out: Path):
    """All ids (tokens,) and the documents' lengths (documents,), in the corpus's order."""
    import numpy as np

    if peer == "encode_batch loop":
        return np.load(out / "ids.npy"), np.load(out / "lengths.npy")
    if peer == "datatrove":
        parts = sorted((out / "tokens").glob("*.ds"))
        ends = [np.fromfile(f"{part}.index", np.uint64).astype(np.int64) for part in parts]
        # A vocabulary is at most 2^16 where two bytes a token make the files' sizes.
        found = [np.fromfile(p, np.uint8) for p in parts]
        dtype = np.uint16 if len(found[0]) == 2 * ends[0][-1] else np.uint32
        return np.concatenate([f.view(dtype) for f in found]), np.concatenate(
            [np.diff(end, prepend=0) for end in ends]
        )
    if peer == "dolma":
        return _dolma_ids(files, out)
    from datasets import load_from_disk

    if peer in PEERS:
        table = load_from_disk(str(out / "saved")).data.table["input_ids"]
    else:
        cache = next((out / "cache" / "model").glob("*/*/cache.json")).parent
        table = load_from_disk(str(cache))["train"].data.table["input_ids"]
    parts = [chunk.flatten().to_numpy() for chunk in table.chunks]
    lengths = [chunk.value_lengths().to_numpy().astype(np.int64) for chunk in table.chunks]
    return np.concatenate(parts), np.concatenate(lengths)


def _dolma_ids(files: list[str], out: Path):
    """Dolma shuffles documents and ends each with a token; its tables say which is where."""
    import numpy as np

    rows = []
    for table in sorted((out / "tokens").glob("*.csv.gz")):
        tokens = table.with_name(table.name.replace(".csv.gz", ".npy"))
        dtype = np.dtype("uint16")
        with gzip.open(table, "rt", newline="") as stream:
            found = list(csv.reader(stream))
        if tokens.stat().st_size == 4 * max(int(row[1]) for row in found):
            dtype = np.dtype("uint32")
        content = np.fromfile(tokens, dtype)
        for start, stop, _, source, place in found:
            rows.append((source, int(place), content[int(start) : int(stop) - 1]))
    rows.sort(key=lambda row: row[:2])
    kept = [row[2] for row in rows]
    return np.concatenate(kept), np.array([len(row) for row in kept], np.int64)


def digest(found, lengths, max_length: int, suffix: list[int]) -> str:
    """BLAKE3 of lengths and ids as they are when each document is cut to max_length."""
    import numpy as np
    from blake3 import blake3

    found = found.astype(np.uint32)
    kept = np.minimum(lengths, max_length)
    ends = np.cumsum(lengths)
    inside = np.arange(len(found)) - np.repeat(ends - lengths, lengths)
    cut = found[inside < np.repeat(kept, lengths)]
    stops = np.cumsum(kept)
    for number, special in enumerate(reversed(suffix), start=1):  # as truncation keeps them
        cut[stops[lengths > max_length] - number] = special
    return blake3(kept.tobytes() + cut.tobytes()).hexdigest()[:32]


def suffix_of(tokenizer: Path) -> list[int]:
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    plain = loaded.encode("a", add_special_tokens=False).ids
    whole = loaded.encode("a").ids
    return whole[whole.index(plain[-1]) + 1 :] if plain else []


def main() -> None:
    action, peer, corpus, tokenizer, max_length, out = sys.argv[1:]
    given = (corpora.files(Path(corpus)), Path(tokenizer))
    if action == "make":
        PEERS[peer](*given, int(max_length), Path(out))
        return
    found, lengths = ids(peer, *given, Path(out))
    told = digest(found, lengths, int(max_length), suffix_of(Path(tokenizer)))
    print(json.dumps({"ids": told, "tokens": int(lengths.clip(max=int(max_length)).sum())}))


if __name__ == "__main__":
    main()
