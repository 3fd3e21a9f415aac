"""A cache for a user's own script: `tokencache.load`, from any process on any machine."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import lease
from ..caches.view import AnyView, open_cache
from ..config import load as config_files
from ..config.explain import unknown
from ..config.load import load as load_config
from ..config.schema import Combination, Config
from ..errors import UserError
from ..plan.plan import PLANNING, building_path
from ..plan.resolve import resolve
from ..training import ranks
from . import making

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

HINT_SECONDS = 30.0  # between two lines on stderr
SOON_SECONDS = 2.0  # in which the sources of most are looked up: no line for that
LONGEST_PAUSE = 2.0  # between two looks at a cache that somebody builds
TAIL_LINES = 30  # of the log of a build that failed

_in_folder = threading.RLock()


def load(
    model: str,
    dataset: str,
    max_length: int,
    *,
    split: str | None = None,
    config: str | Path | Sequence[str | Path] | None = None,
    folder: str | Path | None = None,
    build: bool = False,
    timeout: float = 86400.0,
    dead_after: float = 60.0,
    arguments: Sequence[str] = ("--cores", "all"),
) -> DatasetDict | Dataset | dict[str, AnyView] | AnyView:
    """The cache of a model, a data set and a max_length that config.yaml names.

    Returns what `datasets.load_from_disk` gives, and with `format: view` what `open_cache`
    does: all splits, or the one named by `split`.
    May be called by any number of processes on any machines at once.

    config: a file, a folder with a config.yaml, or a list of files of which later ones
    are laid over earlier ones; else the config.yaml of the current folder or of the
    nearest one above. folder: where snakemake is run, which paths in the configuration
    start from; else that of the (first) file. The current folder of this process is
    another one for the moment in which the files are looked up.

    build: if the cache is missing, one of the processes that call this makes it, with
    `snakemake` and these `arguments`, and the others wait for it. timeout: seconds to wait
    for others, also for one that hashes new sources first. One that gives no sign of life
    for `dead_after` seconds is replaced.

    Raises UserError where the configuration or an argument is wrong, and where the cache is
    missing, can't be built, is not there in time, or is damaged.
    """
    words = _words(arguments)
    files, where = _configuration(config, folder)
    wanted = Combination(model=model, dataset=dataset, max_length=max_length)
    patience = _Patience(timeout)
    target = _Target.find(files, where, wanted, dead_after, patience)
    if not target.is_there():
        if not build:
            raise UserError(target.missing())
        target.check_that_it_can_be_built()
        _wait_or_build(target, patience, dead_after, words)
    return _checked(open_cache(target.path, split))


def _checked(found: Any) -> Any:
    """What was opened; a view's token shards are looked at now, and not when a row is read."""
    for rows in found.values() if isinstance(found, dict) else [found]:
        if isinstance(rows, AnyView):
            rows.check()
    return found


def _configuration(
    config: str | Path | Sequence[str | Path] | None, folder: str | Path | None
) -> tuple[list[Path], Path]:
    """The configuration's files, and the folder that snakemake is run in."""
    if config is None:
        start = Path(folder or ".").absolute()
        found = [f for above in [start, *start.parents] if (f := above / "config.yaml").is_file()]
        if not found:
            raise UserError(
                f"there is no config.yaml in {start} or above it; name one with config=…"
            )
        files = found[:1]
    else:
        given = [config] if isinstance(config, str | Path) else list(config)
        files = [Path(file).expanduser().absolute() for file in given]
        files = [file / "config.yaml" if file.is_dir() else file for file in files]
        if not files:
            raise UserError("config=[] names no file")
    where = Path(folder).expanduser().absolute() if folder is not None else files[0].parent
    if not where.is_dir():
        raise UserError(f"there is no folder {where}")
    return files, where


def _words(arguments: Sequence[str]) -> list[str]:
    """The arguments for snakemake, of which none changes the configuration."""
    if isinstance(arguments, str):
        raise UserError(f"arguments={arguments!r} is one text; give its words: {arguments.split()}")
    words = [str(word) for word in arguments]
    for word in words:
        # As snakemake reads them: --configfile, --config=…, and what they may be shortened to.
        if word.startswith(("--conf", "-C")):
            raise UserError(
                f"arguments: {word} is not for here, as it decides which cache is meant; name it "
                "with config=…, a list of files of which later ones are laid over earlier ones"
            )
    return words


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Paths in a configuration are relative to the folder that snakemake is run in."""
    with _in_folder, contextlib.chdir(folder):
        yield


@dataclass(frozen=True)
class _Target:
    """A cache, and how it is made.

    path: of the cache; name: the same as snakemake knows it, in `folder`. lacking: the
    token shards without which it can't be read, and which were missing.
    """

    path: Path
    name: str
    lacking: list[Path]
    folder: Path
    files: list[Path]
    wanted: Combination

    @classmethod
    def find(
        cls, files: list[Path], folder: Path, wanted: Combination, dead_after: float,
        patience: _Patience,
    ) -> _Target:  # fmt: skip
        with _working_in(folder):
            settings = load_config(config_files.read(files), files)
            _check(settings, wanted, files)
            # Other caches of the configuration, and what is wrong with them, are left alone.
            settings = settings.model_copy(update={"build": [wanted]})

        def wait(holder: dict[str, Any]) -> None:
            who = f"process {holder['pid']} on {holder['host']} makes it since {holder['since']}"
            patience.wait(0.05, "the index of the sources", who)

        # Sources that the index does not know yet are hashed by one process, not by all.
        with (
            lease.one_first(folder / PLANNING, dead_after, _about(), wait),
            _working_in(folder),
        ):
            plan = resolve(settings)
        [name] = plan.caches
        lacking = [folder / plan.tokens_path(key) for key in plan.lacking(name)]
        return cls((folder / name).resolve(), name, lacking, folder, files, wanted)

    def is_there(self) -> bool:
        # Listing the folder, other than asking for the name, sees what other machines made.
        with contextlib.suppress(OSError):
            found = self.path.name in os.listdir(self.path.parent)
            return found and all(shard.exists() for shard in self.lacking)
        return False

    def place(self) -> Path:
        return building_path(self.path)

    def log(self) -> Path:
        return self.folder.joinpath("logs", "load", *self.path.parts[-3:]).with_suffix(".log")

    def command(self, arguments: list[str]) -> list[str]:
        """What makes the cache, run in `folder`."""
        # Of a view that is there, snakemake makes the token shards for that target alone.
        wanted = "caches" if self.lacking else self.name
        return making.command([wanted], arguments, self.folder, self.files)

    def missing(self) -> str:
        holder = lease.Watch(self.place(), float("inf")).look(end=False)
        words = shlex.join(["snakemake", *self.command(["--cores", "all"])])
        now = f"{_who(holder)}; " if holder else ""
        return (
            f"the cache {self.path} is not there: {now}make it with\n"
            f"  cd {shlex.quote(str(self.folder))} && {words}\n"
            "or call load with build=True, which makes it or waits for it"
        )

    def check_that_it_can_be_built(self) -> None:
        making.check(self.folder, "build=True", self.missing())


def _check(settings: Config, wanted: Combination, files: list[Path]) -> None:
    """Raises UserError where a configuration makes no such cache."""
    [model], [dataset], [max_length] = wanted.model, wanted.dataset, wanted.max_length
    for name, known, what in (
        (model, settings.models, "model"),
        (dataset, settings.datasets, "dataset"),
    ):
        if name not in known:
            raise UserError(f"{files[-1]}: {unknown(name, known, '', what=what)}")
    made = settings.combinations()
    if (model, dataset, max_length) not in made:
        lengths = [str(n) for m, d, n in made if (m, d) == (model, dataset)]
        there = f"but for max_length {', '.join(lengths)}" if lengths else "nor for other lengths"
        raise UserError(
            f"{files[-1]}: no cache of {model!r} and {dataset!r} is made for max_length "
            f"{max_length}, {there}; add it to max_length: or build:"
        )


# Waiting and building


class _Patience:
    """Waits for other processes, `timeout` seconds in all, and says for whom."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._waited = 0.0
        self._says_at = SOON_SECONDS

    def say_at_once(self) -> None:
        self._says_at = self._waited

    def wait(self, seconds: float, what: str, who: str | None) -> None:
        """who: what is said of who makes it. Raises UserError when the time is over."""
        if self._waited > self._timeout:
            raise UserError(
                f"{what} was not there after {self._timeout:g} seconds: "
                f"{who or 'and nobody makes it'}. See what keeps it, or wait longer with timeout=…"
            )
        if who and self._waited >= self._says_at:
            self._says_at = self._waited + HINT_SECONDS
            _say(f"waiting for {what}: {who}")
        start = time.monotonic()
        time.sleep(seconds)
        self._waited += time.monotonic() - start


def _wait_or_build(
    target: _Target, patience: _Patience, dead_after: float, words: list[str]
) -> None:
    watch = lease.Watch(target.place(), dead_after)
    pause = 0.1
    patience.say_at_once()
    while not target.is_there():
        holder = watch.look()
        failure = watch.failure()
        if failure is not None:
            raise UserError(failure["message"])
        if holder is None:
            mine = lease.take(target.place(), _about() | {"log": str(target.log())})
            if mine is not None:
                _build_as(mine, target, words)
                return
        who = _who(holder) if holder else None
        patience.wait(pause * random.uniform(0.5, 1), f"the cache {target.path}", who)
        pause = min(pause * 1.5, LONGEST_PAUSE)


def _about() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _who(holder: dict[str, Any]) -> str:
    return (
        f"process {holder['pid']} on {holder['host']} builds it since {holder['since']}, "
        f"log: {holder['log']}"
    )


def _say(text: str) -> None:
    print(f"tokencache: {text}", file=sys.stderr, flush=True)


def _build_as(mine: lease.Lease, target: _Target, words: list[str]) -> None:
    """Build the cache as the holder of the lease."""
    try:
        if not target.is_there():  # not made between the last look and the lease either
            with _explained(target):
                _build(mine, target, words)
        mine.clear()
    except UserError as error:
        mine.failed({"message": str(error)})
        raise
    finally:
        mine.release()


@contextlib.contextmanager
def _explained(target: _Target) -> Iterator[None]:
    """What the disk or the machine refuses as an error of the user's."""
    try:
        yield
    except OSError as error:
        path = target.folder / (error.filename or target.log())
        raise UserError(
            f"the cache {target.path} could not be built: process {os.getpid()} on "
            f"{socket.gethostname()} failed at {path}: {error.strerror or error}"
        ) from None


def _build(mine: lease.Lease, target: _Target, arguments: list[str]) -> None:
    shown = target.command([*arguments, *making.of_only([target.wanted])])
    log = target.log()
    log.parent.mkdir(parents=True, exist_ok=True)
    about = _about()
    _say(f"building {target.name}, log: {log}")
    with open(log, "ab") as stream:
        title = f"# process {about['pid']} on {about['host']}, {about['since']}: "
        stream.write((title + shlex.join(["snakemake", *shown]) + "\n").encode())
        stream.flush()
        start = stream.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *shown], cwd=target.folder,
            env=ranks.environment_of_none(), stdin=subprocess.DEVNULL, stdout=stream,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        with _ended(process):
            _attend(process, mine, target)
    if process.returncode != 0 or not target.is_there():
        with open(log, "rb") as stream:
            stream.seek(start)
            lines = stream.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
        tail = "\n".join(f"  {line}" for line in lines)
        raise UserError(
            f"the cache {target.path} could not be built: snakemake on {about['host']} ended with "
            f"status {process.returncode}. The end of {log}:\n{tail}"
        )


@contextlib.contextmanager
def _ended(process: subprocess.Popen) -> Iterator[None]:
    """A process that does not outlive this block."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _attend(process: subprocess.Popen, mine: lease.Lease, target: _Target) -> None:
    """Renew the lease until the process ends."""
    start = said = time.monotonic()
    while True:
        try:
            process.wait(lease.BEAT_SECONDS)
            return
        except subprocess.TimeoutExpired:
            mine.renew()
        now = time.monotonic()
        if now - said >= HINT_SECONDS:
            said = now
            _say(f"building {target.name} for {now - start:.0f} seconds, log: {target.log()}")
