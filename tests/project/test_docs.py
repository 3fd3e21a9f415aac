"""The documentation: its site builds with every link whole, and its commands exist."""

import re
import shlex
import subprocess
import sys

import pytest
from helpers.workflow import ROOT
from snakemake.cli import get_argument_parser

from tokencache import cli

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page, program):
    """The calls of a program in a page's blocks, as words; continued lines are one."""
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ")
            if re.match(rf"(\w+=\S+ )*{program} ", line) and "…" not in line:
                words = shlex.split(line, comments=True)
                yield line, words[words.index(program) + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page, capsys):
    for line, words in commands(page, "snakemake"):
        if not line.startswith("snakemake:"):
            get_argument_parser(profiles=[]).parse_args(words)
    for line, words in commands(page, "tokencache"):
        if not re.match(r"tokencache( \S+)* on |tokencache:|tokencache \d", line):
            cli.parser(words[0]).parse_args(words)
    assert "error" not in capsys.readouterr().err


def test_the_site_is_whole(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= {path.name for path in (tmp_path / "site").iterdir()}
    named = (ROOT / "mkdocs.yml").read_text()
    assert all(f"{page}.md" in named for page in pages), "a page that the site's menu lacks"
    # What links lead to outside of docs/ is not on the site; it must be there all the same.
    for page in PAGES:
        for link in re.findall(r"\]\(((?!https?:)[^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), (page.name, link)


def test_what_is_guaranteed_is_tested():
    """Each test that guarantees.md names is there."""
    text = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
    file = None
    for named, name in re.findall(r"`((?:\w+/)?test_\w+\.py)?(?:::(test_\w+))?`", text):
        if not named and not name:
            continue
        file = ROOT / "tests" / named if named else file
        assert file.exists(), named
        if name:
            assert f"def {name}(" in file.read_text(encoding="utf-8"), (named, name)
