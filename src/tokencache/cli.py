"""The command line: `tokencache STAGE --plan FILE TARGET`, one call a job, and the verbs."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from .base import limits, plain, signals
from .base.publish import DISK_FULL

# Nothing that loads NumPy or another library that reads its number of threads at its start.
from .base.version import __version__
from .errors import UserError
from .operate import VERBS
from .plan.plan import Plan
from .training import ranks
from .workflow import slurm

if TYPE_CHECKING:
    from .workflow.launch import Call

STAGES = {
    "fetch": ("FOLDER", "load a hub data set into cache/sources"),
    "materialize-tokenizer": ("FOLDER", "put a given tokenizer into cache/tokenizers"),
    "train-tokenizer": ("FOLDER", "train a tokenizer into cache/tokenizers"),
    "tokenize": ("BATCH", "make the token shards of one batch of the plan"),
    "pack-part": ("PART", "write one part of a large cache from its token shards"),
    "pack": ("CACHE", "make one cache from its token shards, or of its parts"),
    "train": ("RUN", "train one model on one cache"),
}

# Those that move much data, and load neither torch nor transformers.
BULK = ("tokenize", "pack", "pack-part")


def parser(called: str = "") -> argparse.ArgumentParser:
    """The parser; of the verbs, only the one that is called says what it understands."""
    top = argparse.ArgumentParser("tokencache", description="Tokenize once, train many.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (target, text) in STAGES.items():
        stage = commands.add_parser(name, help=text, description=text)
        stage.add_argument("--plan", required=True, help="the plan file that snakemake wrote")
        stage.add_argument("--threads", type=int, default=0, help="0: as many as it may use")
        stage.add_argument("target", metavar=target, help="as the plan names it")
        if name == "train":
            _add_launch_words(stage)
    summary = commands.add_parser("summary", help="a table of what a plan's targets came to")
    summary.add_argument("--plan", help="default: the newest plan")
    for name, text in VERBS.items():
        verb = commands.add_parser(name, help=text, description=text)
        if name == called:
            _module(name).add_words(verb)
    return top


def _module(verb: str) -> ModuleType:
    return import_module(f".operate.{verb}", __package__)


def _add_launch_words(stage: argparse.ArgumentParser) -> None:
    text = "on several nodes: what each runs this in, such as 'apptainer exec IMAGE'"
    stage.add_argument("--within", metavar="COMMAND", default="", help=text)
    stage.add_argument("--rendezvous", help=argparse.SUPPRESS)  # from launch to itself


def run(arguments: argparse.Namespace) -> int | None:
    if arguments.command in VERBS:
        return _module(arguments.command).run(arguments)
    if arguments.command == "summary":
        from .workflow import summary

        print(summary.table(Plan.read(arguments.plan) if arguments.plan else Plan.newest()))
        return None
    if arguments.command == "train":
        signals.listen()  # from the start, for it may wait for others, and imports take seconds
    plan = Plan.read(arguments.plan)
    chosen = limits.settle(arguments.command, arguments.threads)
    # Of several processes, the one that starts the others speaks and looks for all.
    if not ranks.launched() and getattr(arguments, "rendezvous", None) is None:
        # The summary finds this in the job's log.
        print(f"tokencache {__version__} on {slurm.nodes()}", file=sys.stderr)
        if image := limits.image():
            print(f"image: {' '.join(image.values())}", file=sys.stderr)
        print(chosen.lines(arguments.command), file=sys.stderr)
        if arguments.command == "train":
            from .training import checkpoints

            # A job that lost its run, as a killed snakemake leaves them, may be at it.
            checkpoints.wait_for_others(Path(arguments.target))
        if arguments.command != "tokenize" and Path(arguments.target).exists():
            print(f"{arguments.target} is there: another process made it", file=sys.stderr)
            return None
    if arguments.command == "train" and (call := _several(plan, arguments)):
        from .workflow import launch

        launch.start(call)
        return None
    if ranks.launched():
        ranks.end_with_parent()
    chosen.apply()  # before the stage is imported
    if arguments.command in BULK:
        limits.keep_freed_memory()
    # Threads that spin while they wait for each other make jobs that share cores many times
    # slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from .workflow import stages

    stage = {
        "fetch": stages.fetch_from_hub,
        "materialize-tokenizer": stages.materialize_tokenizer,
        "train-tokenizer": stages.train_a_tokenizer,
        "tokenize": stages.tokenize_batch,
        "pack-part": stages.pack_part,
        "pack": stages.pack_cache,
        "train": stages.train_run,
    }[arguments.command]
    try:
        with _reporting(plan, arguments):
            stage(plan, arguments.target)
    except KeyError as error:
        if error.args != (arguments.target,):
            raise
        raise UserError(f"{arguments.plan} has no {arguments.target!r}") from None
    return None


def _reporting(plan: Plan, arguments: argparse.Namespace) -> AbstractContextManager[None]:
    """In here a job's progress is written down for `tokencache status`."""
    if not ranks.first():
        return nullcontext()
    from .base.job_status import reporting

    job = arguments.command, arguments.target
    return reporting(plan.progress_path(*job), *job, ranks.machine())


def _several(plan: Plan, arguments: argparse.Namespace) -> Call | None:
    """How to start a run of several processes, where this is not one of them."""
    run = plan.runs.get(arguments.target)
    if run is None or ranks.launched():
        return None
    nodes, processes = run["training"]["nodes"], run["training"]["processes_per_node"]
    if nodes * processes == 1:
        return None
    from .workflow.launch import Call

    return Call(
        arguments.plan, arguments.target, arguments.threads, arguments.within,
        arguments.rendezvous, nodes, processes,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    try:
        status = run(parser(words[0] if words else "").parse_args(words)) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `tokencache list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        print(f"tokencache: {ranks.in_turn(str(error))}", file=sys.stderr)
        return error.status
    except OSError as error:
        if error.errno not in (*DISK_FULL, errno.ENAMETOOLONG):
            raise
        full = error.errno in DISK_FULL
        said = "the disk is full; `tokencache gc` says what no configuration needs any more"
        said = said if full else "no file can have so long a name"
        print(f"tokencache: {plain.cut(str(error.filename or ''))}: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def command() -> NoReturn:
    """What the shell calls: `main`, and the end of the process.

    The engines' tables are millions of small blocks. To give each back takes a tenth of a
    second, and the system takes them all at once. What these stages write is on disk by then.
    """
    code = main()
    if sys.argv[1] in BULK:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    command()
