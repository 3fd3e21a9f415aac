"""What tokens stand for, as text to look at, and which ids are special, without a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...base.json_files import read_json
from ...tokenizer.given import TOKENIZER_FILE
from ...tokens.engines import SPACE_SIGN, byte_alphabet, fallback_bytes


@dataclass(frozen=True)
class TokenTexts:
    """tokens: how tokenizer.json spells each id; kind: how that is read, "bytes" (byte-level),
    "spaced" (SentencePiece's kind) or "plain"; special: ids that stand for no text; bos, eos,
    pad, unknown: ids, None where there is no such token."""

    tokens: dict[int, str] = field(default_factory=dict)
    kind: str = "plain"
    added: dict[int, str] = field(default_factory=dict)
    special: frozenset[int] = frozenset()
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unknown: int | None = None

    @classmethod
    def of(cls, folder: str | None, facts: dict[str, Any]) -> TokenTexts:
        """Of a tokenizer's folder; without one, ids stand for themselves."""
        if folder is None:
            return cls()
        content = read_json(Path(folder, TOKENIZER_FILE))
        model = content["model"]
        ids = _vocabulary(model["vocab"])
        added = {token["id"]: token["content"] for token in content["added_tokens"]}
        ids |= {text: number for number, text in added.items()}
        special = {token["id"] for token in content["added_tokens"] if token["special"]}
        special |= {*facts["prefix"], *facts["suffix"]}
        bos, eos = ids.get(facts["bos_token"]), ids.get(facts["eos_token"])
        # BERT's kind has [CLS] and [SEP] in their place.
        bos = facts["prefix"][0] if bos is None and facts["prefix"] else bos
        eos = facts["suffix"][-1] if eos is None and facts["suffix"] else eos
        unknown = model.get("unk_id", ids.get(model.get("unk_token")))
        return cls(
            tokens={number: text for text, number in ids.items()},
            kind=_kind(content, ids),
            added=added,
            special=frozenset(special),
            bos=bos,
            eos=eos,
            pad=ids.get(facts["pad_token"]),
            unknown=None if unknown in (bos, eos) else unknown,
        )

    def text(self, number: int) -> str:
        """A token's text; bytes that are no whole character, and unknown ids, as escapes."""
        if number in self.added:
            return self.added[number]
        if number not in self.tokens:
            return f"<{number}>"
        return self._bytes(self.tokens[number]).decode("utf-8", "backslashreplace")

    def about(self) -> dict[str, Any]:
        """The tokens that play a part, by their role."""
        roles = {name: getattr(self, name) for name in ("bos", "eos", "pad", "unknown")}
        return {
            name: None if number is None else {"id": number, "token": self.text(number)}
            for name, number in roles.items()
        }

    def _bytes(self, token: str) -> bytes:
        if self.kind == "bytes":
            return token.translate(_ALPHABET).encode("latin-1", "replace")
        if self.kind == "spaced":
            return fallback_bytes(token).replace(SPACE_SIGN.encode(), b" ")
        return token.encode()


_ALPHABET = str.maketrans(dict(byte_alphabet()))


def _vocabulary(vocab: dict[str, int] | list[list[Any]]) -> dict[str, int]:
    """A Unigram model lists its tokens with their weights."""
    if isinstance(vocab, dict):
        return dict(vocab)
    return {token: number for number, (token, _) in enumerate(vocab)}


def _kind(content: dict[str, Any], ids: dict[str, int]) -> str:
    if "ByteLevel" in set(_types(content["pre_tokenizer"])) | set(_types(content["decoder"])):
        return "bytes"
    return "spaced" if any(SPACE_SIGN in token for token in ids) else "plain"


def _types(part: Any) -> Iterator[str]:
    """The types of all steps of a part of tokenizer.json."""
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield part["type"]
        for inner in part.values():
            yield from _types(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _types(inner)
