"""`tokencache export`: a cache in the format of another trainer."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ..base.json_files import read_json, write_json
from ..base.manifest import contents
from ..base.progress import Progress
from ..base.publish import published
from ..base.records import CACHE_FILE
from ..base.version import __version__
from ..caches.view import checked
from ..config.explain import unknown
from ..errors import UserError
from .exports import FORMATS, Format, Split, Writer, writer_of
from .lib.blocks import Block, blocks
from .lib.experiment import add_config_words, cache_of, config_of

MANIFEST = "export.json"


def add_words(parser: argparse.ArgumentParser) -> None:
    text = "MODEL DATASET MAX_LENGTH as in config.yaml, or the folder of a cache"
    parser.add_argument("cache", nargs="+", metavar="CACHE", help=text)
    known = "; ".join(f"{name}: {about.text}" for name, about in FORMATS.items())
    parser.add_argument("--to", nargs=2, metavar=("FORMAT", "FOLDER"), required=True, help=known)
    parser.add_argument("--split", help="one split alone, such as train; default: all")
    text = "go on where the format can't say which tokens are trained on"
    parser.add_argument("--without-mask", action="store_true", help=text)
    add_config_words(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the folder. Raises UserError for what can't be exported, and says why."""
    name, folder = arguments.to
    if name not in FORMATS:
        raise UserError(f"--to: {unknown(name, FORMATS, '', what='format')}")
    out = Path(folder)
    if out.exists():
        raise UserError(f"{out} is there already; remove it, or name another folder")
    cache = _folder(arguments)
    export(cache, name, out, arguments.split, arguments.without_mask)
    print(out)


def _folder(arguments: argparse.Namespace) -> Path:
    """The folder of the cache that is meant."""
    words = arguments.cache
    if len(words) == 1:
        return Path(words[0])
    if len(words) != 3 or not words[2].isdecimal():
        raise UserError(
            f"{' '.join(words)}: give MODEL DATASET MAX_LENGTH, or the folder of a cache"
        )
    return Path(cache_of(config_of(arguments), words[0], words[1], int(words[2]))[1])


def export(
    cache: Path, name: str, out: Path, only: str | None = None, without_mask: bool = False
) -> dict[str, Any]:
    """Publish a folder with the splits of a cache in a format; returns its export.json.

    only: one split alone. Raises UserError where the format has no room for what the cache
    holds (without_mask: its loss mask may be lost), and for a cache that is damaged.
    """
    found = checked(cache)
    about = read_json(cache / CACHE_FILE)
    if only is not None and only not in found:
        raise UserError(f"{cache}: {unknown(only, found, '', what='split')}")
    _check(cache, name, FORMATS[name], about, without_mask)
    tokenizer = cache.resolve().parents[2] / "tokenizers" / about["tokenizer"]["key"]
    splits = {split: _split(about, split, tokenizer) for split in found if only in (None, split)}
    ending = _Endings(tokenizer, about["tokenizer"]["eos_token"])
    with published(out, folder=True) as folder:
        checksums: dict[Path, str] = {}
        for split in splits.values():
            checksums |= _write(cache, name, split, about["splits"][split.name], folder, ending)
        made = _manifest(cache, name, about, splits, ending)
        made["files"] = contents(folder, checksums)
        write_json(folder / MANIFEST, made)
    ending.say(name)
    return made


def _split(about: dict[str, Any], name: str, tokenizer: Path) -> Split:
    return Split(
        name=name,
        key=about["key"],
        tokenizer=str(tokenizer),
        max_length=about["settings"]["max_length"],
        documents=about["splits"][name]["windows"],
        dtype=np.dtype(np.uint16 if about["tokenizer"]["vocab_size"] <= 2**16 else np.int32),
        masked=_masked(about),
        packed=about["settings"]["packing"] != "none",
    )


def _masked(about: dict[str, Any]) -> bool:
    return not _is_pairs(about) and about["recipe"]["loss"] != "all"


def _is_pairs(about: dict[str, Any]) -> bool:
    return "source" in about["recipe"]


def _check(
    cache: Path, name: str, format: Format, about: dict[str, Any], without_mask: bool
) -> None:
    if _is_pairs(about) and not format.pairs:
        raise UserError(
            f"{cache} holds sources and targets, for which {name} has no place; export it to "
            f"{' or '.join(n for n, f in FORMATS.items() if f.pairs)}"
        )
    if _masked(about) and not format.masks and not without_mask:
        others = ", ".join(n for n, f in FORMATS.items() if f.masks)
        raise UserError(
            f"{cache} has loss: {about['recipe']['loss']}, and {name} can't say which tokens are "
            f"trained on: a trainer would train on all. Take one of {others}, or say "
            "--without-mask if that is what you want"
        )


def _write(
    cache: Path, name: str, split: Split, counts: dict[str, Any], folder: Path, ending: _Endings
) -> dict[Path, str]:
    """Write one split; returns the checksums of its files."""
    writer: Writer = writer_of(name)(split, folder)
    rows = tokens = 0
    with (
        closing(writer),
        Progress(counts["tokens"], "tokens", f"export {split.name}") as progress,
    ):
        for block in blocks(cache, split.name):
            writer.write(block)
            ending.saw(block)
            rows, tokens = rows + len(block), tokens + block.tokens
            progress.update(block.tokens, rows=len(block))
    if (rows, tokens) != (counts["rows"], counts["tokens"]):
        raise UserError(
            f"{cache}: {split.name} holds {rows:,} rows and {tokens:,} tokens instead of "
            f"{counts['rows']:,} and {counts['tokens']:,}; delete it and make it again with "
            "snakemake"
        )
    return writer.checksums()


class _Endings:
    """Counts documents without the end-of-text token, by which some trainers tell them apart."""

    def __init__(self, tokenizer: Path, token: str | None) -> None:
        self.documents = self.without = 0
        self._token, self._id = token, None
        file = tokenizer / "tokenizer.json"
        if token is not None and file.exists():
            from tokenizers import Tokenizer

            self._id = Tokenizer.from_file(str(file)).token_to_id(token)

    def saw(self, block: Block) -> None:
        if self._id is not None:
            last = np.cumsum(block.documents()) - 1
            self.documents += len(last)
            self.without += int((block.ids[last] != self._id).sum())

    def counted(self) -> int | None:
        return None if self._id is None else self.without

    def say(self, name: str) -> None:
        if self.without and name in ("megatron", "numpy", "nanotron"):
            print(
                f"note: {self.without:,} of {self.documents:,} documents don't end in "
                f"{self._token}, by which a trainer may tell them apart; where it does, put "
                "{eos_token} at the end of the data set's template",
                file=sys.stderr,
            )


def _manifest(
    cache: Path, name: str, about: dict[str, Any], splits: dict[str, Split], ending: _Endings
) -> dict[str, Any]:
    names = ("key", "model", "dataset", "settings", "recipe", "versions")
    files = {split: [file["path"] for file in found] for split, found in about["sources"].items()}
    kinds = {name: str(split.dtype) for name, split in splits.items()}
    facts = about["tokenizer"]
    return {
        "format": name,
        "tokencache": __version__,
        "cache": {name: about[name] for name in names} | {"path": str(cache), "sources": files},
        "tokenizer": {key: facts[key] for key in ("key", "vocab_size", "bos_token", "eos_token")},
        "splits": {name: about["splits"][name] | {"ids": kinds[name]} for name in splits},
        "loss_mask": "kept" if FORMATS[name].masks and _masked(about) else
                     "lost" if _masked(about) else "none",
        "documents_without_eos_token": ending.counted(),
    }  # fmt: skip
