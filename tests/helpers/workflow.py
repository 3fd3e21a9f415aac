"""A temporary copy of the workflow, used as its users use it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
COPIED = ("Snakefile", "rules", "profiles", "slurm", "src", "examples", "containers", "envs")

STAGES = (
    "build_image",
    "fetch", "materialize_tokenizer", "train_tokenizer", "tokenize", "pack_part", "pack", "train",
)  # fmt: skip

# What is measured, and so differs between two runs that make the same thing.
MEASURED = (
    "timing.json", "metrics.jsonl", "throughput.svg", "provenance.json", "manifest.json",
    ".last_used", ".snakemake_timestamp",
)  # fmt: skip

TINY = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip


def rows(count, seed=0):
    """Rows of JSON Lines with a question, an answer and a conversation, in order."""
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "λάμδα", "मू", "日本", "ниже"]
    for number in range(seed, seed + count):
        some = " ".join(words[(number * 7 + n * n) % len(words)] for n in range(number % 23 + 2))
        messages = [{"role": "user", "content": some}, {"role": "assistant", "content": some[::-1]}]
        yield {"prompt": f"{number}: {some}?", "completion": some[::-1], "messages": messages}


def write_rows(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found)


class Workflow:
    """A folder with a copy of the workflow, its config and its data."""

    def __init__(self, folder):
        self.folder = Path(folder)

    @classmethod
    def new(cls, folder, config, data=None):
        folder.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        made = cls(folder)
        made.configure(config)
        for name, found in (data or {}).items():
            write_rows(folder / name, found)
        return made

    def copy(self, folder):
        shutil.copytree(self.folder, folder, symlinks=True)
        return Workflow(folder)

    @property
    def config(self):
        return yaml.safe_load((self.folder / "config.yaml").read_text())

    def configure(self, config):
        text = config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False)
        (self.folder / "config.yaml").write_text(text)

    def edit(self, name, before, after):
        """Change one place of this copy's own code."""
        path = self.folder / name
        text = path.read_text()
        assert text.count(before) == 1, (name, before)
        path.write_text(text.replace(before, after))

    def in_parts(self, size):
        """As with data of many gigabytes: a job for each so many bytes of sources."""
        resolve, pack = "src/tokencache/plan/resolve.py", "src/tokencache/caches/dataset.py"
        self.edit(resolve, "BYTES_IN_A_PART = 2**31", f"BYTES_IN_A_PART = {size}")
        self.edit(pack, "TOKENS_IN_A_FILE = 2**26", "TOKENS_IN_A_FILE = 500")

    def command(self, *words):
        # On a cluster, cores would be those of all jobs together.
        cores = [] if "--profile" in words else ["--cores", "1"]
        return [sys.executable, "-m", "snakemake", *cores, *words]

    def start(self, *words):
        """Snakemake in the background, in a process group of its own."""
        return subprocess.Popen(
            self.command(*words), cwd=self.folder, env=environment(), start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *words, fails=False):
        """Snakemake's whole output; its exit status must be as expected."""
        done = subprocess.run(
            self.command(*words), cwd=self.folder, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    def tokencache(self, *words, fails=False):
        done = subprocess.run(
            [sys.executable, "-m", "tokencache", *words], cwd=self.folder, text=True,
            env=environment() | {"PYTHONPATH": str(self.folder / "src")},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    def jobs(self, *words):
        """Jobs by rule that a dry run would do, target rules aside."""
        output = self.run("-n", *words)
        found = {}
        table = output.partition("Job stats:")[2].partition("total")[0]
        for rule, count in re.findall(r"^(\w+) +([0-9]+)$", table, re.MULTILINE):
            found[rule] = int(count)
        if not found:
            assert "Nothing to be done" in output, output
        return {rule: count for rule, count in found.items() if rule in STAGES}

    def rerun(self, *words):
        """What a dry run says will be done; the caches are made, and training alone is left."""
        jobs = self.jobs(*words)
        self.run("caches", *words)
        training = {"train": jobs["train"]} if "train" in jobs else {}
        assert self.jobs(*words) == training
        return jobs

    def files(self, root):
        """Relative path and bytes of all files below, measures aside."""
        folder = self.folder / root
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in MEASURED
        }

    def results(self):
        return {root: self.files(root) for root in ("cache", "results")}

    def token_shards(self):
        return {path.name for path in (self.folder / "cache/tokens").rglob("*.arrow")}

    def targets(self, root="cache"):
        """model/dataset/max_length-key of what is there."""
        found = (self.folder / root).glob("*/*/*-*")
        shared = ("tokens", "tokenizers", "sources")
        return {
            "/".join(path.parts[-3:])
            for path in found
            if path.parts[-3] not in shared and not path.name.startswith(".")
        }


def environment():
    # One thread a job: the same bytes on every machine, and tests that share cores.
    return os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def kill(process):
    """kill -9 of snakemake and all its jobs."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
