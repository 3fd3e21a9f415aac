"""Which characters of a conversation's text are trained on, told by the words of the recipe.

docs/how-it-works.md has the rules. This follows them one message at a time, with transformers'
`apply_chat_template` and a placeholder, and shares nothing with what makes token shards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any

import jinja2

Message = dict[str, Any]
Span = tuple[int, int]

TODAY = datetime(2024, 7, 26)  # what a template that asks for the date is told
PLACEHOLDER = "7{number}350148206"
BESIDE = ("reasoning_content", "thinking", "reasoning", "tool_calls")
OPEN_MARK = re.compile(r"[<\[][^<>\[\]]*$")


class NotCompared(Exception):
    """It can't be told here what is right; the message says why."""


class Conversation:
    """One row's messages as a tokenizer's chat template writes them.

    template: the one for this row; special_tokens: what the recipe gives it of those.
    """

    def __init__(
        self, tokenizer: Any, template: str, special_tokens: dict[str, str],
        chat: list[Message], tools: list[Message] | None,
    ) -> None:  # fmt: skip
        self._tokenizer, self._template = tokenizer, template
        self._given = {"tools": tools, "strftime_now": TODAY.strftime, **special_tokens}
        self.chat = chat
        self._check_calls()
        self.text = self._written(chat)

    def _written(self, chat: list[Message], prompt: bool = False) -> str:
        """The text of some messages. Raises NotCompared where the template refuses them."""
        try:
            return self._tokenizer.apply_chat_template(
                chat,
                chat_template=self._template,
                add_generation_prompt=prompt,
                tokenize=False,
                **self._given,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise NotCompared(f"apply_chat_template refuses the messages: {error}") from None

    def _check_calls(self) -> None:
        """Raises NotCompared where a message that only calls tools is lost."""
        for message in self.chat:
            if message.get("tool_calls") and message.get("content") is None:
                called = _called(message["tool_calls"])
                with suppress(NotCompared):
                    if called in self._written(self.chat):
                        continue
                raise NotCompared("the template wants `content: none` beside calls of tools")

    def tokenized(self) -> tuple[list[int], list[bool]]:
        """transformers' own ids, and its mask of what {% generation %} marks."""
        found = self._tokenizer.apply_chat_template(
            self.chat,
            chat_template=self._template,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **self._given,
        )
        return found["input_ids"], [bool(mask) for mask in found["assistant_masks"]]

    def marked(self, first: int) -> list[Span]:
        """What {% generation %} marks of the messages from number `first` on."""
        from transformers.utils.chat_template_utils import render_jinja_template

        _, [spans] = render_jinja_template(
            conversations=[self.chat],
            chat_template=self._template,
            return_assistant_tokens_mask=True,
            **self._given,
        )
        begin = 0
        if any(message["role"] == "assistant" for message in self.chat[:first]):
            mark = self._placeholder()
            other = _saying(mark, self.chat[first])
            begin = _shared(self.text, self._around(mark, [*self.chat[:first], other])[0])
        return [(start, stop) for start, stop in spans if max(start, begin) < stop]

    def spans(self, first: int, roles: list[str], eos: bool) -> Iterator[Span]:
        """The spans of the messages of some roles, from number `first` on."""
        for number, message in enumerate(self.chat):
            if number >= first and message["role"] in roles:
                start, stop = self._span(number, eos)
                if start < stop:
                    yield start, stop

    def _span(self, number: int, eos: bool) -> Span:
        message, before = self.chat[number], self.chat[:number]
        mark = self._placeholder()
        other = _saying(mark, message)
        head, tail = self._around(mark, [*before, other, *self.chat[number + 1 :]])
        if not self.text.endswith(tail):
            raise NotCompared(f"the template writes what follows message {number + 1} otherwise")
        start = _shared(self.text, head)
        stop = max(start, len(self.text) - len(tail))
        start = self._after_prompt(number, start, head)
        if not eos:
            return start, stop
        end = self._around(mark, [*before, other])[1].rstrip()
        if self.text.startswith(end, stop):
            return start, stop + len(end)
        end = end[: _shared(end, self.text[stop:])]
        end = OPEN_MARK.sub("", end).rstrip()
        if not end:
            raise NotCompared(f"the template ends message {number + 1} otherwise than a last one")
        return start, stop + len(end)

    def _after_prompt(self, number: int, start: int, head: str) -> int:
        """Where an assistant's message begins: behind the generation prompt, if there is one."""
        if number == 0 or self.chat[number]["role"] != "assistant":
            return start
        try:
            prompt = self._written(self.chat[:number], prompt=True)
            without = self._written(self.chat[:number])
        except NotCompared:
            return start
        if prompt == without or not self.text.startswith(prompt):
            return start
        if not head.startswith(prompt):
            raise NotCompared(f"what message {number + 1} begins with depends on what it says")
        return len(prompt)

    def _around(self, mark: str, chat: list[Message]) -> tuple[str, str]:
        parts = self._written(chat).split(mark)
        if len(parts) != 2:
            raise NotCompared("the template writes a message's words not once, or changes them")
        return parts[0], parts[1]

    def _placeholder(self) -> str:
        number = 0
        while (mark := PLACEHOLDER.format(number=number)) in self.text:
            number += 1
        return mark


def _called(calls: Any) -> str:
    """The name of the first tool that a message calls."""
    first = calls[0] if isinstance(calls, list) else None
    function = first.get("function", first) if isinstance(first, dict) else None
    name = function.get("name", "") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise NotCompared("calls of tools are not a list of {function: {name, arguments}}")
    return name


def _saying(mark: str, message: Message) -> Message:
    """The message with a placeholder for all that it says."""
    other = {key: value for key, value in message.items() if key not in BESIDE}
    listed = isinstance(message.get("content"), list)
    return other | {"content": [{"type": "text", "text": mark}] if listed else mark}


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
