"""Runs chat templates within bounds.

They run in the environment of transformers' `apply_chat_template`, but for the clock: a
template that asks for today's date (`strftime_now`) would make other documents every day
under one key, so it is told 26 July 2024, the date that Llama's templates fall back to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from ..errors import UserError
from .spans import Span
from .templates import GROWING, KEY, inspect

# What one row may take. Far more than any conversation needs, and seconds at most.
MOST_STEPS = 10_000_000  # of loops
MACRO_STEPS = 20  # to call a macro takes as long as so many
MOST_CHARACTERS = 2**28  # of the row's text, and of each text that the template makes on its way

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

# A width of a million characters, or one that is given elsewhere.
_WIDE = re.compile(r"%[^a-zA-Z%]*(\d{7}|\*)")


class TooMuch(Exception):
    """A template goes beyond a bound; the message says which one."""


class Renderer:
    """One chat template with its special tokens, ready to be run.

    Each loop and each macro counts its steps, and operators and buffers the sizes of what they
    make, so that no template runs or grows without end. This changes no text.
    """

    def __init__(self, template: str, special_tokens: dict[str, str]) -> None:
        # Imported here: it takes a second, and most commands render nothing.
        from transformers.utils import chat_template_utils as theirs

        self.about = inspect(template)
        self.source = template  # as it is run, with the date that it is told
        if "strftime_now" in self.about.variables:
            self.source = _CLOCK + template
        self._special_tokens = special_tokens
        self._plain = theirs._plain_template_data
        self._aliased = theirs._alias_reasoning_fields
        # transformers has no other way to its environment than a template compiled in it.
        environment = theirs._cached_compile_jinja_template("").environment
        self._environment = environment
        self._steps = self._characters = 0
        self._range = environment.globals["range"]
        environment.globals["range"] = self._counted_range
        environment.counted, environment.step = self._counted, self._step
        environment.sized, environment.wrote = self._sized, self._wrote
        environment.intercepted_binops = GROWING
        environment.call_binop = self._operate
        self._operators = environment.binop_table
        tree = _Bounded(environment).visit(environment.parse(self.source))
        self._template = environment.from_string(tree)

    def taken(self, chat: list[dict[str, Any]], tools: Any) -> tuple[list[dict[str, Any]], Any]:
        """Messages and tools as transformers gives them to templates."""
        try:
            return self._aliased(self._plain(chat)), self._plain(tools)
        except RecursionError:
            raise UserError(
                "the messages or tools are nested too deeply; correct the row"
            ) from None

    def __call__(
        self,
        chat: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        prompt: bool = False,
        mark: bool = False,
    ) -> tuple[str, list[Span]]:
        """The text of a conversation that was `taken`, and where {% generation %} marks it, if
        wanted."""
        blocks: list[str] = []
        found: list[Span] = []
        self._steps = self._characters = 0
        marking = self._environment.activate_tracker(blocks, found) if mark else nullcontext()
        try:
            given = {
                "messages": chat,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": prompt,
            }
            size = 0
            with marking:
                for block in self._template.generate(given, **self._special_tokens):
                    blocks.append(block)
                    size += len(block)
                    if size > MOST_CHARACTERS:
                        _check(size)
        except TooMuch as error:
            raise UserError(f"the chat template {error}; give a simpler one: {KEY}") from None
        except Exception as error:  # a template is a program of the user's: it may raise anything
            kind = "" if type(error) is jinja2.TemplateError else f"{type(error).__name__}: "
            raise UserError(
                f"the chat template refuses these messages: {kind}{error}; "
                f"correct the row, or give the model another template: {KEY}"
            ) from None
        return "".join(blocks), found

    def _step(self, steps: int) -> str:
        self._steps += steps
        if self._steps > MOST_STEPS:
            raise TooMuch(f"takes more than {MOST_STEPS:,} steps for one row")
        return ""

    def _counted(self, values: Any) -> Any:
        """What a loop goes through."""
        try:
            self._step(len(values))
        except TypeError:
            if hasattr(values, "__next__"):
                return self._each(values)
        return values

    def _each(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self._step(1)
            yield value

    def _counted_range(self, *limits: int) -> range:
        found = self._range(*limits)
        self._step(len(found))
        return found

    def _sized(self, value: Any) -> Any:
        if isinstance(value, str | list | tuple):
            _check(len(value))
        return value

    def _wrote(self, value: Any) -> str:
        """What is written into a buffer, such as that of a macro."""
        text = value if isinstance(value, str) else str(value)
        self._characters += len(text)
        _check(self._characters)
        return text

    def _operate(self, _: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(other, int):
                    _check(len(one) * other)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check(left.bit_length() * right)
        elif (
            operator == "%" and isinstance(left, str) and re.search(r"%[^a-zA-Z%]*(\d{7}|\*)", left)
        ):
            raise TooMuch("pads a text to a million characters or to a width given elsewhere")
        return self._sized(self._operators[operator](left, right))


def _check(size: int) -> None:
    if size > MOST_CHARACTERS:
        raise TooMuch(f"makes more than {MOST_CHARACTERS:,} characters of one row")


class _Bounded(NodeTransformer):
    """A template's tree with calls of the environment that count what it does."""

    def __init__(self, environment: Any) -> None:
        self._environment, self._depth = environment, 0

    def _call(self, name: str, *given: nodes.Expr) -> nodes.Call:
        function = nodes.EnvironmentAttribute(name)
        call = nodes.Call(function, list(given), [], None, None)
        return call.set_environment(self._environment)

    def _step(self, node: nodes.Node) -> nodes.ExprStmt:
        steps = nodes.Const(1 if isinstance(node, nodes.For) else MACRO_STEPS)
        return nodes.ExprStmt(self._call("step", steps), lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = self._call("counted", node.iter)
        if node.recursive:  # loop(…) gives what it goes through next by another way
            node.body.insert(0, self._step(node))
        return node

    def _joined(self, node: nodes.Expr) -> nodes.Node:
        """What is joined to more and more in a variable doubles with each step."""
        return self._call("sized", self._terms(node))

    visit_Concat = visit_Add = _joined

    def _terms(self, node: nodes.Expr) -> nodes.Expr:
        """A sum, whose own sums need no look if it gets one."""
        if isinstance(node, nodes.Add):
            node.left, node.right = self._terms(node.left), self._terms(node.right)
        elif isinstance(node, nodes.Concat):
            node.nodes = [self._terms(part) for part in node.nodes]
        else:
            return self.visit(node)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        node.nodes = [self._terms(child) for child in node.nodes]  # its text gets a look anyway
        if self._depth:
            node.nodes = [self._call("wrote", self._value(child)) for child in node.nodes]
        return node

    def _value(self, child: nodes.Expr) -> nodes.Expr:
        return nodes.Const(child.data) if isinstance(child, nodes.TemplateData) else child

    def _buffer(self, node: Any) -> Any:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1
        if isinstance(node, nodes.Macro | nodes.CallBlock):
            node.body.insert(0, self._step(node))
        return node

    visit_Macro = visit_CallBlock = visit_FilterBlock = visit_AssignBlock = _buffer
