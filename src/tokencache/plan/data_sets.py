"""The data sets of a configuration: their files, cut into shards, and how a row is a document."""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import cached_property
from typing import Any

from ..base.hashing import key_of
from ..config.references import Reference, reference
from ..config.schema import Config, Dataset
from ..documents import columns as recognize
from ..errors import UserError, listed, shown
from ..sources import hub_files, read
from ..sources import identity as fingerprint
from ..sources.find import check_once, find, is_in
from ..sources.identity import Shard
from ..sources.index import Index
from .plan import fetched_path, own_folders


class DataSets:
    """What a plan says of data sets: each is looked into when it is first asked for.

    shards: by name, where one lies and how it is read. sources: of each data set's splits
    the files with the names of their shards, in order. columns: of each file of a split.
    fetches: what comes from a hub, by the folder that it is put into.
    """

    def __init__(self, config: Config, index: Index) -> None:
        self.config = config
        self.index = index
        self.shards: dict[str, dict[str, Any]] = {}
        self.sources: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.columns: dict[tuple[str, str], dict[str, list[str]]] = {}
        self.fetches: dict[str, dict[str, Any]] = {}
        self._shards_of: dict[str, dict[str, list[str]]] = {}
        self._datasets: dict[str, Dataset] = {}
        self._first_source: dict[str, read.Source] = {}
        self._identities: dict[Reference, list[Any]] = {}

    def shards_of(self, name: str) -> dict[str, list[str]]:
        """Names of the shards of a data set's splits (train, validation), in order."""
        if name not in self._shards_of:
            dataset = self.config.datasets[name]
            found = self._hub_files if dataset.hub else self._files
            self.sources[name] = found(name, dataset)
            self._shards_of[name] = {
                split: [shard for file in files for shard in file["shards"]]
                for split, files in self.sources[name].items()
            }
        return self._shards_of[name]

    def dataset(self, name: str) -> Dataset:
        """A data set's section; its `document` by its columns, where nothing says it."""
        if name not in self._datasets:
            found = self.config.datasets[name]
            if found.is_to_be_recognized:
                self.shards_of(name)
                files = self.columns[name, "train"].values()
                there = list(dict.fromkeys(column for columns in files for column in columns))
                found = recognize.recognized(name, found, there, self._first_source[name])
            self._datasets[name] = found
        return self._datasets[name]

    def check_columns(self, name: str, wanted: list[str]) -> None:
        """Raises UserError where a data set's file has rows and lacks a column."""
        for split in ("train", "validation"):
            for path, there in self.columns.get((name, split), {}).items():
                for column in wanted:
                    if there and column not in there:
                        raise UserError(
                            f"datasets.{name}.document: there is no column {shown(column)!r} in "
                            f"{path}; there are: {listed(there)}"
                        )

    def _files(self, name: str, dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
        """The files of each split with the names of their shards, in order."""
        splits = {"train": (f"datasets.{name}.files", dataset.files)}
        if dataset.validation and dataset.validation.files:
            key = f"datasets.{name}.validation.files"
            splits["validation"] = (key, dataset.validation.files)
        how = dataset.format, dataset.sample_by
        own = own_folders(self.config.cache, self.config.results)
        groups_of = {
            split: find(patterns, key, *how, split, own)
            for split, (key, patterns) in splits.items()
        }
        check_once({splits[split][0]: groups for split, groups in groups_of.items()})
        found = {}
        for split, groups in groups_of.items():
            key = splits[split][0]
            flat = [source for group in groups for source in group]
            cuts, columns = fingerprint.shards(flat, self.config.shard_size, self.index, name)
            if not any(cuts):
                raise UserError(f"{key}: the data set is empty: {_names(flat)} hold no data")
            paths = [source.path for source in flat]
            self.columns[name, split] = dict(zip(paths, columns, strict=True))
            self._first_source.setdefault(name, flat[0])
            by_source = dict(zip(flat, cuts, strict=True))
            found[split] = []
            for group in groups:
                # What a glob or a folder finds is ordered by content: a rename changes nothing.
                for source in sorted(group, key=lambda s: [cut.key for cut in by_source[s]]):
                    shards = [self._shard(shard) for shard in by_source[source]]
                    found[split].append({"path": source.path, "shards": shards})
        return found

    def _shard(self, shard: Shard) -> str:
        source = shard.piece.source
        name = key_of([shard.key, source.format, source.compression, source.sampling])
        # Of files that share a piece, one is read; `sources` says where it lies in each.
        if name not in self.shards:
            self.shards[name] = asdict(source) | {
                "key": shard.key,
                "start": shard.piece.start,
                "stop": shard.piece.stop,
                "bytes": shard.bytes,
            }
        return name

    def _hub_files(self, name: str, dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
        where = f"datasets.{name}.hub"
        wanted = reference(dataset.hub, where)
        if wanted.path and not os.path.isdir(wanted.path):
            raise UserError(f"{where}: {wanted.path} is not a folder; correct the path")
        if wanted.path:
            self._check_outside(wanted.path, where)
        splits = {"train": dataset.split}
        if dataset.validation and dataset.validation.split:
            splits["validation"] = dataset.validation.split
        found = {}
        for split, hub_split in splits.items():
            identity, reading = self._identity(wanted), self._reading
            made_of = ["hub", identity, reading, dataset.name, hub_split, dataset.num_shards]
            key = key_of(made_of)
            folder = fetched_path(self.config.cache, key)
            self.fetches[folder] = {
                "key": key,
                "dataset": name,
                "reference": wanted.model_dump(),
                "identity": identity,
                "reading": reading,
                "name": dataset.name,
                "split": hub_split,
                "num_shards": dataset.num_shards,
            }
            found[split] = []
            for number in range(dataset.num_shards):
                shard = key_of([key, number])
                self.shards[shard] = {
                    "key": shard,
                    "path": f"{folder}/{number:05d}.arrow",
                    "fetched": folder,
                    "format": "arrow",
                    "compression": None,
                    "sample_by": "line",
                    "bytes": None,  # not known before it is fetched
                }
                found[split].append({"path": self.shards[shard]["path"], "shards": [shard]})
        return found

    def _check_outside(self, folder: str, where: str) -> None:
        """Raises UserError where this workflow writes into a folder that `datasets` reads."""
        for own in own_folders(self.config.cache, self.config.results):
            if is_in(own, folder) and not os.path.basename(own).startswith("."):
                raise UserError(
                    f"{where}: this workflow writes to {own}, which is in {folder}, and `datasets` "
                    "would read that, too; set cache: and results: elsewhere, or keep the data "
                    "in a folder of their own"
                )

    def _identity(self, wanted: Reference) -> list[Any]:
        if wanted not in self._identities:
            self._identities[wanted] = hub_files.identity(
                wanted, lambda files: fingerprint.file_digests(files, self.index)
            )
        return self._identities[wanted]

    @cached_property
    def _reading(self) -> str:
        """See hub_data.reading: found once for each version of what reads."""
        files, versions = hub_files.decided_by()
        return self.index.recall(files, ["reading", versions], hub_files.reading)


def _names(found: list[read.Source]) -> str:
    return ", ".join(source.path for source in found[:3]) + (", …" if len(found) > 3 else "")
