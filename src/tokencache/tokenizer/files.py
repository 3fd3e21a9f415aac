"""The files of a given tokenizer, and what AutoTokenizer makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.publish import check_name
from ..errors import UserError

if TYPE_CHECKING:
    from ..config.references import Reference

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"

# The files of a folder that AutoTokenizer may look at; weights lie beside them.
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "config.json", "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "chat_template.json",
    "*.model", "*.tiktoken", "*.jinja", "additional_chat_templates/*.jinja", "*.py",
)  # fmt: skip
CONFIGURATION = {"config.json", "special_tokens_map.json", "tokenizer_config.json"}

# The libraries make a table with a place for each id up to the largest one.
MOST_IDS = 2**24


def files_of(ref: Reference) -> list[Path]:
    """The local files that a path reference consists of, sorted; weights are left out.

    Raises UserError where there is no such path or no tokenizer in it.
    """
    path = Path(ref.path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"there is no file or folder {path}")
    found = {file for pattern in FILES for file in path.glob(pattern) if file.is_file()}
    for file in found:
        check_name(file)
    if not {file.name for file in found if file.suffix not in (".py", ".jinja")} - CONFIGURATION:
        raise UserError(f"the folder {path} holds no tokenizer: there is no tokenizer.json in it")
    return sorted(found)


def load(ref: Reference, trust_remote_code: bool) -> Any:
    """What AutoTokenizer makes of a reference; fast or slow.

    Raises UserError for ids that the libraries would end the process at, and whatever they raise.
    """
    # Imported here: it takes a second, and most commands need no tokenizer.
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if ref.hub:
        _check_ids(json_file(ref))
        return AutoTokenizer.from_pretrained(
            ref.hub, revision=ref.revision, trust_remote_code=trust_remote_code
        )
    for file in files_of(ref):
        _check_ids(file)
    if Path(ref.path).is_file():
        return PreTrainedTokenizerFast(tokenizer_file=ref.path)
    return AutoTokenizer.from_pretrained(
        ref.path, local_files_only=True, trust_remote_code=trust_remote_code
    )


def json_file(ref: Reference) -> Path | None:
    """The tokenizer.json of a reference, if it has one."""
    if ref.hub:
        from transformers.utils import cached_file

        found = cached_file(
            ref.hub,
            TOKENIZER_FILE,
            revision=ref.revision,
            _raise_exceptions_for_missing_entries=False,
        )
        return None if found is None else Path(found)
    path = Path(ref.path)
    path = path / TOKENIZER_FILE if path.is_dir() else path
    return path if path.is_file() else None


def _check_ids(file: Path | None) -> None:
    """Raises UserError for ids so large that a table of all ids would not fit into memory."""
    if file is None or file.suffix != ".json":
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return  # its reader says what is wrong
    for token, number in _ids(file.name, content):
        if isinstance(number, int) and number >= MOST_IDS:
            raise UserError(
                f"{file}: the token {token!r} has the id {number:,}; ids must be below "
                f"{MOST_IDS:,}; correct the file"
            )


def _ids(name: str, content: Any) -> Iterator[tuple[Any, Any]]:
    """The tokens with their ids that a JSON file of a tokenizer names."""
    if not isinstance(content, dict):
        return
    if name in ("vocab.json", "added_tokens.json"):
        yield from content.items()
    model, added = content.get("model"), content.get("added_tokens")
    if isinstance(model, dict) and isinstance(model.get("vocab"), dict):
        yield from model["vocab"].items()
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict):
            yield token.get("content"), token.get("id")
    decoder = content.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        if str(number).isdecimal():
            yield token.get("content") if isinstance(token, dict) else token, int(number)
