"""Documents as Hugging Face's tokenizer makes them, in plain Python and one at a time.

With nothing that makes token shards and caches: no engine, no mask and no cut is shared, so
that what is wrong there is found. Files are read as they are for those.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...documents import conversations
from ...documents.recipe import needed_columns
from ...sources import read
from ...sources.source import Piece
from .spoken import Conversation, NotCompared, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNTRAINED = -100


@dataclass(frozen=True)
class Window:
    """What of a document fits into max_length: its ids, and which of them are trained on."""

    ids: list[int]
    trained: list[bool]

    def labels(self, packed: bool) -> list[int]:
        """As transformers takes them; packed, the first one is predicted from nothing."""
        found = [i if t else UNTRAINED for i, t in zip(self.ids, self.trained, strict=True)]
        return [UNTRAINED, *found[1:]] if packed else found


@dataclass(frozen=True)
class Document:
    """A document's ids, special tokens included, and its windows by their first token."""

    ids: list[int]
    windows: dict[int, Window]


EMPTY = Document([], {})


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> PreTrainedTokenizerFast:
    """Caches of a tokenizer stand one after the other; to load one takes up to a second."""
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


class HuggingFace:
    """A cache's tokenizer as transformers loads it, on documents of one of its recipes."""

    def __init__(self, folder: Path, recipe: dict[str, Any], about: dict[str, Any]) -> None:
        self.tokenizer = _loaded(folder)
        self.recipe, self.settings = recipe, about["settings"]
        self.special = recipe["add_special_tokens"]
        self.prefix = len(about["tokenizer"]["prefix"]) if self.special else 0
        self.suffix = len(about["tokenizer"]["suffix"]) if self.special else 0
        # Post-processors trim spaces off the offsets, which tokens do hold.
        backend = self.tokenizer.backend_tokenizer
        self.untrimmed = copy.deepcopy(backend)
        self.untrimmed.encode_special_tokens = backend.encode_special_tokens
        self.untrimmed.post_processor = None
        self.untrimmed.no_truncation()  # which transformers leaves as the last call had it

    def documents(
        self, piece: Piece, digest: str, numbers: set[int] | None
    ) -> Iterator[tuple[int, Document | NotCompared]]:
        """Some documents of a piece of a source, or all, by their numbers in it; NotCompared for
        one that the rules leave open."""
        chat = self.recipe["form"] == "messages"
        rows = _chat_rows if chat else _text_rows
        for number, row in enumerate(rows(piece, needed_columns(self.recipe), digest)):
            if numbers is None or number in numbers:
                try:
                    yield number, self._of_chat(row) if chat else self._of_text(row)
                except NotCompared as why:
                    yield number, why

    def _of_text(self, row: dict[str, str | None]) -> Document:
        if not any(row.values()):
            return EMPTY
        text, spans = text_of(self.recipe, row)
        ids = self._ids(text)
        if spans is None:
            return self._cut(ids, [True] * len(ids), text)
        before = bool(spans) and spans[0][0] == 0
        after = bool(spans) and spans[-1][1] == len(text) and self.recipe.get("train_on_eos", True)
        inside = self._held(text, spans)
        trained = [before] * self.prefix + inside + [after] * self.suffix
        return self._cut(ids, trained, text)

    def _of_chat(self, row: dict[str, Any]) -> Document:
        recipe = self.recipe
        if conversations.is_empty(recipe, row):
            return EMPTY
        tools = conversations.tool_list(row.get(recipe.get("tools")))
        messages, first = conversations.of_row(recipe, row)
        template = recipe["tool_template"] if tools and "tool_template" in recipe else None
        said = Conversation(
            self.tokenizer, template or recipe["chat_template"], recipe["special_tokens"],
            conversations.conversation(messages), tools,
        )  # fmt: skip
        ids = self._ids(said.text)
        return self._cut(ids, self._trained(said, ids, first), said.text)

    def _trained(self, said: Conversation, ids: list[int], first: int) -> list[bool]:
        """Which tokens of a conversation are trained on."""
        if self.recipe["loss"] == "all":
            return [True] * len(ids)
        roles = self.recipe.get("roles_to_train", ["assistant"])
        eos = self.recipe.get("train_on_eos", True)
        named = [self.recipe[k] for k in ("chat_template", "tool_template") if k in self.recipe]
        marked = all("endgeneration" in template for template in named)
        if not marked or roles != ["assistant"] or not eos:
            return self._held(said.text, sorted(said.spans(first, roles, eos)))
        if self.recipe["loss"] == "completion":  # transformers has no mask of those
            return self._held(said.text, said.marked(first))
        theirs, trained = said.tokenized()
        if theirs != ids:
            raise NotCompared("apply_chat_template gives other ids than the tokenizer")
        return trained

    def _ids(self, text: str, **more: Any) -> list[int]:
        return self.tokenizer(text, add_special_tokens=self.special, **more)["input_ids"]

    def _held(self, text: str, spans: list[Span]) -> list[bool]:
        """Which tokens lie between the first and the last that hold a character of a span."""
        offsets = self.untrimmed.encode(text, add_special_tokens=False).offsets
        found = [False] * len(offsets)
        for start, stop in spans:
            some = [n for n, (a, b) in enumerate(offsets) if b > start and a < stop]
            for number in range(some[0], some[-1] + 1) if some else ():
                found[number] = True
        return found

    def _cut(self, ids: list[int], trained: list[bool], text: str) -> Document:
        """The windows of a document, each with its trained part."""
        length = self.settings["max_length"]
        if len(ids) != len(trained):
            raise NotCompared("the tokens' places in the text are unknown")
        if len(ids) <= self.prefix + self.suffix:
            return Document(ids, {})  # an empty one
        if len(ids) <= length:
            return Document(ids, {0: Window(ids, trained)})
        if self.settings["overflow"] == "truncate":
            return Document(ids, {0: self._truncated(ids, trained, text)})
        if self.settings["overflow"] == "drop":
            return Document(ids, {})
        starts = list(range(0, len(ids), length))
        # A last piece has more than special tokens.
        starts[-1] = min(starts[-1], len(ids) - self.suffix - 1)
        edges = [*starts, len(ids)]
        return Document(
            ids,
            {a: Window(ids[a:b], trained[a:b]) for a, b in pairwise(edges)},
        )

    def _truncated(self, ids: list[int], trained: list[bool], text: str) -> Window:
        """Special tokens at the end where something was cut off are not the document's own."""
        length, side = self.settings["max_length"], self.settings.get("truncation_side", "right")
        self.tokenizer.truncation_side = side
        kept = self._ids(text, truncation=True, max_length=length)
        if side == "right":
            own = trained[: length - self.suffix]
            return Window(kept, own + [False] * self.suffix)
        own = trained[len(ids) - length + self.prefix :]
        if self.prefix:  # the first token after them would be predicted from them
            own[0] = False
        return Window(kept, [False] * self.prefix + own)


def _chat_rows(piece: Piece, columns: list[str], digest: str) -> Iterator[dict[str, Any]]:
    for rows in read.read_rows(piece, columns, digest):
        yield from rows


def _text_rows(piece: Piece, columns: list[str], digest: str) -> Iterator[dict[str, str | None]]:
    for table in read.read_text(piece, columns, digest):
        yield from table.to_pylist()


def text_of(recipe: dict[str, Any], row: dict[str, str | None]) -> tuple[str, list[Span] | None]:
    """A row's text, and the characters of it that are trained on; None where all are."""

    def filled(parts: list[str | dict[str, str]]) -> str:
        texts = [part if isinstance(part, str) else row[part["column"]] for part in parts]
        return "".join(text or "" for text in texts)

    if recipe["form"] == "text":
        return filled(recipe["text"]), None
    with_input = "input" in recipe and filled(recipe["input"]) != ""
    prompt = filled(recipe["prompt_with_input" if with_input else "prompt"])
    text = prompt + filled(recipe["completion"])
    if recipe["loss"] == "all":
        return text, None
    start, stop = len(prompt), len(text) - recipe.get("untrained_end", 0)
    return text, [(start, stop)] if start < stop else []
