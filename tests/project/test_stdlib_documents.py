import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "stdlib_documents.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stdlib") / "made"
    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        str(folder / "qa.jsonl"),
        str(folder / "docs.jsonl"),
    ]
    return folder


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_thousands_of_questions_with_the_answers_of_the_docstrings(folder):
    qa = rows(folder / "qa.jsonl")
    assert len(qa) > 3000
    assert all(row["prompt"] and row["completion"] for row in qa)
    found = {row["prompt"]: row for row in qa}
    assert len(found) == len(qa)
    row = found["What does json.dumps do?"]
    assert row["completion"].startswith("Serialize ``obj`` to a JSON formatted ``str``.")
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
    assert row["messages"][1]["content"] == row["completion"]
    assert not any("idlelib" in prompt or "site-packages" in prompt for prompt in found)


def test_documents_are_each_there_once(folder):
    docs = rows(folder / "docs.jsonl")
    assert len(docs) > 300
    assert len({row["text"] for row in docs}) == len(docs)
    json_source = next(
        r["text"] for r in docs if r["module"] == "json.decoder" and "def " in r["text"]
    )
    assert ast.parse(json_source)
    assert not any(row["module"].startswith("test.") for row in docs)


def test_a_second_run_leaves_the_files_as_they_are(folder):
    files = sorted(folder.iterdir())
    before = [(f.name, f.stat().st_mtime_ns, f.stat().st_ino) for f in files]
    done = run(folder)
    assert done.returncode == 0
    assert done.stdout.count("unchanged") == 2
    assert [(f.name, f.stat().st_mtime_ns, f.stat().st_ino) for f in sorted(folder.iterdir())] == (
        before
    )


def test_a_file_that_differs_is_made_anew_with_the_same_bytes(folder):
    file = folder / "docs.jsonl"
    wanted = file.read_bytes()
    file.write_bytes(b"{}\n")
    assert run(folder).returncode == 0
    assert file.read_bytes() == wanted


def test_without_a_folder_it_says_how_it_is_used():
    done = run()
    assert done.returncode == 2
    assert "FOLDER" in done.stderr
    assert "Traceback" not in done.stderr
