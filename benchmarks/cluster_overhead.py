"""What a cluster adds to a job: cluster_overhead.py [SNAKEMAKE OPTION…]

In a folder of the workflow: calls `snakemake caches --profile slurm OPTION…` with its sbatch
watched, and prints for each job the seconds from its submission to its start (SLURM), from
there to its command (Snakemake, and the container's start), and those of the command.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WRAPPER = """#!/bin/sh
from=$(date +%s.%N)
id=$({sbatch} "$@") || exit
echo "$id $from $(date +%s.%N)" >>{calls}
echo "$id"
"""
SUBMITTED = re.compile(r"Job (\d+) has been submitted with SLURM jobid (\d+) \(log: (.+)\)")
RULE = re.compile(r"^rule (\w+):.*?^    log: (\S+).*?^    jobid: (\d+)$", re.MULTILINE | re.DOTALL)


def born(file):
    """When a file was made, which Python's stat does not say."""
    found = subprocess.run(["stat", "--format", "%.W", file], capture_output=True, text=True)
    return float(found.stdout)


def main():
    with tempfile.TemporaryDirectory() as folder:
        calls = Path(folder, "calls")
        wrapper = Path(folder, "sbatch")
        wrapper.write_text(WRAPPER.format(sbatch=shutil.which("sbatch"), calls=calls))
        wrapper.chmod(0o755)
        command = ["snakemake", "caches", "--profile", "slurm", "--slurm-keep-successful-logs"]
        path = os.pathsep.join([folder, os.environ["PATH"]])
        done = subprocess.run(
            [*command, *sys.argv[1:]], env=os.environ | {"PATH": path},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.stdout)
        times = {words[0]: words[1:] for words in map(str.split, calls.read_text().splitlines())}
    logs = {job: (rule, log) for rule, log, job in RULE.findall(done.stdout)}
    print(f"{len(times)} calls of sbatch")
    print("rule             sbatch  queue  to command  command")
    for job, slurm, slurm_log in SUBMITTED.findall(done.stdout):
        rule, log = logs[job]
        called, answered = map(float, times[slurm])
        started, begun, ended = born(slurm_log), born(log), Path(log).stat().st_mtime
        spent = (answered - called, max(started - answered, 0), begun - started, ended - begun)
        print(f"{rule:15}  {spent[0]:6.2f}  {spent[1]:5.2f}  {spent[2]:10.2f}  {spent[3]:7.2f}")


if __name__ == "__main__":
    main()
