"""Caches made in this process, to be compared with what `verify --deep` says they should be."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from conftest import make_tokenizer

from helpers.workflow import write_rows
from tokencache import cli
from tokencache.config.load import load
from tokencache.errors import UserError
from tokencache.plan.resolve import resolve
from tokencache.workflow import stages


class Made:
    """Caches of some data sets, made in this process."""

    def __init__(
        self, folder: Path, rows: Iterable[dict[str, Any]], datasets: dict[str, Any],
        max_length: int, format: str = "dataset",
    ) -> None:  # fmt: skip
        self.folder, self._length = folder, max_length
        make_tokenizer("bos_eos", folder / "tokenizer")
        write_rows(folder / "data.jsonl", rows)
        shared = {"files": "data.jsonl", "validation": {"fraction": 0.2}}
        config = {
            "shard_size": 8192,
            "models": {"one": {"tokenizer": "tokenizer"}},
            "datasets": {name: shared | about for name, about in datasets.items()},
            "max_length": [max_length],
            "format": format,
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()):
            plan = resolve(load(config))
            for target in plan.tokenizers:
                stages.materialize_tokenizer(plan, target)
            for batch in plan.batches:
                stages.tokenize_batch(plan, batch)
            for cache in plan.caches:
                try:
                    stages.pack_cache(plan, cache)
                except UserError as error:  # all documents are too long, or nothing is trained on
                    assert re.search("no document is left|leaves no token", str(error)), error

    def verify(self, *caches: str) -> tuple[int, dict[str, Any]]:
        out = io.StringIO()
        quiet = contextlib.redirect_stderr(io.StringIO())
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), quiet:
            status = cli.main(["verify", *caches, "--json", "--deep", "100000"])
        return status, json.loads(out.getvalue())

    def caches(self) -> list[Path]:
        return sorted(self.folder.glob(f"cache/one/*/{self._length}-*"))
