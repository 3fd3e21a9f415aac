"""A file of every kind flipped, cut, emptied or gone: a right result, or one clear message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from .scenes import PLAN, Job
from .trials import Ended, Trials, copied, difference, half_published, tree

READ = "trust.actions:read"
ROWS = "rows.json"
# What only looks, and should do so whatever is damaged.
VERBS = (
    ("list",),
    ("stats",),
    ("gc",),
    ("why",),
    ("status",),
    ("summary",),
    ("trace", "cache/given/qa"),
    ("verify",),
)


def flip(data: bytes, draw: Random) -> bytes:
    if not data:
        return data
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def cut(data: bytes, draw: Random) -> bytes:
    return data[: draw.randrange(1, max(2, len(data)))]


def emptied(data: bytes, draw: Random) -> bytes:
    return b""


def zeroed(data: bytes, draw: Random) -> bytes:
    """As some file systems leave what was written shortly before the power went."""
    return bytes(len(data))


CHANGES = (flip, cut, emptied, zeroed, None)


@dataclass(frozen=True)
class Kind:
    """Files of a kind, and what is done once more with one of them damaged.

    job: the name of the job that reads them, whose results are removed first.
    """

    pattern: str
    job: str = ""
    read: bool = False


KINDS = (
    Kind("cache/tokens/*/*/*.arrow", job="pack"),
    Kind("cache/tokens/*/*/*.json", job="pack"),
    Kind("cache/tokens/*/*/*.arrow", job="pack of a view", read=True),
    Kind("cache/tokenizers/*/tokenizer.json", job="tokenize"),
    Kind("cache/tokenizers/*/*.json", job="tokenize"),
    Kind("cache/sources/*/*.arrow", job="tokenize"),
    Kind("cache/sources/*/*.json", job="tokenize"),
    Kind("cache/given/qa/*/cache.json", read=True),
    Kind("cache/given/qa/*/*.json", read=True),
    Kind("cache/given/qa/*/*/*", read=True),
    Kind("cache/given/qa/*/*", job="train"),
    Kind("results/given/qa/*/*"),
    Kind(".tokencache/plans/*.json", job="pack"),
    Kind(".tokencache/plans/*.json", job="tokenize"),
    Kind(".tokencache/index.sqlite"),
    Kind("data.jsonl", job="tokenize"),
    Kind("tokenizer/tokenizer.json", job="materialize-tokenizer"),
    Kind("config.yaml"),
)


@pytest.fixture(scope="module")
def rows_of(trials: Trials, jobs: list[Job]) -> Callable[[Job], str]:
    """The rows of the caches that a script reads after a job."""
    found: dict[str, str] = {}

    def rows(job: Job) -> str:
        if job.name not in found:
            with copied(job.after) as folder:
                ended = trials.run(folder, READ, "given", "qa", 32, ROWS)
                assert ended.fine, ended
                found[job.name] = (folder / ROWS).read_text()
        return found[job.name]

    return rows


def sound(ended: Ended) -> bool:
    """Whether a command ended as it should: with no crash, no traceback, and in time."""
    return ended.status in (0, 1, 2) and "Traceback" not in ended.said


def removed(folder: Path, job: Job) -> None:
    """Take away what a job made."""
    before = tree(job.before)
    for name in sorted(job.made.keys() - before.keys(), reverse=True):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def test_damaged_files(net, trials, jobs, rows_of):
    by_name = {job.name: job for job in jobs}
    for kind in KINDS:
        job = by_name[kind.job or ("pack of a view" if "view" in kind.job else "train")]
        files = sorted(
            {str(f.relative_to(job.after)) for f in job.after.glob(kind.pattern) if f.is_file()}
        )
        assert files, kind
        for change in net.some(CHANGES, 1):
            for name in net.some(files, 1, 2):
                with copied(job.after) as folder:
                    if kind.job:
                        removed(folder, job)
                    path = folder / name
                    if not path.exists():
                        continue
                    data = path.read_bytes()
                    damaged = None if change is None else change(data, net.draw)
                    if damaged is None:
                        path.unlink()
                    else:
                        path.write_bytes(damaged)
                    label = f"{name} {change.__name__ if change else 'gone'}, then"
                    if kind.job:
                        _do(net, trials, folder, job, label)
                    if kind.read:
                        _read(net, trials, folder, rows_of(job), label)
                    for words in [*net.some(VERBS, 1, 2), (PLAN,)]:
                        ended = trials.run(folder, *words)
                        right = ended.fine or ended.told if words == (PLAN,) else sound(ended)
                        net.check(right, f"{label} {words}: {ended.status} {ended.said[-1500:]}")


def _do(net, trials: Trials, folder: Path, job: Job, label: str) -> None:
    ended = trials.run(folder, *job.words, settings=job.settings)
    wanted = {name: data for name, data in job.made.items() if name not in tree(job.before)}
    found = {name: data for name, data in tree(folder).items() if name in wanted}
    wrong = half_published(found, job.made) or (ended.fine and difference(found, wanted))
    net.check(
        (ended.fine or ended.told) and not wrong,
        f"{label} {job.name}: {ended.status} {ended.said[-1500:]}; {wrong}",
    )


def _read(net, trials: Trials, folder: Path, wanted: str, label: str) -> None:
    """Reading gives the right rows or a message; a flipped bit is found by `verify`."""
    ended = trials.run(folder, READ, "given", "qa", 32, ROWS)
    right = ended.told
    if ended.fine:
        right = json.loads((folder / ROWS).read_text()) == json.loads(wanted)
        right = right or trials.run(folder, "verify").status == 1
    net.check(right, f"{label} read: {ended.status} {ended.said[-1500:]}")
