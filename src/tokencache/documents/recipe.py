"""What decides how rows become documents: the part of the configuration that is in the key."""

from __future__ import annotations

from string import Formatter
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .conversations import role_of

if TYPE_CHECKING:
    from ..config.dataset import Dataset, Document

# Raise when a row of the same recipe gives another text or other spans than before:
# the version is part of every recipe's key, so what is cached is then made anew.
RECIPE_VERSION = 2

SIDES = ("source", "target")

# A template's parts in order: text as it is, or {"column": its name in the files}.
Parts = list[str | dict[str, str]]

# As in Stanford's Alpaca, with and without an input.
_ALPACA = {
    "prompt_with_input": "Below is an instruction that describes a task, paired with an input that "
    "provides further context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    "prompt": "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n",
}


def sides(dataset: Dataset) -> tuple[str | None, ...]:
    """What of each row is a document: its source and its target, or (None) all of it."""
    return SIDES if dataset.document.is_pair else (None,)


def recipe_of(
    dataset: Dataset,
    chat_template: str | None,
    special_tokens: dict[str, str],
    side: str | None = None,
    tool_template: str | None = None,
) -> dict[str, Any]:
    """All that decides the documents of a row, and nothing else, as plain JSON.

    `chat_template` is the Jinja source that is in force (a data set's own included),
    `tool_template` the one for rows with tools, if that is another, `special_tokens` the
    tokenizer's special_tokens_map (bos_token, eos_token, …).
    `side` is one of `sides`. Equal recipes make equal documents, whatever words the config
    says them in.
    Raises UserError that names the key, from `document.` on.
    """
    document, rename = dataset.document, dataset.columns
    made: dict[str, Any] = {"version": RECIPE_VERSION, "loss": dataset.loss}
    made["add_special_tokens"] = not document.is_chat  # chat templates write their own
    if not dataset.train_on_eos:
        made["train_on_eos"] = False
    if document.is_chat:
        made |= {"form": "messages", **_conversation_columns(document, rename)}
        try:
            return made | _chat_parts(dataset, chat_template, tool_template, special_tokens)
        except UserError as error:
            key = "messages" if document.messages else "style"
            raise UserError(f"document.{key}: {error}") from None
    names = (side,) if side else ("text", "prompt", "completion", "instruction", "input", "output")
    parts = {
        key: _parts(value, f"document.{key}", rename, special_tokens)
        for key in names
        if (value := getattr(document, key)) is not None
    }
    if document.instruction is not None:
        parts = _alpaca(parts)
    end = special_tokens.get("eos_token")
    last = parts["completion"][-1:] if not dataset.train_on_eos else []
    if end and last and isinstance(last[0], str) and last[0].endswith(end):
        made["untrained_end"] = len(end)
    if "input" in parts:  # which of two prompts it is differs by row
        return made | {"form": "alpaca", **parts}
    if dataset.loss == "completion":
        made |= {"form": "prompt_completion", **parts}
    else:  # where all is trained on, it makes no difference where the prompt ends
        made |= {"form": "text", "text": _merged([p for found in parts.values() for p in found])}
    if not needed_columns(made):
        keys = " and ".join(f"document.{key}" for key in parts)
        raise UserError(f"{keys}: no column is named; write one as {{column}}")
    return made


def _alpaca(parts: dict[str, Parts]) -> dict[str, Parts]:
    """Instruction and output as prompt and completion; of rows with an input, another prompt."""
    made = {"completion": parts["output"]}
    for key, template in _ALPACA.items():
        if key == "prompt" or "input" in parts:
            made[key] = []
            for literal, name, _, _ in Formatter().parse(template):
                made[key] += [literal, *(parts[name] if name else [])]
            made[key] = _merged(made[key])
    return made | ({"input": parts["input"]} if "input" in parts else {})


def _conversation_columns(document: Document, rename: dict[str, str]) -> dict[str, Any]:
    """Which columns of a row its conversation is made of."""
    made: dict[str, Any] = {}
    if document.messages is not None:
        columns = [rename.get(name, name) for name in document.messages]
        made["messages"] = columns[0] if len(columns) == 1 else columns
    for key in ("instruction", "input", "output", "system"):
        if (name := getattr(document, key)) is not None:
            if "{" in name:
                raise UserError(f"document.{key}: of a conversation it is a column, no template")
            made[key] = rename.get(name, name)
    return made


def _chat_parts(
    dataset: Dataset,
    template: str | None,
    tool_template: str | None,
    special_tokens: dict[str, str],
) -> dict[str, Any]:
    if template is None:
        raise UserError(
            "the tokenizer brings no chat template; give the model one: models.NAME.chat_template "
            "(Jinja text or a file), or make a text with document.text"
        )
    from . import templates  # with Jinja, which most data sets don't need

    made: dict[str, Any] = {"chat_template": templates.uncommented(template)}
    found = [templates.inspect(template)]
    tools = dataset.document.tools
    if tools is not None and tool_template is not None:
        made["tool_template"] = templates.uncommented(tool_template)
        found.append(templates.inspect(tool_template))
    if dataset.loss != "all" and any(about.hidden for about in found):
        raise UserError(
            "the chat template has {% generation %} in a macro, where transformers finds wrong "
            "places; move it out of the macro (models.NAME.chat_template), or take loss: all"
        )
    names = frozenset().union(*(about.variables for about in found))
    used = {k: v for k, v in special_tokens.items() if k in names and v is not None}
    made["special_tokens"] = used
    roles = sorted({role_of(name) for name in dataset.roles_to_train})
    if roles != ["assistant"]:
        made["roles_to_train"] = roles
    if tools is not None and ("tools" in names or "tool_template" in made):
        made["tools"] = dataset.columns.get(tools, tools)
    return made


def _parts(value: str, key: str, rename: dict[str, str], special_tokens: dict[str, str]) -> Parts:
    """Read a column's name or a template with {column} in it."""
    if not value:
        raise UserError(f"{key}: is empty; name a column")
    if "{" not in value and "}" not in value:
        return [{"column": rename.get(value, value)}]
    parts: Parts = []
    try:
        parsed = list(Formatter().parse(value))
    except ValueError as error:
        raise UserError(f"{key}: {error} in {value!r}; write {{{{ and }}}} for braces") from None
    for literal, name, spec, conversion in parsed:
        parts.append(literal)
        if name is None:
            continue
        if not name or spec or conversion or any(sign in name for sign in ".[]{}"):
            said = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise UserError(
                f"{key}: {{{said}}} is more than a column's name; write {{column}} (a column with "
                "such signs in its name gets another one under `columns:`) and {{ }} for braces"
            )
        if name in ("bos_token", "eos_token"):
            parts.append(_special(name, key, special_tokens))
        else:
            parts.append({"column": rename.get(name, name)})
    return _merged(parts)


def _special(name: str, key: str, special_tokens: dict[str, str]) -> str:
    token = special_tokens.get(name)
    if token is None:
        raise UserError(f"{key}: {{{name}}}: the tokenizer has no {name}; take it out")
    return token


def _merged(parts: Parts) -> Parts:
    """The same parts with neighbouring texts in one and none of them empty."""
    merged: Parts = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part:
            merged.append(part)
    return merged


def needed_columns(recipe: dict[str, Any]) -> list[str]:
    """The columns of the files that a recipe reads, each once."""
    if recipe["form"] == "messages":
        keys = ("messages", "instruction", "input", "output", "system", "tools")
        found = [recipe[key] for key in keys if key in recipe]
        names = [name for one in found for name in ([one] if isinstance(one, str) else one)]
    else:
        keys = ("text", "prompt", "prompt_with_input", "input", "completion")
        sides = [recipe.get(key, []) for key in keys]
        names = [p["column"] for side in sides for p in side if isinstance(p, dict)]
    return list(dict.fromkeys(names))
