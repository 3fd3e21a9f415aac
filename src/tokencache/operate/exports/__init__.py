"""Caches in the formats of others: one module a kind of format.

Each has writers: `Writer(split, out)` is given the blocks of a split one after the other and
closed, and is asked for the checksums of its files. FORMATS says which there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..lib.blocks import Block


@dataclass(frozen=True)
class Format:
    """module.writer: what writes it; masks: whether it says which tokens are trained on;
    pairs: whether it has room for sources and targets; text: what it is, for people."""

    module: str
    writer: str
    text: str
    masks: bool = True
    pairs: bool = False


FORMATS = {
    "megatron": Format(
        "megatron", "Megatron", "Megatron-Core's .bin and .idx, a sequence a document", masks=False
    ),
    "numpy": Format("flat", "Numpy", "OLMo's and Dolma's flat .npy, with .csv.gz of documents"),
    "nanotron": Format(
        "flat", "Nanotron", "datatrove's .ds and .ds.index, as nanotron reads them", masks=False
    ),
    "parquet": Format("rows", "Parquet", "Parquet files with the columns of the cache", pairs=True),
    "axolotl": Format("rows", "Axolotl", "a data set for axolotl, a row a document"),
    "llamafactory": Format("rows", "LlamaFactory", "a data set for LLaMA-Factory's tokenized_path"),
}


@dataclass(frozen=True)
class Split:
    """A split of a cache that is exported, and what its cache.json says of it.

    documents: how many, or windows of such; dtype: of the ids, uint16 or int32; masked:
    whether some tokens are left out of the loss by the data set's own mask; packed: whether
    rows have several documents.
    """

    name: str
    key: str
    tokenizer: str
    max_length: int
    documents: int
    dtype: np.dtype
    masked: bool
    packed: bool

    @property
    def types(self) -> dict[str, np.dtype]:
        """The columns of the cache with the types of their values."""
        whole = np.dtype(np.int32)
        found = {"input_ids": self.dtype, "labels": self.dtype}
        if self.packed:
            found |= dict.fromkeys(("labels", "position_ids", "seq_lengths"), whole)
        return found | ({"labels": whole} if self.masked else {})


class Writer(Protocol):
    """What writes one split into the folder of an export, and hashes what it writes."""

    def __init__(self, split: Split, out: Path) -> None: ...

    def write(self, block: Block) -> None: ...

    def close(self) -> None: ...

    def checksums(self) -> dict[Path, str]: ...


def writer_of(name: str) -> Any:
    """The class of writers of a format."""
    return getattr(import_module(f".{FORMATS[name].module}", __package__), FORMATS[name].writer)
