"""A SLURM cluster of this machine, and a workflow for it."""

import subprocess
import time
from itertools import pairwise
from pathlib import Path

import psutil
from conftest import make_tokenizer

from helpers.workflow import ROOT, TINY, Workflow, environment, rows

SCRIPTS = ROOT / "tests/cluster"
# Seconds for what takes a few on a machine that has little else to do.
PATIENCE = 300
PROFILE = ("--profile", "slurm", "--profile", f"{SCRIPTS}/profile")


def script(name, *words, fails=False):
    done = subprocess.run([SCRIPTS / name, *words], capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def made_in(folder, **more):
    """Two models that share nothing but their data set, and one cache and one run of each."""
    for name in ("bos_eos", "llama"):
        make_tokenizer(name, folder / name)
    config = {
        "models": {
            "one": {"tokenizer": "bos_eos", "architecture": TINY},
            "two": {"tokenizer": "llama", "architecture": TINY},
        },
        "datasets": {"qa": {"files": "data", "document": {"text": "{prompt} {completion}"}}},
        "max_length": [32],
        "training": {"max_steps": 2, "per_device_train_batch_size": 2},
        "containers": {"base": "debian"},
    }
    workflow = Workflow.new(folder, config | more, {"data/a.jsonl": rows(80)})
    (ROOT / "images").mkdir(exist_ok=True)
    (folder / "images").symlink_to(ROOT / "images")
    return workflow


def build_images(folder):
    """The images of this checkout, in the background, as `snakemake images` makes them."""
    workflow = made_in(folder)
    start(workflow, "images", "--cores", "2", "--software-deployment-method", "apptainer")
    return workflow


def start(workflow, *words):
    """Snakemake in the background; what it says is in the file `said`."""
    with open(workflow.folder / "said", "w") as said:
        workflow.process = subprocess.Popen(
            workflow.command(*words), cwd=workflow.folder, env=environment(),
            start_new_session=True, stdout=said, stderr=said,
        )  # fmt: skip
    return workflow.process


def said(workflow):
    return (workflow.folder / "said").read_text()


def until(true, workflow, what):
    """What `true` returns as soon as it is something."""
    deadline = time.time() + PATIENCE
    while not (found := true()):
        late = time.time() > deadline or workflow.process.poll() is not None
        assert not late, f"{what} did not happen:\n{said(workflow)}"
        time.sleep(0.02)
    return found


def ended(process, workflow):
    """Snakemake's output, after it ended well."""
    assert process.wait(PATIENCE) == 0, said(workflow)
    return said(workflow)


def job_of(workflow, stage, but=()):
    """The process that does a stage of this workflow in a job of SLURM, once there is one."""

    def find():
        for process in psutil.process_iter():
            try:
                words = [Path(word).name for word in process.cmdline()]
                if ("tokencache", stage) in pairwise(words):
                    here = process.cwd() == str(workflow.folder)
                    if here and process.pid not in [other.pid for other in but]:
                        return process
            except psutil.Error:
                continue
        return None

    return until(find, workflow, f"a job that does {stage}")


def number_of(process):
    return process.environ()["SLURM_JOB_ID"]
