#!/usr/bin/env python3
"""Real text that every machine has: documents made from Python's own standard library.

    python examples/stdlib_documents.py FOLDER

writes FOLDER/qa.jsonl, questions and answers from the docstrings of public functions,
classes and methods (a row is {"prompt", "completion", "messages"}), and FOLDER/docs.jsonl,
the topics of `help()` and the modules' sources and docstrings (a row is {"text", "module"}).
Nothing is imported but what is read here, and nothing is downloaded. A file that would come
out the same stays as it is, with its time of change.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

SKIPPED = {
    "__pycache__", "dist-packages", "ensurepip", "idle_test", "idlelib", "lib2to3",
    "pydoc_data", "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
SHORTEST = 20  # characters of an answer
LONGEST_SOURCE = 60_000  # characters of a module that becomes a document whole

Row = dict[str, object]


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Names and files of the modules under a folder, in the order of their names."""
    found = []
    for folder, inside, files in os.walk(root):
        inside[:] = [name for name in inside if name not in SKIPPED and "-" not in name]
        for file in files:
            path = Path(folder, file)
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            if path.suffix == ".py" and not file.startswith("_sysconfigdata"):
                found.append((name.removesuffix(".__init__"), path))
    return iter(sorted(found))


def parse(path: Path) -> tuple[str, ast.Module] | None:
    """A module's source and its tree, or None for one that this Python can't read."""
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return source, ast.parse(source)
    except (OSError, ValueError, SyntaxError, RecursionError):
        return None


def documented(name: str, node: ast.AST) -> Iterator[tuple[str, ast.AST, str]]:
    """(dotted name, node, docstring) of the public classes and functions in a module or class."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if child.name.startswith("_"):
            continue
        dotted = f"{name}.{child.name}"
        docstring = ast.get_docstring(child)
        if docstring:
            yield dotted, child, docstring
        if isinstance(child, ast.ClassDef):
            yield from documented(dotted, child)


def question(name: str, node: ast.AST) -> str:
    if isinstance(node, ast.ClassDef):
        return f"What is the class {name} for?"
    return f"What does {name} do?"


def signature(name: str, node: ast.AST) -> str | None:
    """How a function is called: its name with its parameters."""
    if isinstance(node, ast.ClassDef):
        return None
    return f"{name}({ast.unparse(node.args)})"


def row(prompt: str, completion: str) -> Row:
    messages = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": completion},
    ]
    return {"prompt": prompt, "completion": completion, "messages": messages}


def topics() -> dict[str, str]:
    """The texts of `help("TOPIC")`; some builds of Python come without them."""
    try:
        from pydoc_data.topics import topics as found
    except ImportError:
        return {}
    return found


def build(root: Path) -> tuple[list[Row], list[Row]]:
    """The rows of qa.jsonl and docs.jsonl, each text once, in the order of the names."""
    answers: dict[str, str] = {}
    texts: dict[str, str] = {text.strip(): topic for topic, text in sorted(topics().items())}
    seen: set[str] = set()
    for name, path in modules(root):
        parsed = parse(path)
        if parsed is None:
            continue
        source, tree = parsed
        docstring = ast.get_docstring(tree)
        if docstring and len(docstring) >= SHORTEST:
            seen.add(docstring)
            answers.setdefault(f"What is the module {name} for?", docstring)
            texts.setdefault(docstring, name)
        is_table = name.startswith("encodings.")
        if len(source) <= LONGEST_SOURCE and source.strip() and not is_table:
            texts.setdefault(source, name)
        if name.startswith("_") or "._" in name:
            continue
        for dotted, node, text in documented(name, tree):
            if len(text) < SHORTEST or text in seen:
                continue
            seen.add(text)
            answers.setdefault(question(dotted, node), text)
            called = signature(dotted, node)
            if called:
                answers.setdefault(f"How is {dotted} called?", f"{called}\n\n{first_line(text)}")
    qa = [row(prompt, completion) for prompt, completion in answers.items()]
    return qa, [{"text": text, "module": name} for text, name in texts.items() if text]


def first_line(docstring: str) -> str:
    return inspect.cleandoc(docstring).split("\n\n")[0]


def write(path: Path, rows: list[Row]) -> None:
    """Write JSON Lines by one rename, or leave a file that holds just these rows."""
    lines = [json.dumps(r, ensure_ascii=False) + "\n" for r in rows]
    data = "".join(lines).encode("utf-8", "replace")
    same = path.is_file() and path.read_bytes() == data
    if not same:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    print(f"{path}: {len(rows):,} rows, {len(data):,} bytes" + (", unchanged" if same else ""))


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    qa, docs = build(Path(sysconfig.get_path("stdlib")))
    if not qa:
        print("the standard library has no docstrings here; is its source there?", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "qa.jsonl", qa)
    write(folder / "docs.jsonl", docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
