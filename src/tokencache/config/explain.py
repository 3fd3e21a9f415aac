"""What is wrong in a YAML file, said with file, line, key and the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from ..base.credentials import hidden
from ..base.plain import MOST_SHOWN, TOO_DEEP, check_node, shown
from ..errors import UserError, listed
from .aliases import named_here

MOST_PLACES = 2  # that are named; a key that more sections have is none of a few


def unknown(name: str, known: Any, prefix: str, what: str = "key") -> str:
    known = [str(k) for k in known]
    near = difflib.get_close_matches(name[:MOST_SHOWN], known, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {listed(known)}"
    return f"unknown {what} {shown(prefix + name)}; {hint}"


def _section_at(root: type[BaseModel], location: tuple) -> type[BaseModel] | None:
    """The schema section that a validation error's location lies in."""
    here: Any = root
    for part in location:
        here = next((found for option in _options(here) if (found := _below(option, part))), None)
    sections = [o for o in _options(here) if isinstance(o, type) and issubclass(o, BaseModel)]
    return sections[0] if sections else None


def _options(annotation: Any) -> list[Any]:
    """The types that an annotation allows, out of their unions and Annotated wrappers."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [option for arg in get_args(annotation) for option in _options(arg)]
    return [annotation]


def _below(option: Any, part: Any) -> Any:
    """The annotation of a section's key, or of what a mapping or list holds."""
    if get_origin(option) in (dict, list):
        return get_args(option)[-1]
    if isinstance(option, type) and issubclass(option, BaseModel) and part in option.model_fields:
        return option.model_fields[part].annotation
    return None


def explain(problem: dict[str, Any], root: type[BaseModel]) -> tuple[tuple, str]:
    """One pydantic problem as (key path, what is wrong and what to do)."""
    location = tuple(p for p in problem["loc"] if p not in ("literal['all']", "constrained-int"))
    location = tuple(p for p in location if not (isinstance(p, str) and p.startswith("list[")))
    kind, given = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        section = _section_at(root, location[:-1])
        known = section.model_fields if section else []
        name = str(location[-1])
        meant = named_here(name, given) or _elsewhere(name, root)
        return location, meant or unknown(name, known, "")
    if kind == "missing":
        return location, "this key is missing"
    if kind == "dict_type" and location in (("datasets",), ("models",)):
        return location, f"these are named here: {location[0]}: {{NAME: {{…}}, OTHER: {{…}}}}"
    if kind == "literal_error":
        if location[0] == "datasets" and location[2:] == ("packing",) and isinstance(given, bool):
            return location, f"here it is packing: {'best_fit' if given else 'none'}"
        said = f"{shown(given)} is not one of {problem['ctx']['expected']}"
        if location[0] == "datasets" and location[2:] == ("format",) and given == "view":
            said += "; `format: view` stands at the top level, for the caches of all data sets"
        return location, said
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if kind == "value_error" or isinstance(given, dict | list):
        return location, message
    if "mlflow" in location and isinstance(given, str):
        given = hidden(given)
    return location, f"{message}, not {shown(given)}"


def _elsewhere(name: str, root: type[BaseModel]) -> str | None:
    """Where a key stands that is none here, if it is one elsewhere."""
    places = [place for place, section in _sections(root, ()) if name in section.model_fields]
    if not 0 < len(places) <= MOST_PLACES:
        return None
    said = ("under " + ".".join(place) if place else "at the top level" for place in places)
    return f"it stands {' or '.join(said)}"


def _sections(
    section: type[BaseModel], place: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """All sections of a schema with the keys that lead to them; a model's own training, which
    has the keys of the common one, is left out."""
    yield place, section
    for name, field in section.model_fields.items():
        for option in _options(field.annotation):
            below = (*place, name)
            if get_origin(option) is dict:
                below, option = (*below, "NAME"), get_args(option)[-1]
            is_section = isinstance(option, type) and issubclass(option, BaseModel)
            if is_section and below != ("models", "NAME", "training"):
                yield from _sections(option, below)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, which YAML would take silently, and
    what only looks like a value, such as the date 2024-13-45."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            mark = node.start_mark
            raise UserError(
                f"{mark.name}:{mark.line + 1}: {shown(node.value)} is not a value that YAML "
                f"knows ({error}); put it in quotes"
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            name, line = key.value, key.start_mark.line + 1
            if name in seen and name != "<<":
                raise UserError(
                    f"{key.start_mark.name}:{line}: {name!r} stands here a second time (first in "
                    f"line {seen[name]}); give each its own name"
                )
            seen[name] = line
        return super().construct_mapping(node, deep)


def _content(file: str | Path) -> Any:
    with open(file, encoding="utf-8") as stream:
        loader = _Loader(stream)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            check_node(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()


def check_files(files: list[str | Path]) -> None:
    """Refuse YAML that can't be read, or that stands for too much, and keys given twice, with
    file and line."""
    for file in files:
        try:
            content = _content(file)
        except yaml.MarkedYAMLError as error:
            at = error.problem_mark or error.context_mark
            raise UserError(f"{file}:{at.line + 1}: this is no YAML: {error.problem}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: this is no YAML: {error}") from None
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}") from None
        except RecursionError:
            raise UserError(f"{file}: {TOO_DEEP}") from None
        if not isinstance(content, dict):
            raise UserError(
                f"{file}: no keys, such as models: and datasets:, are in it; see docs/config.md"
            )


class Lines:
    """Where keys stand in YAML files; later files are laid over earlier ones."""

    def __init__(self, files: list[str | Path]) -> None:
        self._roots = []
        for file in reversed(files):
            with open(file, encoding="utf-8") as stream:
                self._roots.append((file, yaml.compose(stream, yaml.SafeLoader)))

    def of(self, location: tuple) -> str:
        """'config.yaml:12: ' for a key path, from the last file that has it, or ''."""
        for file, node in self._roots:
            if line := _line(node, location):
                return f"{file}:{line}: "
        return ""


def _line(node: yaml.Node | None, location: tuple) -> int | None:
    line, depth = None, 0
    for part in location:
        if isinstance(node, yaml.MappingNode):
            entry = next(((k, v) for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            entry = (node.value[part], node.value[part]) if part < len(node.value) else None
        else:
            entry = None
        if entry is None:
            break
        line, node, depth = entry[0].start_mark.line + 1, entry[1], depth + 1
    return line if depth >= len(location) - 1 else None
