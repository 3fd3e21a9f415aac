"""The plan of this run, and what rules ask of it. No rule stands here."""

import os
import re
import shlex
import socket
import sys
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(workflow.basedir)


def before(variable, folder):
    """A list of folders of the environment with one more in front."""
    given = os.environ.get(variable)
    return os.pathsep.join([str(folder), given] if given else [str(folder)])


# Jobs run the commands of this Python with the library of this checkout.
sys.path.insert(0, str(CHECKOUT / "src"))
os.environ.update(
    PATH=before("PATH", Path(sys.executable).parent),
    PYTHONPATH=before("PYTHONPATH", CHECKOUT / "src"),
    PYTHONUNBUFFERED="1",
)

from tokencache.base import limits
from tokencache.base.job_status import ProgressFile
from tokencache.config.explain import check_files
from tokencache.config.load import load
from tokencache.errors import UserError, listed
from tokencache.plan import stale
from tokencache.plan.plan import WORKFLOW, Plan, fetched_path, files_of, tokenizer_path
from tokencache.workflow import leftovers, running, summary

# `--delete-all-output` takes the outputs of the rules that there are: see rules/clean.smk. With
# `--delete-temp-output` there are none.
cleaning = any(word.startswith("--delete-") for word in sys.argv)
deletes = any(word.startswith("--delete-a") for word in sys.argv)


@contextmanager
def without_traceback():
    """A user's mistake ends the process with its message alone."""
    try:
        yield
    except UserError as error:
        raise SystemExit(f"tokencache: {error}")


if deletes:
    from tokencache.operate.lib.all_output import AllOutput, resolved

# Snakemake sets it in each job to the job's threads: what the user says counts more.
if own := os.environ.get(limits.OPENMP):
    shell.prefix(f"set -euo pipefail; export {limits.OPENMP}={shlex.quote(own)}; ")

if not workflow.is_main_process:
    # The SLURM plugin takes these from the command that it starts.
    for name in limits.SLURM_MEMORY:
        if name in os.environ:
            os.environ[limits.KEPT + name] = os.environ[name]

if not workflow.configfiles:
    with without_traceback():
        check_files(["config.yaml"])

    configfile: "config.yaml"


def settings_and_plan():
    """The plan is made once, by the process that the user started; its jobs read it."""
    limits.overrides(os.environ)  # or each job would fail at them
    clean = config.pop("clean", None)
    if clean is not None and not (deletes and clean == "everything"):
        raise UserError("clean: there is only --delete-all-output --config clean=everything")
    settings = load(config, workflow.configfiles)
    if cleaning:
        return settings, resolved(settings) if deletes and clean is None else None
    if not workflow.is_main_process:
        return settings, Plan.read(os.environ.get("TOKENCACHE_PLAN"))

    from tokencache.plan.resolve import resolve

    plan = resolve(settings)
    os.environ.update(TOKENCACHE_PLAN=plan.path)
    if "--lint" not in sys.argv:
        print(stale.table(plan), file=sys.stderr)
    return settings, plan


with without_traceback():
    settings, plan = settings_and_plan()

# `tokencache status` sees by it whether this process lives.
if workflow.is_main_process and not cleaning:
    announcement = running.Announcement(plan)
    workflow_file = ProgressFile(plan.progress_path(*WORKFLOW), *WORKFLOW, socket.gethostname())

with without_traceback():
    all_made = AllOutput(settings, plan) if deletes else None


def targets(*kinds, model=None):
    """The caches and the runs of one model or all, with the token shards that are missing."""
    if cleaning:
        return lambda wildcards: all_made.asked(kinds, model) if deletes else []
    found = {
        path: entry
        for kind in kinds
        for path, entry in getattr(plan, kind).items()
        if model in (None, entry["model"])
    }
    caches = (entry for entry in found.values() if "token_set" in entry)
    marks = dict.fromkeys(mark for cache in caches for mark in token_marks(cache))
    done_with = {entry["cache"] for path, entry in found.items() if served(path, entry)}
    return [*marks, *(path for path in found if path not in done_with)]


def served(path, entry):
    """Whether a target is a run that stands for its cache: it is trained now, or both are there.

    Who deletes that cache while a model is trained loses nothing, and Snakemake looks at the end
    whether what it was asked for is there. A report shows the caches, too.
    """
    is_run = "token_set" not in entry
    here = is_run and (not os.path.exists(path) or os.path.exists(entry["cache"]))
    return here and not any(word.startswith("--report") for word in sys.argv)


def end():
    """What a run leaves to nobody, however it went."""
    workflow_file.end()
    plan.remove_marks()
    announcement.end()


def lacking():
    """A message on what this run was asked for and did not make, though all its jobs went well."""
    asked = (file for job in workflow.dag.targetjobs for file in job.output or job.input)
    missing = sorted({str(file) for file in asked if not os.path.exists(file)})
    if not missing:
        return None
    named = listed(missing, "\n  ")
    return (
        f"tokencache: this run ended without\n  {named}\n"
        "which it was asked for, though none of its jobs failed: something else removed it, or "
        "Snakemake skipped its job; run snakemake again"
    )


def unless_there(target, image, inputs):
    """What a target is made from and in, while it is not there: its key says that it is fresh."""
    return [] if Path(target).exists() else [*inputs, *image_inputs(image)]


def planned(entries, target):
    """The plan's entry of a target that somebody asked for by its path."""
    if target not in entries:
        known = listed(entries, "\n  ")
        raise WorkflowError(f"{target} is not what the present config makes; that is:\n  {known}")
    return entries[target]


def given_tokenizer_inputs(wildcards):
    """Fetched data that its saved files are compared on."""
    folder = tokenizer_path(plan.cache, wildcards.tokenizer)
    shards = map(plan.shard_of, plan.compared_tokens(folder))
    fetched = [file for file in files_of(shards) if file in plan.fetches]
    return [] if Path(folder).exists() else fetched


def trained_tokenizer_inputs(wildcards):
    folder = tokenizer_path(plan.cache, wildcards.tokenizer)
    shards = [plan.data["shards"][shard] for _, shard in plan.tokenizers[folder]["texts"]]
    return unless_there(folder, "tokenize", source_inputs(shards))


def source_inputs(shards):
    """The sources of shards, but for names that Snakemake would take for patterns.

    Fetched data is not `ancient`: Snakemake skips the jobs that wait for what is ancient and
    there, also where another reason starts the job that makes it, such as a mark that it is
    incomplete.
    """
    return [
        file if file in plan.fetches else ancient(file)
        for file in files_of(shards)
        if not re.search("[{}]", file)
    ]


def batch_inputs(wildcards):
    batch = planned(plan.batches, wildcards.batch)
    return [
        batch["tokenizer"],
        *source_inputs(map(plan.shard_of, batch["tokens"])),
        *image_inputs("tokenize"),
    ]


def token_set_inputs(wildcards):
    return [plan.mark(name) for name in plan.batches_of(wildcards.token_set)]


def token_marks(cache):
    """What is there when all token shards of a cache are; nothing where they are now."""
    sets = dict.fromkeys(plan.sets_of(cache))
    return [plan.set_mark(token_set) for token_set in sets if plan.batches_of(token_set)]


def cache_inputs(wildcards):
    path = f"{plan.cache}/{wildcards.cache}"
    cache = planned(plan.caches, path)
    made_of = plan.parts_of(path) or [cache["tokenizer"], *token_marks(cache)]
    return unless_there(path, "tokenize", made_of)


def part_inputs(wildcards):
    path = f"{plan.cache}/{wildcards.part}"
    cache = planned(plan.caches, plan.cache_of(path))
    return unless_there(path, "tokenize", [cache["tokenizer"], *token_marks(cache)])


def run_inputs(wildcards):
    path, run = f"{plan.results}/{wildcards.run}", planned_run(wildcards)
    fetched = [run["weights_folder"]] if run["weights_folder"] in plan.fetches else []
    # A view has no tokens itself.
    marks = token_marks(plan.caches[run["cache"]]) if plan.lacking(run["cache"]) else []
    return unless_there(path, "train", [run["tokenizer"], run["cache"], *marks, *fetched])


def planned_run(wildcards):
    return planned(plan.runs, f"{plan.results}/{wildcards.run}")


def train_nodes(wildcards):
    """How many nodes, if several: nothing is said to SLURM of one."""
    nodes = planned_run(wildcards)["training"]["nodes"]
    return nodes if nodes > 1 else None


def train_mpi(wildcards):
    """The job itself starts its processes on its nodes, by what this says."""
    return train_nodes(wildcards) and "srun"


def train_tasks_per_gpu(wildcards):
    """None is asked for: `tasks` counts nodes."""
    return train_nodes(wildcards) and 0


def one_of(names):
    """A wildcard's pattern that only these match."""
    return f"(?:{'|'.join(map(re.escape, names)) or '(?!)'})"
