"""Conversations as text through a model's chat template, and the parts that are trained on.

The text is that of transformers' `apply_chat_template(messages, tools=tools, tokenize=False)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ..errors import UserError
from .chat_spans import Places
from .conversations import conversation, tool_list
from .renderer import Renderer
from .spans import Span

Message = dict[str, Any]


class Chat:
    """The chat templates of a recipe; `spans` says whether to look for what is trained on.

    tool_template: for rows with tools, where there is another one for them. roles: whose
    messages are trained on; eos: whether the end of such a message is, too.
    """

    def __init__(
        self,
        template: str,
        special_tokens: dict[str, str],
        spans: bool,
        roles: Sequence[str] = ("assistant",),
        eos: bool = True,
        tool_template: str | None = None,
    ) -> None:
        self._usual = self._with_tools = _Voice(Renderer(template, special_tokens))
        if tool_template is not None:
            self._with_tools = _Voice(Renderer(tool_template, special_tokens))
        self._spans, self._roles, self._eos = spans, set(roles), eos
        # What marks in the template say is what the assistant says, whole.
        marked = (
            self._usual.renderer.about.generation and self._with_tools.renderer.about.generation
        )
        self._by_marks = marked and self._roles == {"assistant"} and eos

    @property
    def template(self) -> str:
        """The template's source as it is rendered, with the date that it is told."""
        return self._usual.renderer.source

    def document(self, messages: Any, tools: Any, first: int = 0) -> tuple[str, list[Span] | None]:
        """One row's text, and the spans that are trained on (None where not looked for).

        first: the number of the first message that may be trained on. Raises UserError
        (without file and row, which the caller knows) for messages or tools of another
        shape, for a template that refuses them, and where it can't be known which part of
        the text is a message's.
        """
        tools = tool_list(tools)
        voice = self._with_tools if tools else self._usual
        chat, tools = voice.taken(conversation(messages), tools)
        text, marks = voice.renderer(chat, tools, mark=self._spans and self._by_marks)
        if not self._spans:
            return text, None

        def render(some: list[Message], prompt: bool) -> str:
            return voice.renderer(some, tools, prompt)[0]

        prompts = "add_generation_prompt" in voice.renderer.about.variables
        places = Places(text, chat, render, prompts, self._eos)
        if not self._by_marks:
            numbers = range(first, len(chat))
            return text, places.spans(n for n in numbers if chat[n]["role"] in self._roles)
        since = 0
        if any(message["role"] == "assistant" for message in chat[:first]):
            since = places.begin(first)
        return text, [(a, b) for a, b in marks if a < b and b > since]


class _Voice:
    """A template, and how it wants messages without content."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    def taken(self, chat: list[Message], tools: Any) -> tuple[list[Message], Any]:
        """Messages and tools as the template takes them."""
        chat, tools = self.renderer.taken(chat, tools)
        if any(map(_only_calls, chat)) and self._asks_for_none:
            chat = [{**m, "content": None} if _only_calls(m) else m for m in chat]
        return chat, tools

    @cached_property
    def _asks_for_none(self) -> bool:
        """Whether calls without content are lost, or refused, unless the content is none.

        transformers leaves the key out, and before version 5.20 it did not: templates such as
        DeepSeek-R1's were written for that. Tried on a conversation that is always the same,
        so that it depends on the template alone.
        """
        for arguments in ({"a": "b"}, '{"a": "b"}'):
            function = {"name": "placeholder7306", "arguments": arguments}
            call = {"type": "function", "id": "abcdef123", "function": function}
            calls = {"role": "assistant", "tool_calls": [call]}
            with_none, without = (
                self._says([{"role": "user", "content": "a"}, message], function["name"])
                for message in (calls | {"content": None}, calls)
            )
            if with_none or without:
                return not without
        return False

    def _says(self, chat: list[Message], word: str) -> bool:
        try:
            return word in self.renderer(chat, None)[0]
        except UserError:
            return False


def _only_calls(message: Message) -> bool:
    return bool(message.get("tool_calls")) and message.get("content") is None
