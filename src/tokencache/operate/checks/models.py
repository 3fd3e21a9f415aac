"""Of every model: whether its tokenizer is a fast one, and which engine will run it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ...config.references import Reference, reference
from ...config.schema import Config
from ...errors import UserError
from ...plan.plan import Plan, tokenizer_path
from . import FAIL, OK, WARN, Finding

TAKE_ANOTHER = "give one with a tokenizer.json"


def check(config: Config) -> Iterator[Finding]:
    """One finding a model. Models with the same tokenizer share the work."""
    known: dict[tuple[str, bool], tuple[str, str, str]] = {}
    for name, model in config.models.items():
        given = model.tokenizer_reference, model.trust_remote_code
        if given not in known:
            known[given] = _looked_at(config, name, *given)
        state, said, remedy = known[given]
        yield Finding(state, f"model {name}", said, remedy)


def _looked_at(config: Config, model: str, given: str, trust: bool) -> tuple[str, str, str]:
    """State, what to say, and the remedy."""
    try:
        if given in config.tokenizers:
            return _trained(config, given)
        where = f"models.{model}.tokenizer"
        return _given(config, reference(given, where), trust)
    except UserError as error:
        return FAIL, str(error), f"models.{model}: {TAKE_ANOTHER}"
    except ImportError as error:
        return WARN, f"can't be looked at here: {error}", "pip install -r envs/workflow.lock"


def _given(config: Config, wanted: Reference, trust: bool) -> tuple[str, str, str]:
    from ...tokenizer import given as tokenizers

    about = tokenizers.describe(wanted, trust)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(tokenizer_path(config.cache, about.key))
        if not folder.exists():
            folder = Path(scratch, "tokenizer")
            tokenizers.materialize(wanted, folder, about.key, trust)
        engine, why = _engine(config, folder)
    slow = next((note for note in about.notes if note.startswith("slow")), None)
    said = f"{slow or 'fast tokenizer'}; engine {engine} ({why})"
    if slow:
        return WARN, said, f"it is converted each time a plan is made: {TAKE_ANOTHER}"
    return _judged(config, engine, said)


def _trained(config: Config, name: str) -> tuple[str, str, str]:
    said = "fast tokenizer, which the workflow trains"
    with suppress(UserError):
        plan = Plan.newest()
        for folder, entry in plan.tokenizers.items():
            if entry.get("name") == name and Path(folder).exists():
                engine, why = _engine(config, Path(folder))
                return _judged(config, engine, f"{said}; engine {engine} ({why})")
    return OK, f"{said}; its engine is chosen when it is there", ""


def _engine(config: Config, folder: Path) -> tuple[str, str]:
    from ...tokens.engines import Engines

    found = Engines(folder, config.engine)
    return found.current.name, found.why


def _judged(config: Config, engine: str, said: str) -> tuple[str, str, str]:
    if engine == "tokenizers" and config.engine == "auto":
        return WARN, said, "nothing is wrong but the speed: gigatoken would be several times faster"
    return OK, said, ""
