"""The plan of this run, and what rules ask of it. No rule stands here."""

import os
import re
import sys
from pathlib import Path

CHECKOUT = Path(workflow.basedir)

# Jobs run the commands of this Python with the library of this checkout.
sys.path.insert(0, str(CHECKOUT / "src"))
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    PYTHONPATH=os.pathsep.join([str(CHECKOUT / "src"), os.environ.get("PYTHONPATH", "")]),
    PYTHONUNBUFFERED="1",
)

from tokencache import inventory, summary, why
from tokencache.config import load
from tokencache.errors import UserError
from tokencache.messages import check_files
from tokencache.plan import Plan, fetched_path, files_of, tokenizer_path

# `--delete-all-output` takes the outputs of the rules that there are: see rules/clean.smk.
cleaning = any(word.startswith("--delete-") for word in sys.argv)


def stop(error):
    """A user's mistake, without a traceback."""
    raise SystemExit(f"tokencache: {error}")


if not workflow.configfiles:
    try:
        check_files(["config.yaml"])
    except UserError as error:
        stop(error)

    configfile: "config.yaml"


def settings_and_plan():
    """The plan is made once, by the process that the user started; its jobs read it."""
    from tokencache.resolve import resolve

    settings = load(config, workflow.configfiles)
    if cleaning:
        return settings, None
    if not workflow.is_main_process:
        return settings, Plan.read(os.environ.get("TOKENCACHE_PLAN"))
    plan = resolve(settings)
    os.environ.update(TOKENCACHE_PLAN=plan.path)
    if "--lint" not in sys.argv:
        print(why.table(plan), file=sys.stderr)
    return settings, plan


try:
    settings, plan = settings_and_plan()
except UserError as error:
    stop(error)

made = inventory.made(settings.cache, settings.results) if cleaning else {}


def targets(*kinds, model=None):
    """The caches and the runs of one model or all, with the token shards that are missing."""
    if cleaning:
        kinds = (*kinds, "shared") if model is None else kinds
        chosen = [made[k, m] for k, m in made if k in kinds and model in (None, m)]
        return [folder for folders in chosen for folder in folders]
    found = {
        path: entry
        for kind in kinds
        for path, entry in getattr(plan, kind).items()
        if model in (None, entry["model"])
    }
    sets = dict.fromkeys(e["token_set"] for e in found.values() if "token_set" in e)
    batches = dict.fromkeys(name for key in sets for name in plan.batches_of(key))
    return [*map(plan.marker, batches), *found]


def unless_there(target, inputs):
    """What a target is made from, while it is not there: its key says that it is fresh."""
    return [] if Path(target).exists() else inputs


def planned(entries, target):
    """The plan's entry of a target that somebody asked for by its path."""
    if target not in entries:
        known = "\n  ".join(["", *entries])
        raise WorkflowError(f"{target} is not what the present config makes; that is:{known}")
    return entries[target]


def tokenizer_inputs(wildcards):
    folder = tokenizer_path(plan.cache, wildcards.tokenizer)
    shards = [plan.data["shards"][shard] for _, shard in plan.tokenizers[folder]["texts"]]
    return unless_there(folder, [ancient(file) for file in files_of(shards)])


def batch_inputs(wildcards):
    batch = planned(plan.batches, wildcards.batch)
    return [
        batch["tokenizer"],
        *(ancient(file) for file in files_of(map(plan.shard_of, batch["tokens"]))),
    ]


def cache_inputs(wildcards):
    path = f"{plan.cache}/{wildcards.cache}"
    cache = planned(plan.caches, path)
    batches = [plan.marker(name) for name in plan.batches_of(cache["token_set"])]
    return unless_there(path, [cache["tokenizer"], *batches])


def run_inputs(wildcards):
    path = f"{plan.results}/{wildcards.run}"
    run = planned(plan.runs, path)
    return unless_there(path, [run["tokenizer"], run["cache"]])


def one_of(names):
    """A wildcard's pattern that only these match."""
    return f"(?:{'|'.join(map(re.escape, names)) or '(?!)'})"
