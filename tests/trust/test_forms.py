"""Caches of every form and setting through `verify --deep`, and with one wrong value in them."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.compared import Made
from helpers.experiment import BARE, CHATML, UNMARKED
from helpers.workflow import rows

from tokencache.base.hashing import hash_file, key_of
from tokencache.base.json_files import read_json

# Words that are also in the marks, blanks at both ends, and missing answers.
ODD = ("d", "i", "im_end", " x ", "\n", "", "<|im_end|>", "assistant", "a\n\nb")
LENGTH = 100  # some documents are longer, and some chats


def answers(count: int):
    for number, row in enumerate(rows(count, seed=900)):
        asked, answer = ODD[number % len(ODD)] or "?", ODD[number // 3 % len(ODD)]
        if number % 13 == 5:  # a row that holds nothing
            yield {"messages": [], "asked": [], "answered": [], "prompt": ""}
        talk = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": row["prompt"][: number % 60]},
            {"role": "assistant", "content": row["completion"][:70] if number % 2 else answer},
        ]
        yield row | {
            "messages": talk,
            "asked": talk[:3],
            "answered": talk[3:],
            "instruction": asked,
            "input": ["", None, "more"][number % 3],
            "output": answer or row["completion"],
            "system": [None, "Be brief.", ""][number % 3],
        }


def documents() -> dict[str, dict[str, Any]]:
    """By name, all that decides the documents of a data set."""
    found: dict[str, dict[str, Any]] = {
        "text": {"document": {"text": "prompt"}},
        "template": {"document": {"text": "Q {prompt}\nA {completion}{eos_token}"}},
        "instruction": {"document": {k: k for k in ("instruction", "input", "output")}},
        "pairs": {"document": {"source": "prompt", "target": "completion"}},
    }
    both = {"prompt": "{prompt} ", "completion": "{completion}{eos_token}"}
    for loss, eos in (("all", True), ("completion", True), ("completion", False)):
        found[f"both-{loss}-{eos}"] = {"document": both, "loss": loss, "train_on_eos": eos}
    found["asked"] = found["instruction"] | {"loss": "completion"}
    chats = {
        "talk": {"messages": "messages"},
        "columns": {"messages": ["asked", "answered"]},
        "style": {"style": "chat", **found["instruction"]["document"]},
        "system": {"messages": "messages", "system": "system"},
    }
    templates = {"marked": CHATML, "bare": BARE, "prompted": UNMARKED}
    losses = (
        {"loss": "all"},
        {"loss": "assistant"},
        {"loss": "assistant", "train_on_eos": False},
        {"loss": "assistant", "roles_to_train": ["user"]},
        {"loss": "assistant", "roles_to_train": ["user", "assistant"]},
        {"loss": "completion"},
        {"loss": "completion", "train_on_eos": False},
    )
    for (chat, columns), (name, template) in product(chats.items(), templates.items()):
        for number, loss in enumerate(losses):
            if loss["loss"] != "completion" or chat in ("columns", "style"):
                found[f"{chat}-{name}-{number}"] = {
                    "document": columns | {"chat_template": template},
                    **loss,
                }
    return found


SHAPES = [
    {"overflow": overflow, "packing": packing}
    for overflow, packing in product(("truncate", "split", "drop"), ("none", "best_fit"))
]


def shaped(net, few: int, many: int) -> dict[str, dict[str, Any]]:
    """Data sets of the forms in the shapes that they can have."""
    found = {}
    for name, about in documents().items():
        for number, shape in enumerate(SHAPES):
            if name != "pairs" or (shape["packing"] == "none" and shape["overflow"] != "split"):
                found[f"{name}-{number}"] = about | shape
    names = net.some(list(found), few, many)
    return {name: found[name] for name in names}


@pytest.mark.parametrize("format", ["dataset", "view"])
def test_forms_verified(net, format, tmp_path):
    made = Made(tmp_path / "w", answers(60), shaped(net, 12, 250), LENGTH, format)
    status, said = made.verify()
    for one in said["compared"]:
        told = not one["not_compared"] or "style" not in one["cache"]
        net.check(
            one["same"] + sum(one["not_compared"].values()) == one["rows"] > 0 and told,
            f"{one['cache']}: {json.dumps(one)[:1500]}",
        )
    net.check(status == 0, f"status {status}")
    compared = sum(one["same"] for one in said["compared"])
    rows = sum(one["rows"] for one in said["compared"])
    net.check(compared > 0.9 * rows, f"only {compared} of {rows} were compared")


def test_planted_values(net, tmp_path):
    """One id, label or position of one row is another, and all checksums fit: it is found."""
    made = Made(tmp_path / "w", answers(60), shaped(net, 4, 60), LENGTH)
    for cache in made.caches():
        column = plant(net, cache)
        status, said = made.verify(str(cache.relative_to(made.folder)))
        told = {found["path"] for found in said["damaged"]}
        right = status == 1 and told == {str(cache.relative_to(made.folder))}
        net.check(right, f"{cache}: {column}, and {sorted(told)} was told")
        plant(net, cache, back=True)
    assert made.verify()[0] == 0


def plant(net, cache: Path, back: bool = False) -> str:
    """Change one value of a cache, with checksums that fit."""
    file = next(cache.glob("train/data-*.arrow"))
    kept = cache.with_suffix(".kept")
    if back:
        file.write_bytes(kept.read_bytes())
        kept.unlink()
    else:
        kept.write_bytes(file.read_bytes())
        with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as reader:
            batches, schema = list(reader), reader.schema
        batch = net.draw.choice(batches)
        column = net.draw.choice([c for c in batch.schema.names])
        values = np.array(batch[column].values)
        place = net.draw.randrange(int(batch[column].offsets[0].as_py()), len(values))
        values[place] = values[place] + 1 if values[place] < 9 else values[place] - 1
        changed = pa.ListArray.from_arrays(
            batch[column].offsets, pa.array(values, batch[column].type.value_type)
        ).cast(batch[column].type)
        number = batch.schema.get_field_index(column)
        columns = [changed if n == number else c for n, c in enumerate(batch.columns)]
        batches[batches.index(batch)] = pa.record_batch(columns, schema=batch.schema)
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for one in batches:
                writer.write_batch(one)
    about = read_json(cache / "cache.json")
    name = str(file.relative_to(cache))
    about["files"][name] = about["files"][name] | {
        "bytes": file.stat().st_size,
        "blake3": hash_file(file),
    }
    rest = {key: value for key, value in about.items() if key != "checksum"}
    (cache / "cache.json").write_text(json.dumps(rest | {"checksum": key_of(rest)}))
    return "" if back else column
