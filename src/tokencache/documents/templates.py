"""Chat templates: what their source says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import UserError

KEY = "models.NAME.chat_template"

# Operators whose results can be far larger than their operands.
GROWING = frozenset({"*", "**", "%"})

_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_BUFFERS = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock)


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


class _Environment(ImmutableSandboxedEnvironment):
    """For reading only. Sandboxed, so that to compile a template computes none of its powers."""

    intercepted_binops = GROWING


def _reading() -> _Environment:
    return _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension]
    )


def template_text(given: str | None) -> str | None:
    """Jinja text as it is; what has no brace in it is the path of a file that holds it."""
    if given is None or "{" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        name = given if given.isprintable() else repr(given)
        raise UserError(
            f"chat_template: {name}: {reason}; give Jinja text or a file with it"
        ) from None


@lru_cache
def inspect(template: str) -> Template:
    """Parse a chat template without running it. Raises UserError where it can't be used."""
    environment = _reading()
    try:
        template.encode()  # YAML can say halves of characters (\\ud83d alone), which are no text
        tree = environment.parse(template)
        environment.compile(tree)
        environment.globals.clear()  # so that the names of globals are found, too
        names = frozenset(meta.find_undeclared_variables(tree))
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"the chat template has an error in its line {error.lineno}: {error.message}; "
            f"correct it or give another one: {KEY}"
        ) from None
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
        raise UserError(
            f"the chat template can't be read: {_reason(error)}; give a simpler one: {KEY}"
        ) from None
    if "lipsum" in names or any(f.name == "random" for f in tree.find_all(nodes.Filter)):
        raise UserError(
            "the chat template draws at random, so the same rows would give other documents "
            f"every time; give one without `random` and `lipsum`: {KEY}"
        )
    return Template(
        variables=names,
        generation=_marks(tree),
        hidden=any(_marks(buffer) for buffer in tree.find_all(_BUFFERS)),
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError | MemoryError):
        return "it is nested too deeply"
    return getattr(error, "msg", None) or str(error)


def _marks(tree: nodes.Node) -> bool:
    """Whether there is a {% generation %} in it."""
    escape = nodes.ScopedEvalContextModifier
    scopes = tree.find_all(nodes.Scope)
    return any(not (scope.body and isinstance(scope.body[0], escape)) for scope in scopes)


# Comments


@lru_cache
def uncommented(template: str) -> str:
    """The template without the comments (and the last newline) that change nothing.

    Jinja's parser sees tokens only, so two templates with the same tokens give the same
    texts. A comment can trim the whitespace around it, so each one is taken out only where
    the tokens prove that nothing else changes.
    """
    wanted = _tokens(template)
    if wanted is None:  # which `inspect` refuses
        return template
    found = list(_COMMENT.finditer(template))
    at_once = template
    for comment in reversed(found):
        at_once = next(_without(at_once, comment))
    if _tokens(at_once) == wanted:
        template, found = at_once, []
    for comment in reversed(found):
        for shorter in _without(template, comment):
            if _tokens(shorter) == wanted:
                template = shorter
                break
    shorter = template.removesuffix("\n")
    return shorter if _tokens(shorter) == wanted else template


def _without(template: str, comment: re.Match[str]) -> Iterator[str]:
    """The template without a comment, with less and less of what is around it; at last,
    without the comment's words."""
    before, after = template[: comment.start()], template[comment.end() :]
    left = before.rstrip() if comment[0].startswith("{#-") else before.rstrip(" \t")
    right = after.lstrip() if comment[0].endswith("-#}") else after.removeprefix("\n")
    for one in (left, before):
        for other in (right, after):
            yield one + other
    begin = "{#-" if comment[0].startswith("{#-") else "{#"
    end = "-#}" if comment[0].endswith("-#}") else "#}"
    yield f"{before}{begin} {end}{after}"


def _tokens(template: str) -> list[tuple[str, str]] | None:
    """What Jinja's parser sees of a template, in order, neighbouring texts as one."""
    found: list[tuple[str, str]] = []
    try:
        for token in _reading().lexer.tokenize(template):
            kind, value = token.type, token.value
            if kind == "data" and found and found[-1][0] == "data":
                found[-1] = (kind, found[-1][1] + value)
            else:
                found.append(
                    (kind, f"{type(value).__name__} {value!r}" if kind != "data" else value)
                )
    except jinja2.TemplateSyntaxError:
        return None
    return found
