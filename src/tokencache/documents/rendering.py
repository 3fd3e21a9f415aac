"""What tells one way of rendering conversations from another: what comes out of it.

A version number of transformers or Jinja in a key would make every chat cache stale with
each of their releases. Instead some conversations are rendered by the recipe's own
template, and what that gives is in the recipe: a release that changes nothing there makes
nothing stale, and one that changes a text or a span does.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.hashing import key_of
from ..errors import UserError

if TYPE_CHECKING:
    from .chat_template import Chat

LIBRARIES = ("transformers", "jinja2")

_SYSTEM = {"role": "system", "content": " Answer in short.\n"}
_USER = {"role": "user", "content": "Is 1 < 2 & 'a' \"b\"?\n\n  {{ x }} {% y %} Größe 日本 🙂 \t"}
_ANSWER = {"role": "assistant", "content": "  Yes: 1 < 2.\nGröße.\n"}
_MORE = {"role": "user", "content": "And then?"}
_THOUGHT = {
    "role": "assistant",
    "content": "<think>\nHm.\n</think>\n\nDone.",
    "reasoning_content": "Hm.",
}
_PARTS = {
    "role": "user",
    "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}],
}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "id": "abcdef123",
            "function": {
                "name": "weather",
                "arguments": {"city": "Köln <&>", "days": 3, "exact": True, "at": 0.1, "of": None},
            },
        }
    ],
}
_RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abcdef123", "content": '{"°C": 7.5}'}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather in a "city" <b>\n',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Größe's", "enum": ["Köln <&>", "'"]},
                    "days": {"type": ["integer", "null"], "default": None, "minimum": 0.5},
                },
                "required": ["city"],
            },
        },
    }
]

CONVERSATIONS: list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = [
    ([_MORE, _ANSWER], None),
    ([_SYSTEM, _USER, _ANSWER, _MORE, _THOUGHT], None),
    ([_USER, _THOUGHT, _MORE, _ANSWER], None),
    ([_SYSTEM, _MORE, _CALL, _RESULT, _ANSWER], _TOOLS),
    ([_MORE, _CALL, _RESULT, _ANSWER, _MORE, _ANSWER], _TOOLS),
    ([_MORE, _ANSWER], _TOOLS),
    ([_PARTS, _ANSWER], None),
    ([_ANSWER, _USER], None),
    ([_SYSTEM, {"role": "user", "content": ""}, {"role": "assistant", "content": ""}], None),
]


def identity(chat: Chat) -> str:
    """The key of what comes out for the conversations; that one is refused is a result, too."""
    said: list[Any] = []
    for messages, tools in CONVERSATIONS:
        try:
            said.append(chat.document(messages, tools))
        except UserError:
            said.append(None)
    return key_of(said)


def decided_by() -> tuple[list[Path], list[str]]:
    """What an identity can change with: files of this package, and versions of others."""
    own = sorted(Path(__file__).parent.glob("*.py"))
    return own, [f"{name} {version(name)}" for name in LIBRARIES]


def check(chat: Chat, planned: str) -> None:
    """Raises UserError where this process renders otherwise than the plan is for."""
    if identity(chat) != planned:
        raise UserError(
            "chat templates are rendered otherwise here than where the plan was made: there are "
            f"other versions of {' or '.join(LIBRARIES)}; install the same ones in both places "
            "(`snakemake images` builds images with those of envs), or run snakemake again"
        )
