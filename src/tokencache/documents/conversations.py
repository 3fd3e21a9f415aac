"""The conversation of a row: from its columns to messages of {role, content, …}."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from ..errors import UserError

# The fields of ShareGPT's {from, value} in the words of {role, content}.
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "assistant",
}

# Values of a message that say nothing.
NOTHING = (None, "", [], {})
# What a message says, in content and beside it.
_CONTENT = ("content", "value")
_SAID = (*_CONTENT, "reasoning_content", "thinking", "reasoning", "tool_calls", "function_call")
# What tells about a message, and is not said in it.
_ABOUT = {"role", "from", "name", "id", "tool_call_id", "weight"}

# What one message is where a column has text instead of a list: the first is asked.
_ROLES = ("user", "assistant")


def role_of(name: str) -> str:
    """A role in the words of {role, content}."""
    return SHAREGPT_ROLES.get(name, name)


def of_row(recipe: dict[str, Any], row: dict[str, Any]) -> tuple[Any, int]:
    """The messages of a row by a recipe, and the number of the first that may be trained on.

    They are as the row has them where nothing is to be put together; see `conversation`.
    Raises UserError where the row has no conversation.
    """
    first = 0
    if "instruction" in recipe:
        chat, first = _instructed(recipe, row), 1
    elif isinstance(recipe["messages"], str):
        chat = row.get(recipe["messages"])
        if "system" in recipe:
            chat = conversation(chat)
    else:
        chat = []
        for number, column in enumerate(recipe["messages"]):
            first = len(chat)
            chat += _side(row.get(column), column, _ROLES[number % 2])
    if recipe["loss"] != "completion":
        first = 0
    if system := _text(row.get(recipe.get("system")), "system"):
        chat, first = [{"role": "system", "content": system}, *chat], first + 1
    return chat, first


def is_empty(recipe: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a row's conversation has no message that says anything."""
    if "instruction" in recipe:
        names = [recipe[key] for key in ("instruction", "input", "output") if key in recipe]
        return all(row.get(name) in NOTHING for name in names)
    if isinstance(recipe["messages"], str):
        return not _says_something(_unpacked(row.get(recipe["messages"])))
    return not any(_says_something(row.get(name)) for name in recipe["messages"])


def _unpacked(messages: Any) -> Any:
    """Messages, where they may be JSON text; of a wrong one, the text: `conversation` tells."""
    if isinstance(messages, str) and messages.startswith("["):
        with suppress(UserError):
            return _parsed(messages, "messages")
    return messages


def _says_something(value: Any) -> bool:
    """Of a column: messages, one message, or text. What is none of them counts as something, for
    `conversation` to refuse it."""
    messages = value if isinstance(value, list) else [value]
    return any(
        _message_says(message) if isinstance(message, dict) else message not in NOTHING
        for message in messages
    )


def _message_says(message: dict[str, Any]) -> bool:
    """By what it says. Of one without content, every key counts that a template may show."""
    has_content = any(message.get(name) is not None for name in _CONTENT)
    names = _SAID if has_content else message.keys() - _ABOUT
    return any(_content_says(message.get(name)) for name in names)


def _content_says(content: Any) -> bool:
    if isinstance(content, list):
        return any(map(_part_says, content))
    return content not in NOTHING


def _part_says(part: Any) -> bool:
    """All but those of empty text."""
    if not isinstance(part, dict):
        return part not in NOTHING
    kind = part.get("type")
    if kind is None:
        return any(value not in NOTHING for value in part.values())
    return kind != "text" or part.get("text") not in NOTHING


def _instructed(recipe: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Instruction, input and output as a question, in two lines if there is an input, and its
    answer."""
    names = ("instruction", "input", "output")
    asked, more, answer = (_text(row.get(recipe.get(name)), name) for name in names)
    question = f"{asked}\n{more}" if more else asked
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(value: Any, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"the {name} is {_kind(value)}, not text; mend the row")
    return value


def _side(value: Any, column: str, role: str) -> list[dict[str, Any]]:
    """A column of messages, of one message, or with the text of one."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    try:
        return conversation([value] if isinstance(value, dict) else value)
    except UserError as error:
        raise UserError(f"column {column!r}: {error}") from None


def conversation(value: Any) -> list[dict[str, Any]]:
    """A row's messages as {role, content, …}, without the keys that are null.

    Takes {role, content} and ShareGPT's {from, value}, and JSON text of them. Raises UserError for
    anything else, naming the message by its number, from 1.
    """
    if isinstance(value, str) and value.startswith("["):
        value = _parsed(value, "messages")
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
    if role == "function_call":
        message["tool_calls"] = _calls(message.pop("content", None), number)
    return {"role": SHAREGPT_ROLES[role], **message}


def _calls(value: Any, number: int) -> list[dict[str, Any]]:
    """Calls of tools, as JSON text or not, in the words of {role, content}."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
        calls = found if isinstance(found, list) else [found]
        return [
            {"type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
            for c in calls
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"message {number} is a function_call that is not JSON of "
            '{"name": …, "arguments": …}; mend the row'
        ) from None


def tool_list(value: Any) -> list[dict[str, Any]] | None:
    """A row's tools as a list of JSON schemas; text is read as JSON; an empty list is none.

    Raises UserError for anything else.
    """
    if isinstance(value, str):
        value = _parsed(value, "tools")
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UserError(f"the tools are {_kind(value)}; needed is a list of JSON schemas")
    return value


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:
        problem = f"not JSON: {error}"
    raise UserError(f"the {name} are text that is {problem}; correct the row")


def _kind(value: Any) -> str:
    """What a JSON value is, for a message to the user."""
    names = {str: "text", list: "a list", dict: "a mapping", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
