"""Documents as Hugging Face's tokenizer makes them, with none of the engines here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import chat, conversations, documents, sources, templates
from ..gather import IGNORED
from ..readers import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Window:
    """What of a document fits into max_length: its ids, and which of them are trained on."""

    ids: list[int]
    trained: list[bool]

    def labels(self, packed: bool) -> list[int]:
        """As transformers takes them; packed, the first one is predicted from nothing."""
        found = [i if t else IGNORED for i, t in zip(self.ids, self.trained, strict=True)]
        return [IGNORED, *found[1:]] if packed else found


@dataclass(frozen=True)
class Document:
    """A document's ids, special tokens included, and its windows by their first token."""

    ids: list[int]
    windows: dict[int, Window]

    def window(self, start: int) -> Window:
        """The window that begins with token number `start`."""
        return self.windows[start]


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
        special = recipe["add_special_tokens"]
        self.prefix = len(about["tokenizer"]["prefix"]) if special else 0
        self.suffix = len(about["tokenizer"]["suffix"]) if special else 0
        # Post-processors trim spaces off the offsets, which tokens do hold.
        backend = self.tokenizer.backend_tokenizer
        self.untrimmed = copy.deepcopy(backend)
        self.untrimmed.encode_special_tokens = backend.encode_special_tokens
        self.untrimmed.post_processor = None
        self.untrimmed.no_truncation()  # which transformers leaves as the last call had it

    def documents(
        self, piece: Piece, digest: str, numbers: set[int]
    ) -> Iterator[tuple[int, Document]]:
        """Some documents of a piece of a source, by their numbers in it."""
        if self.recipe["form"] == "messages":
            yield from self._chats(piece, digest, numbers)
            return
        first = 0
        for batch in documents.render(self.recipe, piece, digest):
            spans = batch.spans and batch.spans.lists()
            for number in range(first, first + len(batch.texts)):
                if number in numbers:
                    text = batch.texts[number - first].as_py()
                    yield number, self._text(text, spans and spans[number - first])
            first += len(batch.texts)

    def _text(self, text: str, spans: list[tuple[int, int]] | None) -> Document:
        given = {"add_special_tokens": self.recipe["add_special_tokens"]}
        whole = self.tokenizer(text, **given)["input_ids"]
        trained = [True] * len(whole)
        if spans is not None:
            inside = self._held(text, spans)
            before = bool(spans) and spans[0][0] == 0
            after = bool(spans) and spans[-1][1] == len(text)
            trained = [before] * self.prefix + inside + [after] * self.suffix
        cut = whole
        if self.settings["overflow"] == "truncate":
            length = self.settings["max_length"]
            cut = self.tokenizer(text, truncation=True, max_length=length, **given)["input_ids"]
        return self._cut(whole, trained, cut)

    def _held(self, text: str, spans: list[tuple[int, int]]) -> list[bool]:
        """Which tokens lie between the first and the last that hold a character of a span."""
        offsets = self.untrimmed.encode(text, add_special_tokens=False).offsets
        found = [False] * len(offsets)
        for start, stop in spans:
            some = [n for n, (a, b) in enumerate(offsets) if b > start and a < stop]
            for number in range(some[0], some[-1] + 1) if some else ():
                found[number] = True
        return found

    def _cut(self, whole: list[int], trained: list[bool], cut: list[int]) -> Document:
        """The windows of a document, each with what of it is trained on.

        cut: its ids as Hugging Face truncates them.
        """
        if self.settings["overflow"] != "split":
            if len(cut) < len(whole):  # the end that was put there is not the document's own
                trained = trained[: len(cut) - self.suffix] + [False] * self.suffix
            return Document(whole, {0: Window(cut, trained)})
        starts = list(range(0, max(1, len(whole)), self.settings["max_length"]))
        if starts[1:]:  # the last window has more than special tokens
            starts[-1] = min(starts[-1], len(whole) - self.suffix - 1)
        stops = [*starts[1:], len(whole)]
        return Document(
            whole,
            {a: Window(whole[a:b], trained[a:b]) for a, b in zip(starts, stops, strict=True)},
        )

    def _chats(
        self, piece: Piece, digest: str, numbers: set[int]
    ) -> Iterator[tuple[int, Document]]:
        recipe, number = self.recipe, 0
        masked = recipe["loss"] == "assistant"
        template = chat.Chat(recipe["chat_template"], recipe["special_tokens"], masked)
        marked = masked and templates.inspect(recipe["chat_template"]).generation
        for rows in sources.read_rows(piece, documents.needed_columns(recipe), digest):
            for row in rows:
                if number in numbers:
                    yield number, self._chat(row, template, masked, marked)
                number += 1

    def _chat(self, row: dict, template: chat.Chat, masked: bool, marked: bool) -> Document:
        messages, tools = row.get(self.recipe["messages"]), row.get(self.recipe.get("tools"))
        found = self.tokenizer.apply_chat_template(
            conversations.conversation(messages),
            tools=conversations.tool_list(tools),
            chat_template=template.template,
            return_dict=True,
            return_assistant_tokens_mask=marked,
            **self.recipe["special_tokens"],
        )
        whole = found["input_ids"]
        trained = [True] * len(whole)
        if marked:
            trained = [bool(mask) for mask in found["assistant_masks"]]
        elif masked:  # transformers has no mask of such templates: the text's spans are ours
            trained = self._held(*template.document(messages, tools))
        length = self.settings["max_length"]
        cut = whole[:length] if self.settings["overflow"] == "truncate" else whole
        return self._cut(whole, trained, cut)
