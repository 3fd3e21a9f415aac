"""The command line itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tokencache import cli


def test_numbers_of_threads_are_set_before_libraries_that_read_them_are_loaded():
    look = "import sys, tokencache.cli; print(*{'numpy', 'pyarrow', 'torch'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert (loaded.stdout, loaded.stderr) == ("\n", "")


@pytest.mark.parametrize("words", [("trace",), ("pin",), ("pack", "--plan")])
def test_a_name_that_no_file_can_have(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = "models: {one: {tokenizer: t}}\ndatasets: {a: {files: a.jsonl}}\nmax_length: 8\n"
    (tmp_path / "config.yaml").write_text(config)
    target = ["cache/a"] if words[0] == "pack" else []
    assert cli.main([*words, "x" * 5000, *target]) == 1
    said = capsys.readouterr().err
    assert said.startswith("tokencache: ") and said.count("\n") == 1
