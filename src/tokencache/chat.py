"""Conversations as text through a model's chat template, and what the assistant says in them.

The text is that of transformers' `apply_chat_template(messages, tools=tools, tokenize=False)`,
but for the clock: a template that asks for today's date (`strftime_now`) would make
other documents every day under one key, so it is told 26 July 2024, the date that
Llama's templates fall back to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, LoopControlExtension

from .conversations import conversation, tool_list
from .errors import UserError

Span = tuple[int, int]  # characters [start, stop) of a text

# Written out: strftime would answer in the language of the machine.
_TODAY = {
    "%d": "26", "%-d": "26", "%e": "26", "%j": "208", "%a": "Fri", "%A": "Friday",
    "%m": "07", "%-m": "7", "%b": "Jul", "%B": "July", "%y": "24", "%Y": "2024",
    "%F": "2024-07-26", "%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM",
}  # fmt: skip

# A macro of that name hides the function that transformers gives to templates. Its own
# newline goes with it (trim_blocks), so the template begins at the start of a line still.
_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f"|replace('{directive}', '{value}')" for directive, value in _TODAY.items())
    + " }}{% endmacro %}\n"
)

_TEMPLATE_KEY = "models.NAME.chat_template"


@dataclass(frozen=True)
class Template:
    """What a chat template's source says about it."""

    variables: frozenset[str]  # the names that it takes from outside
    generation: bool  # marks with {% generation %} what the assistant says
    hidden: bool  # has such a mark in a macro, where transformers counts from a wrong place


class _Generation(Extension):
    """Reads {% generation %} as a Scope node, which only `autoescape` of the core tags makes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@lru_cache
def template_text(given: str | None) -> str | None:
    """Jinja text as it is; what has no brace in it is the path of a file that holds it."""
    if given is None or "{" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"chat_template: {given}: {reason}; give Jinja text or a file with it"
        ) from None


def inspect(template: str) -> Template:
    """Parse a chat template without running it. Raises UserError where it can't be used."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension]
    )
    environment.globals.clear()  # so that the names of globals are found, too
    try:
        tree = environment.parse(template)
        names = frozenset(meta.find_undeclared_variables(tree))
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"the chat template has an error in its line {error.lineno}: {error.message}; "
            f"mend it or give another one: {_TEMPLATE_KEY}"
        ) from None
    if "lipsum" in names or any(f.name == "random" for f in tree.find_all(nodes.Filter)):
        raise UserError(
            "the chat template draws at random, so the same rows would give other documents "
            f"every time; give one without `random` and `lipsum`: {_TEMPLATE_KEY}"
        )
    buffers = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock)
    return Template(
        variables=names,
        generation=_marks(tree),
        hidden=any(_marks(buffer) for buffer in tree.find_all(buffers)),
    )


def _marks(tree: nodes.Node) -> bool:
    """Whether there is a {% generation %} in it."""
    escape = nodes.ScopedEvalContextModifier
    scopes = tree.find_all(nodes.Scope)
    return any(not (scope.body and isinstance(scope.body[0], escape)) for scope in scopes)


class Chat:
    """One chat template and its special tokens; `spans` says whether to look for the assistant.

    roles: whose messages are trained on; eos: whether the end of such a message is, too.
    """

    def __init__(
        self,
        template: str,
        special_tokens: dict[str, str],
        spans: bool,
        roles: Sequence[str] = ("assistant",),
        eos: bool = True,
    ) -> None:
        # Imported here: it takes a second, and most commands render nothing.
        from transformers.utils.chat_template_utils import render_jinja_template

        self._render_jinja = render_jinja_template
        self._about = inspect(template)
        self._template = template
        if "strftime_now" in self._about.variables:
            self._template = _CLOCK + template
        self._special_tokens = special_tokens
        self._spans, self._roles, self._eos = spans, set(roles), eos
        # What marks in the template say is what the assistant says, whole.
        self._by_marks = self._about.generation and self._roles == {"assistant"} and eos

    @property
    def template(self) -> str:
        """The template's source as it is rendered, with the date that it is told."""
        return self._template

    def document(self, messages: Any, tools: Any, first: int = 0) -> tuple[str, list[Span] | None]:
        """One row's text, and the spans that the assistant says (None where not looked for).

        first: the number of the first message that may be trained on. Raises UserError
        (without file and row, which the caller knows) for messages or tools of another
        shape, for a template that refuses them, and where it can't be known what the
        assistant says.
        """
        chat, tools = conversation(messages), tool_list(tools)
        if not self._spans:
            return self._render(chat, tools)[0], None
        if self._by_marks and not any(m["role"] in self._roles for m in chat[:first]):
            text, found = self._render(chat, tools, mark=True)
            return text, [(start, stop) for start, stop in found if start < stop]
        text, _ = self._render(chat, tools)
        return text, self._by_prefixes(text, chat, tools, first)

    def _render(
        self, chat: list[dict], tools: list[dict] | None, prompt: bool = False, mark: bool = False
    ) -> tuple[str, list[Span]]:
        try:
            texts, spans = self._render_jinja(
                conversations=[chat],
                tools=tools,
                chat_template=self._template,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=mark,
                **self._special_tokens,
            )
        except Exception as error:  # a template is a program of the user's: it may raise anything
            kind = "" if type(error) is jinja2.TemplateError else f"{type(error).__name__}: "
            raise UserError(
                f"the chat template refuses these messages: {kind}{error}; "
                f"mend the row, or give the model another template: {_TEMPLATE_KEY}"
            ) from None
        return texts[0], spans[0] if mark else []

    def _by_prefixes(
        self, text: str, chat: list[dict], tools: list[dict] | None, first: int
    ) -> list[Span]:
        """Spans of a template that marks nothing: what each assistant message adds to the text.

        Two renders a message of the assistant's, less one for a last message.
        """
        spans = []
        for number, message in enumerate(chat):
            if message["role"] not in self._roles or number < first:
                continue
            try:
                last = number == len(chat) - 1
                upto = text if last else self._render(chat[: number + 1], tools)[0]
                start = self._start(chat[:number], message, tools, upto)
            except UserError as error:
                raise _untraceable(number, str(error)) from None
            if not text.startswith(upto):
                raise _untraceable(number, "the template writes it otherwise when more follows")
            if start is None:
                raise _untraceable(number, "the template rewrites what stands before it")
            # The newline after the end token starts the next turn: nobody generates it.
            stop = len(upto.rstrip()) if self._eos else _end(upto, start, message, number)
            if start < stop:
                spans.append((start, stop))
        return spans

    def _start(
        self, before: list[dict], message: dict, tools: list[dict] | None, upto: str
    ) -> int | None:
        """Where the message that ends `upto` begins, its header left out where that is known."""
        if message["role"] != "assistant":
            prefix = self._render(before, tools)[0] if before else ""
            if not upto.startswith(prefix):
                return None
            found = _place(upto, len(prefix), message)
            return len(prefix) if found is None else found[0]
        for prompt in (True, False):
            prefix, _ = self._render(before, tools, prompt=prompt)
            if upto.startswith(prefix):
                return len(prefix)
        return None


def _place(text: str, start: int, message: dict[str, Any]) -> Span | None:
    """Where a message's own words stand last in a text, if they do as they are or trimmed."""
    content = message.get("content")
    if isinstance(content, str):
        for words in (content, content.strip()):
            at = text.rfind(words, start)
            if at >= 0:
                return at, at + len(words)
    return None


def _end(text: str, start: int, message: dict[str, Any], number: int) -> int:
    """Where the words of a message end and the tokens that end its turn begin."""
    found = None if message.get("tool_calls") else _place(text, start, message)
    if found is None:
        raise UserError(
            f"train_on_eos: false: it can't be told where message {number + 1} ends and its end "
            "token begins, for it calls tools or the template rewrites it; take train_on_eos: true"
        )
    return found[1] if message["content"] else start


def _untraceable(number: int, why: str) -> UserError:
    return UserError(
        f"loss: assistant: it can't be told where the assistant speaks in message {number + 1}: "
        f"{why}. Mark it in the chat template with {{% generation %}} … {{% endgeneration %}} "
        f"({_TEMPLATE_KEY}), or take loss: all"
    )
