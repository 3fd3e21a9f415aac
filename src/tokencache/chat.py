"""Conversations as text through a model's chat template, and what the assistant says in them.

The text is that of transformers' `apply_chat_template(messages, tools=tools, tokenize=False)`,
but for the clock: a template that asks for today's date (`strftime_now`) would make
other documents every day under one key, so it is told 26 July 2024, the date that
Llama's templates fall back to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, LoopControlExtension

from .errors import UserError

Span = tuple[int, int]  # characters [start, stop) of a text

# The fields of ShareGPT's {from, value} in the words of {role, content}.
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
}

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


def conversation(value: Any) -> list[dict[str, Any]]:
    """A row's messages as {role, content, …}, without the keys that are null.

    Takes {role, content} and ShareGPT's {from, value}. Raises UserError for
    anything else, naming the message by its number, from 1.
    """
    if not isinstance(value, list) or not value:
        said = "an empty list" if value == [] else _kind(value)
        raise UserError(f"the messages are {said}; needed is a list of {{role, content}}")
    return [_message(message, number) for number, message in enumerate(value, start=1)]


def _message(message: Any, number: int) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise UserError(f"message {number} is {_kind(message)}; needed is {{role, content}}")
    message = {key: value for key, value in message.items() if value is not None}
    if "role" not in message and "from" in message:
        message = _from_sharegpt(message, number)
    if not isinstance(message.get("role"), str):
        keys = ", ".join(map(str, message)) or "none"
        raise UserError(f"message {number} has no role; its keys: {keys}")
    return message


def _from_sharegpt(message: dict[str, Any], number: int) -> dict[str, Any]:
    role = message.pop("from")
    if not isinstance(role, str) or role not in SHAREGPT_ROLES:
        raise UserError(
            f"message {number} is from {role!r}; known are {', '.join(SHAREGPT_ROLES)} "
            "(write {role, content} for other roles)"
        )
    if "value" in message:
        message["content"] = message.pop("value")
    return {"role": SHAREGPT_ROLES[role], **message}


def tool_list(value: Any) -> list[dict[str, Any]] | None:
    """A row's tools as a list of JSON schemas; text is read as JSON; an empty list is none.

    Raises UserError for anything else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UserError(f"the tools are text that is no JSON: {error}") from None
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UserError(f"the tools are {_kind(value)}; needed is a list of JSON schemas")
    return value


def _kind(value: Any) -> str:
    """What a JSON value is, for a message to the user."""
    names = {str: "text", list: "a list", dict: "a mapping", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


class Chat:
    """One chat template and its special tokens; `spans` says whether to look for the assistant."""

    def __init__(self, template: str, special_tokens: dict[str, str], spans: bool) -> None:
        # Imported here: it takes a second, and most commands render nothing.
        from transformers.utils.chat_template_utils import render_jinja_template

        self._render_jinja = render_jinja_template
        self._about = inspect(template)
        self._template = template
        if "strftime_now" in self._about.variables:
            self._template = _CLOCK + template
        self._special_tokens = special_tokens
        self._spans = spans

    @property
    def template(self) -> str:
        """The template's source as it is rendered, with the date that it is told."""
        return self._template

    def document(self, messages: Any, tools: Any) -> tuple[str, list[Span] | None]:
        """One row's text, and the spans that the assistant says (None where not looked for).

        Raises UserError (without file and row, which the caller knows) for messages
        or tools of another shape, for a template that refuses them, and where it can't
        be known what the assistant says.
        """
        chat, tools = conversation(messages), tool_list(tools)
        if not self._spans:
            return self._render(chat, tools)[0], None
        if self._about.generation:
            text, found = self._render(chat, tools, mark=True)
            return text, [(start, stop) for start, stop in found if start < stop]
        text, _ = self._render(chat, tools)
        return text, self._by_prefixes(text, chat, tools)

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

    def _by_prefixes(self, text: str, chat: list[dict], tools: list[dict] | None) -> list[Span]:
        """Spans of a template that marks nothing: what each assistant message adds to the text.

        Two renders a message of the assistant's, less one for a last message.
        """
        spans = []
        for number, message in enumerate(chat):
            if message["role"] != "assistant":
                continue
            try:
                last = number == len(chat) - 1
                upto = text if last else self._render(chat[: number + 1], tools)[0]
                start = self._start(chat[:number], tools, upto)
            except UserError as error:
                raise _untraceable(number, str(error)) from None
            if not text.startswith(upto):
                raise _untraceable(number, "the template writes it otherwise when more follows")
            if start is None:
                raise _untraceable(number, "the template rewrites what stands before it")
            # The newline after the end token starts the next turn: nobody generates it.
            stop = len(upto.rstrip())
            if start < stop:
                spans.append((start, stop))
        return spans

    def _start(self, before: list[dict], tools: list[dict] | None, upto: str) -> int | None:
        """Where the message that ends `upto` begins, its header left out where that is known."""
        for prompt in (True, False):
            prefix, _ = self._render(before, tools, prompt=prompt)
            if upto.startswith(prefix):
                return len(prefix)
        return None


def _untraceable(number: int, why: str) -> UserError:
    return UserError(
        f"loss: assistant: it can't be told where the assistant speaks in message {number + 1}: "
        f"{why}. Mark it in the chat template with {{% generation %}} … {{% endgeneration %}} "
        f"({_TEMPLATE_KEY}), or take loss: all"
    )
