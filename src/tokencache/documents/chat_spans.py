"""Where the messages of a conversation stand in its text, found by construction.

The template is run again with a placeholder as a message's words: what stands before and
behind the placeholder doesn't depend on what the message says. Nothing is searched for in
the text itself, whose words may be anything, pieces of the template's own marks included.
docs/how-it-works.md says which characters are trained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from ..errors import UserError
from .spans import Span
from .templates import KEY

Message = dict[str, Any]
Render = Callable[[list[Message], bool], str]  # of messages, with a generation prompt or without

# What a message says beside its content.
_BESIDE = ("reasoning_content", "thinking", "reasoning", "tool_calls")

# The start of a mark such as <|im_end|> or [/INST], which ends the text before it is closed.
_OPEN_MARK = re.compile(r"[<\[][^<>\[\]]*$")

# How templates change the words of a message that they don't take apart.
_CHANGES: tuple[Callable[[str], str], ...] = (
    str,
    str.strip,
    str.rstrip,
    str.lstrip,
    lambda words: words.strip("\n"),
)


class Places:
    """The places of one conversation's messages in its text.

    prompts: whether the template knows of generation prompts; eos: whether the end of a
    message is part of its span.
    """

    def __init__(
        self, text: str, chat: list[Message], render: Render, prompts: bool, eos: bool
    ) -> None:
        self._text, self._chat, self._render = text, chat, render
        self._prompts, self._eos = prompts, eos
        self._mark = _placeholder(text)

    def spans(self, numbers: Iterable[int]) -> list[Span]:
        """The spans of some messages, none of them empty. Raises UserError with the number of
        a message whose place can't be told."""
        numbers = list(numbers)
        together = self._together([n for n in numbers if _is_plain(self._chat[n])])
        found = []
        for number in numbers:
            try:
                if number in together:
                    span = self._around(number, *together[number])
                else:
                    span = self._alone(number)
            except UserError as error:
                raise _untraceable(number, str(error)) from None
            if span[0] < span[1]:
                found.append(span)
        return sorted(found)

    def begin(self, number: int) -> int:
        """The first place that depends on what a message says."""
        message = self._chat[number]
        try:
            before, _ = self._split([*self._chat[:number], self._other(message)])
        except UserError as error:
            raise _untraceable(number, str(error)) from None
        return _common(self._text, before)

    def _together(self, numbers: list[int]) -> dict[int, Span]:
        """Where the words of messages stand, if to put them for the placeholders of all of them
        gives the text; else nothing."""
        if not numbers:
            return {}
        marks = {number: f"{self._mark}{number:08}" for number in numbers}
        chat = [
            message | {"content": marks[number]} if number in marks else message
            for number, message in enumerate(self._chat)
        ]
        try:
            other = self._render(chat, False)
        except UserError:
            return {}
        if other.count(self._mark) != len(marks):
            return {}
        for change in _CHANGES:
            found, pieces, at, size = {}, [], 0, 0
            for number, mark in marks.items():
                place = other.find(mark, at)
                if place < 0:
                    return {}
                words = change(self._chat[number]["content"])
                begin = size + place - at
                found[number] = (begin, begin + len(words))
                pieces += [other[at:place], words]
                at, size = place + len(mark), begin + len(words)
            if "".join([*pieces, other[at:]]) == self._text:
                return found
        return {}

    def _around(self, number: int, begin: int, stop: int) -> Span:
        """The span of a message whose words are known to stand in [begin, stop)."""
        start = self._start(number, begin, self._text)
        if not self._eos:
            return start, stop
        if number == len(self._chat) - 1:
            return start, stop + len(self._text[stop:].rstrip())
        other = [*self._chat[:number], self._chat[number] | {"content": self._mark}]
        return start, self._tail(stop, self._split(other)[1])

    def _alone(self, number: int) -> Span:
        """The span of a message that is taken apart, or that says more than its content."""
        text, chat = self._text, self._chat
        upto = text
        if number < len(chat) - 1:
            upto = self._render(chat[: number + 1], False)
        placeholder = self._other(chat[number])
        other = self._render([*chat[:number], placeholder], False)
        if self._mark in other and text.startswith(upto.rstrip()):
            before, after = self._parted(other)
            begin = _common(upto, before)
            start = self._start(number, begin, upto)
            if upto.endswith(after):
                stop = max(begin, len(upto) - len(after))
                return start, stop + (len(after.rstrip()) if self._eos else 0)
            if self._eos:
                return start, len(upto.rstrip())
            raise UserError("train_on_eos: false: the template ends it in another way than text")
        # What was written before changes when more follows, as where thinking is left out.
        here = self._render([*chat[:number], placeholder, *chat[number + 1 :]], False)
        if here == text:  # the template writes nothing of what it says
            return 0, 0
        before, behind = self._parted(here)
        if not text.endswith(behind):
            raise UserError("the template writes otherwise what follows it")
        begin = _common(text, before)
        stop = max(begin, len(text) - len(behind))
        start = self._start(number, begin, text)
        return start, self._tail(stop, self._parted(other)[1]) if self._eos else stop

    def _start(self, number: int, begin: int, text: str) -> int:
        """Where the span of a message begins whose words come at `begin` of a text."""
        if not self._prompts or number == 0 or self._chat[number]["role"] != "assistant":
            return begin
        before = self._chat[:number]
        try:
            prompt = self._render(before, True)
            if not text.startswith(prompt):
                return begin
            if len(prompt) > begin:
                same = self._render([*before, _same_shape(self._chat[number], self._mark)], False)
                return len(prompt) if same.startswith(prompt) else begin
            if len(prompt) < begin and prompt == self._render(before, False):
                return begin  # the template writes no prompt here, but a header later
        except UserError:  # there may be no text without an answer
            return begin
        return len(prompt)

    def _tail(self, stop: int, after: str) -> int:
        """Where the end of a message ends whose words end at `stop` of the text. `after` is
        what the template writes there where nothing follows."""
        tail = after.rstrip()
        if self._text.startswith(tail, stop):
            return stop + len(tail)
        shared = tail[: _common(tail, self._text[stop : stop + len(tail)])]
        shared = _OPEN_MARK.sub("", shared).rstrip()
        if not shared:
            raise UserError("the template ends it otherwise when more follows")
        return stop + len(shared)

    def _other(self, message: Message) -> Message:
        """The message saying the placeholder instead, and nothing else."""
        content: Any = self._mark
        if isinstance(message.get("content"), list):
            content = [{"type": "text", "text": self._mark}]
        kept = {key: value for key, value in message.items() if key not in _BESIDE}
        return kept | {"content": content}

    def _split(self, chat: list[Message]) -> tuple[str, str]:
        """What stands before and behind the placeholder in a conversation's text."""
        return self._parted(self._render(chat, False))

    def _parted(self, text: str) -> tuple[str, str]:
        parts = text.split(self._mark)
        if len(parts) != 2:
            how = "leaves its words out" if len(parts) == 1 else "writes its words more than once"
            raise UserError(f"the template {how}, or changes them")
        return parts[0], parts[1]


def _is_plain(message: Message) -> bool:
    """Whether a message says its content and nothing else."""
    content = message.get("content")
    return isinstance(content, str) and bool(content.strip()) and message.keys().isdisjoint(_BESIDE)


def _placeholder(text: str) -> str:
    """Digits that a text doesn't have. They have no case, need no escapes, and can't begin
    within themselves, for only the first one is a 9."""
    for salt in count(15_730_264):
        mark = "9" + str(salt).replace("9", "8")
        if mark not in text:
            return mark
    raise AssertionError("texts end")


def _common(one: str, other: str) -> int:
    """How many characters two texts share at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _same_shape(message: Message, mark: str) -> Message:
    """The message with the placeholder for every text that it says."""
    changed = {key: _marked(message[key], mark) for key in _BESIDE[:-1] if key in message}
    content = message.get("content")
    if isinstance(content, str) and content.strip():
        changed["content"] = mark
    if isinstance(calls := message.get("tool_calls"), list):
        changed["tool_calls"] = [
            call | {"function": _marked(call["function"], mark)}
            if isinstance(call, dict) and "function" in call
            else call
            for call in calls
        ]
    return message | changed


def _marked(value: Any, mark: str) -> Any:
    if isinstance(value, str):
        return mark
    if isinstance(value, dict):
        return {key: _marked(item, mark) for key, item in value.items()}
    return [_marked(item, mark) for item in value] if isinstance(value, list) else value


def _untraceable(number: int, why: str) -> UserError:
    return UserError(
        f"it can't be told where message {number + 1} stands in the text: {why}. "
        f"Mark it in the chat template with {{% generation %}} … {{% endgeneration %}} ({KEY}), "
        "or take loss: all"
    )
