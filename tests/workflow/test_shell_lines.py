"""What stands in a rule's shell line: no value, whatever it holds, is more than one word."""

import json
import string
import subprocess
from types import SimpleNamespace

import pytest
from conftest import make_tokenizer
from helpers.workflow import TINY, Workflow, rows
from snakemake.utils import format as snakemake_format

pytestmark = pytest.mark.xdist_group("shell_lines")

SAY = """
print("LINES", json.dumps({rule.name: rule.shellcmd for rule in workflow.rules if rule.shellcmd}))
"""
HOSTILE = [
    "a b",
    "$(touch PWNED)",
    "`touch PWNED`",
    "; touch PWNED;",
    "x' ; touch PWNED; '",
    'x" ; touch PWNED; "',
    "x\ntouch PWNED\n",
    "> PWNED",
    "&& touch PWNED #",
    "~",
    "* ? [a-z] {a,b}",
    "\\",
    "--base",
    "\t$HOME!!",
]
# Stands in for each command: writes down the words that it got.
COMMAND = """#!/bin/bash
printf '%s\\0' "$@" >"$RECORDS/${0##*/}"
if [ "${0##*/}" = tee ]; then cat; fi
"""


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """The shell line of each rule, as Snakemake read it."""
    folder = tmp_path_factory.mktemp("lines") / "w"
    make_tokenizer("bos_eos", folder / "tokenizer")
    config = {
        "models": {"one": {"tokenizer": "tokenizer"}},
        "datasets": {"qa": {"files": "data.jsonl", "document": {"text": "{prompt}"}}},
        "max_length": [32],
    }
    workflow = Workflow.new(folder, config, {"data.jsonl": rows(10)})
    with open(folder / "Snakefile", "a") as stream:
        stream.write("\nimport json\n" + SAY)
    found = {}
    for words in (("-n",), ("-n", "--delete-all-output")):
        [said] = [x for x in workflow.run(*words).splitlines() if x.startswith("LINES ")]
        found |= json.loads(said.removeprefix("LINES "))
    return found


def rendered(line, value):
    """A shell line as Snakemake renders it, where all that rules may name has this value."""
    named = [name.partition(".") for _, name, _, _ in string.Formatter().parse(line) if name]
    given = {"output": [value], "log": [value], "input": [value], "threads": 3}
    for kind in ("params", "wildcards"):
        values = {name: value for top, _, name in named if top == kind}
        if "within" in values:
            values["within"] = ["--within", value]
        given[kind] = SimpleNamespace(**values)
    assert {top for top, _, _ in named} <= set(given), line
    return snakemake_format(line, **given)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """A folder with what stands in for the commands of shell lines."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("tokencache", "python", "tee"):
        (folder / name).write_text(COMMAND)
        (folder / name).chmod(0o755)
    return folder


def words(line, commands, folder):
    """The words that the commands of a shell line get, in an empty folder that stays so."""
    work, records = folder / "work", folder / "records"
    for made in (work, records):
        made.mkdir(parents=True)
    environment = {"PATH": f"{commands}:/usr/bin:/bin", "RECORDS": str(records)}
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail; {line}"],
        cwd=work, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, (line, done.stderr)
    assert list(work.iterdir()) == [], line
    found = sorted(records.iterdir())
    assert len(found) == 2, line
    return [word for record in found for word in record.read_text().split("\0")[:-1]]


def test_every_rule_is_there(lines):
    assert {"fetch", "tokenize", "pack", "train", "build_image"} < set(lines)


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_value_stays_one_word(lines, commands, value, tmp_path):
    for rule, line in lines.items():
        if line == "false":
            continue
        plain = words(rendered(line, "plain"), commands, tmp_path / f"{rule}-plain")
        assert "plain" in plain, rule
        expected = [value if word == "plain" else word for word in plain]
        assert words(rendered(line, value), commands, tmp_path / rule) == expected, rule


def test_a_checkout_and_folders_with_hostile_names(tmp_path):
    folder = tmp_path / 'a check\'out of "mine" $(touch PWNED)'
    make_tokenizer("bos_eos", folder / "the tokenizer; touch PWNED")
    config = {
        "cache": "the $(touch PWNED) 'cache'",
        "results": 'the "results" `touch PWNED`',
        "models": {
            "one": {"tokenizer": "the tokenizer; touch PWNED", "architecture": TINY},
        },
        "datasets": {"qa": {"files": "my $(touch PWNED) data", "document": {"text": "{prompt}"}}},
        "max_length": [32],
        "training": {"max_steps": 1, "per_device_train_batch_size": 2},
    }
    workflow = Workflow.new(folder, config, {"my $(touch PWNED) data/a 'b'.jsonl": rows(20)})
    workflow.run()
    assert workflow.targets(config["cache"]) and workflow.targets(config["results"])
    assert not list(tmp_path.rglob("PWNED"))


def test_a_hostile_base_of_images(tmp_path):
    folder = tmp_path / "a check out"
    make_tokenizer("bos_eos", folder / "tokenizer")
    config = {
        "models": {"one": {"tokenizer": "tokenizer"}},
        "datasets": {"qa": {"files": "data.jsonl", "document": {"text": "{prompt}"}}},
        "max_length": [32],
        "containers": {"base": "docker://x$(touch PWNED)"},
    }
    workflow = Workflow.new(folder, config, {"data.jsonl": rows(10)})
    workflow.run("images", fails=True)
    assert not list(tmp_path.rglob("PWNED"))
