"""`tokencache env`: settings that fit a machine, as lines that a shell reads."""

from __future__ import annotations

import argparse

from ..base import limits
from ..base.limits import GB, MIB, Allowed, Settings

ROW_BYTES = 4096  # of a row of a thousand tokens
LEAST_ROWS = 1000
THIS = "this machine"


def add_words(parser: argparse.ArgumentParser) -> None:
    text = "of a class of machines instead of this one"
    parser.add_argument("--class", dest="kind", choices=list(limits.CLASSES), help=text)


def run(arguments: argparse.Namespace) -> None:
    """Print comments and export lines: `source <(tokencache env)`."""
    name = arguments.kind or THIS
    allowed = limits.CLASSES[arguments.kind] if arguments.kind else limits.here()
    print("\n".join(lines(name, limits.choose(allowed, {}))))


def lines(name: str, chosen: Settings) -> list[str]:
    values = variables(chosen)
    found, mode = chosen.allowed, chosen.mode
    cores = f"{found.cores.amount} {'core' if found.cores.amount == 1 else 'cores'}"
    made = [
        f"# tokencache on {name}: {cores} ({found.cores.by}), {found.free / GB:.1f} GB free of "
        f"{found.memory.amount / GB:.1f} GB ({found.memory.by}): {mode.name}",
        "# None of these changes a byte of a cache. Without them each job finds the same itself.",
    ]
    for variable, value in values.items():
        made += [f"# {_why(variable, chosen)}", f"export {variable}={value}"]
    made += [
        f"# {limits.OPENMP} is left to each job, which takes as many threads as it was given:",
        "# set here, all jobs that run beside each other would take so many, and a training on",
        "# another number of threads can differ in the last digits.",
        f"# export {limits.OPENMP}={chosen.openmp.amount}",
    ]
    return made


def variables(chosen: Settings) -> dict[str, int | str]:
    """What to set, by name, as machine.choose chose it."""
    return {
        limits.PROCESSES: chosen.workers.amount,
        limits.ROWS: chosen.rows.amount,
        limits.WRITER_ROWS: max(LEAST_ROWS, chosen.mode.waiting_bytes // ROW_BYTES),
        limits.RAYON: chosen.rayon.amount,
        "TOKENIZERS_PARALLELISM": "true",
    }


def _why(variable: str, chosen: Settings) -> str:
    mode = chosen.mode
    waiting = f"{mode.waiting_bytes // MIB} MiB" if mode.waiting_bytes else "few"
    return {
        limits.PROCESSES: "threads of a job that tokenizes, and processes of `fetch`: all cores",
        limits.ROWS: f"documents in hand at once; {mode.batch_bytes // MIB} MiB are a limit too",
        limits.WRITER_ROWS: f"rows that may wait to be written: {waiting}, of 1,000 tokens each",
        limits.RAYON: "threads of gigatoken and tokenizers, in one process",
        "TOKENIZERS_PARALLELISM": "false would leave the tokenizers library one thread",
    }[variable]


def classes(allowed: Allowed) -> dict[str, dict[str, int | str]]:
    """The settings of this machine and of each class, by name."""
    found = {THIS: allowed} | limits.CLASSES
    return {name: _row(limits.choose(one, {})) for name, one in found.items()}


def _row(chosen: Settings) -> dict[str, int | str]:
    about = {"cores": chosen.allowed.cores.amount, "GB free": round(chosen.allowed.free / GB),
             "mode": chosen.mode.name}  # fmt: skip
    return about | variables(chosen)
