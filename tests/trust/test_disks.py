"""Every kind of job on a disk that fills up at any of its writes, and on small disks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .test_kills import later, run_again
from .trials import Fault, What, copied, difference, half_published, is_hidden, tree


def is_full(said: str) -> bool:
    """Whether a message says that the disk is full; some libraries have their own words."""
    words = ("disk is full", "disk is probably full", "No space left on device")
    return any(word in said for word in words)


def test_writes_without_space(net, trials, jobs):
    """From the n-th call on nothing can be written: one message, and nothing by half."""
    for job in jobs:
        with copied(job.before) as folder:
            fault = Fault(What.FULL)
            count = trials.run(folder, *job.words, fault=fault, settings=job.settings).calls
        for at in net.some(range(1, count + 1), 1, 12 if job.name == "train" else 30):
            with copied(job.before) as folder:
                fault = Fault(What.FULL, at)
                ended = trials.run(folder, *job.words, fault=fault, settings=job.settings)
                left = half_published(tree(folder), job.made)
                hidden = [name for name in tree(folder).keys() - tree(job.before).keys()
                          if is_hidden(name) and name.endswith(".tmp")]  # fmt: skip
                again = run_again(trials, folder, job)
                wrong = difference(later(trials, folder, job), job.made)
            told = ended.fine or (ended.told and is_full(ended.said))
            net.check(
                told and not left and not hidden and again.fine and not wrong,
                f"{job.name}, full at call {at} of {count}: {ended.status} {ended.said[-1500:]}; "
                f"half published: {left or 'nothing'}; temporaries: {hidden}; "
                f"run again: {again.status} {again.said[-800:]}; {wrong}",
            )


@pytest.fixture
def disk(tmp_path: Path):
    """A folder that can be mounted with a size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(kilobytes: int) -> Path:
        options = f"size={kilobytes}k" + (",remount" if folder.is_mount() else "")
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a full disk needs a small file system, and mount says: {done.stderr}")
        return folder

    yield size
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_small_disks(net, trials, jobs, disk):
    """Each job on disks of growing sizes, until it fits; then it is done on a larger one."""
    for job in net.some([job for job in jobs if "cache" in str(job.words[-1])], 2):
        need = sum(len(data or b"") for data in job.made.values()) // 1024
        for kilobytes in net.some(range(8, need + 200, 8), 1, 12):
            with copied(job.before) as folder:
                small = disk(10**5)
                for name in list(small.iterdir()):
                    subprocess.run(["rm", "-rf", str(name)], check=True)
                subprocess.run(["cp", "-a", f"{folder}/cache/.", str(small)], check=True)
                used = int(subprocess.run(["du", "-sk", str(small)], capture_output=True,
                                          text=True).stdout.split()[0])  # fmt: skip
                subprocess.run(["rm", "-rf", f"{folder}/cache"], check=True)
                (folder / "cache").symlink_to(small)
                disk(used + kilobytes)
                ended = trials.run(folder, *job.words, settings=job.settings)
                left = half_published(tree(folder), job.made)
                disk(10**5)
                again = run_again(trials, folder, job)
                wrong = difference(tree(folder), job.made)
            told = ended.fine or (ended.told and is_full(ended.said))
            net.check(
                told and not left and again.fine and not wrong,
                f"{job.name} with {kilobytes} kB: {ended.status} {ended.said[-1500:]}; half "
                f"published: {left or 'nothing'}; again: {again.status} {again.said[-500:]}; "
                f"{wrong}",
            )
