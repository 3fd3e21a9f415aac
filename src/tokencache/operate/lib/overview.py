"""What of a plan is done, under way and to do: by what stands on the disk and what jobs say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...base import job_status, progress
from ...plan.plan import WORKFLOW, Plan, progress_folder

# The words of the command line, in the order of the work.
STAGES = ("build-image", "fetch", "materialize-tokenizer", "train-tokenizer", "tokenize",
          "pack-part", "pack", "train")  # fmt: skip


class Overview:
    """Looks at a plan again and again; what was there once is not asked for again."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._id: str = plan.data["id"]
        self._watch = job_status.Watch()
        self._there: set[str] = set()

    def look(self) -> dict[str, Any]:
        """Plain JSON.

        plan: its ID. workflow: {state: "running", "stalled" or "ended", node, why}. stages: by
        name {done, running, stalled, failed, to_do} jobs. token_shards: {there, total}. jobs: those
        that run or failed, as progress_files.Watch.look says it, with percent and a name for
        people.
        """
        said = self._watch.look(progress_folder(self._id))
        whole = [job for job in said if (job["stage"], job["target"]) == WORKFLOW]
        jobs = [self._job(job) for job in said if (job["stage"], job["target"]) != WORKFLOW]
        # A job that was killed or failed, and that another one did meanwhile, is of no interest.
        jobs = [job for job in jobs if job["state"] == "running" or not self._made(job)]
        missing = sum(not self._is_there(self.plan.tokens_path(key)) for key in self.plan.missing)
        total = len(self.plan.data["tokens"])
        return {
            "plan": self._id,
            "workflow": _workflow(whole),
            "stages": self._stages(jobs),
            "token_shards": {"there": total - missing, "total": total},
            "jobs": jobs,
        }

    def _job(self, said: dict[str, Any]) -> dict[str, Any]:
        found = said["progress"]
        said = {name: value for name, value in said.items() if name not in ("error", "file")}
        percent = None if found is None else progress.percent(found)
        return said | {"name": self._name_of(said), "percent": percent}

    def _name_of(self, job: dict[str, Any]) -> str:
        """A job for people: without the folder that all of its stage lie in."""
        target: str = job["target"]
        for folder in (f"{self.plan.cache}/tokenizers/", f"{self.plan.cache}/sources/",
                       f"{self.plan.cache}/", f"{self.plan.results}/"):  # fmt: skip
            if target.startswith(folder):
                return f"{job['stage']} {target.removeprefix(folder)}"
        return f"{job['stage']} {target}"

    def _made(self, job: dict[str, Any]) -> bool:
        """Whether what a job was to make is there."""
        done = self._batch_done if job["stage"] == "tokenize" else self._is_there
        return done(job["target"])

    def _stages(self, jobs: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
        plan = self.plan
        trained = {path for path, entry in plan.tokenizers.items() if "training" in entry}
        needed = self._needed_tokenizers()
        found = {
            "fetch": self._counted("fetch", jobs, self._needed_fetches()),
            "materialize-tokenizer": self._counted(
                "materialize-tokenizer", jobs, [path for path in needed if path not in trained]
            ),
            "train-tokenizer": self._counted(
                "train-tokenizer", jobs, [path for path in needed if path in trained]
            ),
            "tokenize": self._counted("tokenize", jobs, plan.batches, self._batch_done),
            "pack-part": self._counted(
                "pack-part", jobs, [part for path in plan.caches for part in plan.parts_of(path)],
                self._part_done,
            ),
            "pack": self._counted("pack", jobs, plan.caches),
            "train": self._counted("train", jobs, plan.runs),
        }  # fmt: skip
        images = [job["target"] for job in jobs if job["stage"] == "build-image"]
        found = {"build-image": self._counted("build-image", jobs, images)} | found
        return {name: counts for name, counts in found.items() if any(counts.values())}

    def _counted(
        self,
        stage: str,
        jobs: list[dict[str, Any]],
        targets: Iterable[str],
        is_done: Callable[[str], bool] | None = None,
    ) -> dict[str, int]:
        is_done = is_done or self._is_there
        state_of = {job["target"]: job["state"] for job in jobs if job["stage"] == stage}
        counts = {"done": 0, "running": 0, "stalled": 0, "failed": 0, "to_do": 0}
        for target in targets:
            counts["done" if is_done(target) else state_of.get(target, "to_do")] += 1
        return counts

    def _is_there(self, path: str) -> bool:
        if path not in self._there and os.path.exists(path):
            self._there.add(path)
        return path in self._there

    def _batch_done(self, name: str) -> bool:
        keys = self.plan.batches[name]["tokens"]
        return all(self._is_there(self.plan.tokens_path(key)) for key in keys)

    def _part_done(self, part: str) -> bool:
        return self._is_there(self.plan.cache_of(part)) or self._is_there(part)

    def _needed_fetches(self) -> list[str]:
        """What comes from a hub, but for what nobody needs any more."""
        plan = self.plan
        used = {plan.shard_of(key).get("fetched") for key in plan.missing}
        used |= {run["weights_folder"] for path, run in plan.runs.items() if not _exists(path)}
        return [path for path in plan.fetches if path in used or self._is_there(path)]

    def _needed_tokenizers(self) -> list[str]:
        plan = self.plan
        used = {batch["tokenizer"] for batch in plan.batches.values()}
        used |= {entry["tokenizer"] for path, entry in plan.caches.items() if not _exists(path)}
        return [path for path in plan.tokenizers if path in used or self._is_there(path)]


def _exists(path: str) -> bool:
    return Path(path).exists()


def _workflow(said: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the process that starts the jobs. It makes no progress of its own."""
    if not said:
        return {"state": "ended", "node": None, "why": ""}
    [found] = said
    return {name: found[name] for name in ("state", "node", "why")}
