"""Tokenizers: what decides their ids, and a folder of files that gives just those ids.

A tokenizer's ids are those of `AutoTokenizer.from_pretrained`. Where a class there builds
something else than its tokenizer.json says, the class is right, for that is what users
compare with; the materialized tokenizer.json then holds what the class built.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from ..base import manifest
from ..base.hashing import key_of
from ..base.json_files import read_json, write_json
from ..base.publish import published
from ..base.records import FACTS_FILE
from ..errors import UserError, panics_explained
from . import files, unigram
from .files import CONFIG_FILE, TOKENIZER_FILE
from .probe import around, probe, probe_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ..config.references import Reference

# What reads tokenizer.json as it is; its name in transformers 4 and 5.
GENERIC = "PreTrainedTokenizerFast"
# What transformers takes model_max_length to be where nothing says it.
VERY_LARGE = int(1e30)

NO_TEMPLATES: dict[str, str | None] = {"chat_template": None, "tool_template": None}
FACTS_VERSION = 3  # of what `Facts` says; what was remembered of others is found again


@dataclass(frozen=True)
class Facts:
    """What the workflow must know of a tokenizer; plain JSON through `asdict`.

    Every id is below `vocab_size`. `prefix` and `suffix` are the ids that the
    post-processor puts around one document. `special_tokens` is the
    special_tokens_map, without a pad token that was only lent. `tool_template` is for
    conversations with tools, where the tokenizer has another one for them. `notes` are
    said to the user. `parts` are hashes of what the key is made of, by name. `settings`
    are those of tokenizer_config.json that change no id, so they are not in the key; a
    run gets its own model's.
    """

    key: str
    vocab_size: int
    prefix: list[int]
    suffix: list[int]
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    special_tokens: dict[str, str]
    chat_template: str | None
    tool_template: str | None = None
    notes: list[str] = field(default_factory=list)
    parts: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def shared(self) -> Facts:
        """What tokenizers of one key have in common, which is what their folder holds."""
        return replace(self, **NO_TEMPLATES, settings={})


def VERSIONS() -> dict[str, str]:
    """The libraries that can change what a tokenizer's files mean."""
    return {name: version(name) for name in ("transformers", "tokenizers")}


def load(ref: Reference, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer that AutoTokenizer gives, as a fast one that pads right.

    A slow tokenizer is converted. A missing pad token becomes eos. Raises UserError
    where it can't be loaded or converted.
    """
    return _load(ref, trust_remote_code)[0]


def describe(ref: Reference, trust_remote_code: bool = False) -> Facts:
    """Load a tokenizer and find its facts; see `load` for errors."""
    return _described(ref, trust_remote_code)[1]


def materialize(
    ref: Reference,
    folder: Path,
    key: str,
    trust_remote_code: bool = False,
    texts: Sequence[str] = (),
) -> None:
    """Publish a folder with this tokenizer that gives the same ids wherever it is loaded.

    texts: of the data that it will encode, to compare ids on beside the probe. Raises UserError
    where its key is not `key` any more, and where the folder would not give the same ids.
    """
    tokenizer, found = _described(ref, trust_remote_code)
    if found.key != key:
        raise UserError(
            f"the tokenizer {ref} has changed since the plan was made; run snakemake again"
        )
    with published(folder, folder=True) as made:
        save(tokenizer, made, found, texts)


def save(
    tokenizer: PreTrainedTokenizerFast, folder: Path, facts: Facts, texts: Sequence[str] = ()
) -> None:
    """Write tokenizer.json, tokenizer_config.json, facts.json and the manifest into a folder.

    Only what tokenizers of one key share: models that share a tokenizer need not share its chat
    template or model_max_length. Raises UserError where the folder, loaded again, gives other ids
    for a text of the probe or of `texts`.
    """
    from transformers import AutoTokenizer

    backend = tokenizer.backend_tokenizer
    builds_model = unigram.is_unigram(backend) and _builds_model(tokenizer)
    text = backend.to_str() if builds_model else unigram.to_json(backend)
    (folder / TOKENIZER_FILE).write_text(text, encoding="utf-8")
    own = _own_configuration(tokenizer) if builds_model else {}
    write_json(folder / CONFIG_FILE, own | _configuration(tokenizer, facts, builds_model))
    write_json(folder / FACTS_FILE, asdict(facts.shared))
    manifest.write(folder)
    compared = [*probe(backend), *texts]
    wanted = probe_ids(tokenizer, compared)
    again = probe_ids(AutoTokenizer.from_pretrained(str(folder), local_files_only=True), compared)
    alone = [[e.ids for e in opened(folder).encode_batch(compared, add_special_tokens=specials)]
             for specials in (True, False)]  # fmt: skip
    for number, text in enumerate(compared):
        if not wanted[0][number] == again[0][number] == alone[0][number]:
            raise UserError(
                "the tokenizer gives other ids after it is saved and loaded again, so it can't "
                f"be used: its files don't hold all that its class does (for {_short(text)})"
            )
    if not wanted == again == tuple(alone):
        raise UserError(
            "the tokenizer adds other special tokens after it is saved and loaded again, so it "
            "can't be used: its files don't hold all that its class does"
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")


def facts(folder: str | Path) -> Facts:
    """The facts of a materialized or trained tokenizer.

    Raises UserError where it is missing, and where a file of it is missing or has other bytes
    than were written: ids of a damaged tokenizer look like any others.
    """
    try:
        manifest.check(Path(folder), "the tokenizer", whole=True)
        return Facts(**read_json(Path(folder, FACTS_FILE)))
    except FileNotFoundError:
        raise UserError(
            f"the tokenizer {folder} is missing: it was removed after the plan was made; "
            "run snakemake again"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"the tokenizer {folder} is damaged ({error}); remove it and run snakemake again, "
            f"which rebuilds it; {manifest.REPAIR}"
        ) from None


def check_architecture(architecture: dict[str, Any], tokens: int, model: str) -> None:
    """Raises UserError where a model would know fewer tokens than its tokenizer has."""
    size = architecture.get("vocab_size")
    if isinstance(size, int) and size < tokens:
        raise UserError(
            f"{model}.architecture.vocab_size: {size} is too small, the tokenizer has {tokens} "
            "tokens; leave vocab_size out to get the tokenizer's"
        )


def opened(folder: Path) -> Tokenizer:
    """The tokenizer of a materialized folder, for encoding; transformers is not loaded.

    It is read as AutoTokenizer reads it, without importing transformers.
    """
    return _opened(folder.absolute(), (folder / TOKENIZER_FILE).stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(folder: Path, _: int) -> Tokenizer:
    backend = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    settings = read_json(folder / CONFIG_FILE)
    if settings["tokenizer_class"] != GENERIC:
        unigram.from_python_floats(backend, folder / TOKENIZER_FILE)
    backend.encode_special_tokens = settings.get("split_special_tokens", False)
    return backend


def facts_of(
    tokenizer: PreTrainedTokenizerFast, content: Any = None, notes: Sequence[str] = ()
) -> Facts:
    """The facts of a tokenizer; its key is made of `content`, its tokenizer.json as parsed.

    Without `content` (it was converted, or just made) the library's own serialization
    stands for the file. Raises UserError for tokenizers that documents can't be cut by.
    """
    if content is None:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
    if content.get("model", {}).get("dropout"):
        raise UserError(
            "its BPE dropout gives other ids every time; set dropout to null in tokenizer.json"
        )
    content = {k: v for k, v in content.items() if k not in ("truncation", "padding")}
    special = dict(tokenizer.special_tokens_map)
    notes, lent = list(notes), False
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        lent = True
        notes.append(
            f"no pad token: eos {tokenizer.eos_token!r} is used; rows are masked by length, "
            "so a real eos stays in the loss"
        )
    elif tokenizer.pad_token is None:
        notes.append("neither a pad nor an eos token")
    ids = probe_ids(tokenizer, probe(tokenizer.backend_tokenizer))
    prefix, suffix = around(*ids)
    parts = {
        "tokenizer.json": key_of(content),
        "special tokens": key_of([special, _added(tokenizer), tokenizer.split_special_tokens]),
        "probe ids": key_of(ids),
    }
    template, tool_template = tokenizer.chat_template, None
    if isinstance(template, dict):
        known = ("default", "tool_use")
        if others := ", ".join(sorted(set(template) - set(known))):
            notes.append(f"of several chat templates these are not used: {others}")
        template, tool_template = (template.get(name) for name in known)
    return Facts(
        key=key_of(["tokenizer", parts]),
        vocab_size=max([len(tokenizer), *(i + 1 for i in tokenizer.get_vocab().values())]),
        prefix=prefix,
        suffix=suffix,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.eos_token if lent else tokenizer.pad_token,
        special_tokens=special,
        chat_template=template,
        tool_template=tool_template,
        notes=notes,
        parts=parts,
        settings={
            "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
            "model_max_length": tokenizer.model_max_length,
            "truncation_side": tokenizer.truncation_side,
        },
    )


def _described(ref: Reference, trust_remote_code: bool) -> tuple[PreTrainedTokenizerFast, Facts]:
    with panics_explained(f"the tokenizer {ref} can't encode the texts that it is probed with"):
        tokenizer, content, notes = _load(ref, trust_remote_code, lend=False)
        found = facts_of(tokenizer, content, notes)
    tokenizer.pad_token = found.pad_token
    return tokenizer, found


def _load(
    ref: Reference, trust_remote_code: bool, lend: bool = True
) -> tuple[PreTrainedTokenizerFast, Any, list[str]]:
    """The tokenizer, its tokenizer.json as parsed (None where it has none), and notes."""
    try:
        loaded = files.load(ref, trust_remote_code)
        file = files.json_file(ref)
        content = None if file is None else read_json(file)
    except UserError:
        raise
    except Exception as error:  # whatever the libraries make of files that are no tokenizer
        raise UserError(f"the tokenizer {ref} can't be loaded: {_reason(error)}") from None
    notes: list[str] = []
    tokenizer = _fast(loaded, notes)
    if tokenizer is not loaded:
        content = None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    if tokenizer.truncation_side == "left":
        notes.append("truncation_side left: overflow: truncate cuts off the beginning of documents")
    tokenizer.padding_side = "right"
    if content is not None and _other_ids(tokenizer, file):
        notes.append(
            f"the ids are those of the class {type(tokenizer).__name__}, as AutoTokenizer gives "
            "them; tokenizer.json alone gives others"
        )
    if lend and tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, content, notes


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    if "trust_remote_code" in str(error):
        return "it needs code of its own: set trust_remote_code: true if you trust that code"
    return said


def _fast(tokenizer: Any, notes: list[str]) -> PreTrainedTokenizerFast:
    """The tokenizer itself, or what a slow one converts to, if that gives the same ids."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import convert_slow_tokenizer

    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return tokenizer
    name = type(tokenizer).__name__
    try:
        backend = convert_slow_tokenizer(tokenizer)
    except Exception as error:  # converters fail in many ways
        raise UserError(
            f"it is a slow tokenizer ({name}) that can't be converted: {_reason(error)}; "
            "give one with a tokenizer.json"
        ) from None
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        truncation_side=tokenizer.truncation_side,
        **tokenizer.special_tokens_map,
    )
    if any(
        tokenizer(text)["input_ids"] != fast(text)["input_ids"]
        for text in probe(fast.backend_tokenizer)
    ):
        raise UserError(
            f"it is a slow tokenizer ({name}) whose conversion gives other ids; "
            "give one with a tokenizer.json"
        )
    notes.append(f"slow tokenizer ({name}), converted")
    return fast


def _other_ids(tokenizer: PreTrainedTokenizerFast, file: Path) -> bool:
    """Whether tokenizer.json alone gives other ids, or can't be read alone."""
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception:  # tokenizers raises nothing narrower
        return True
    backend.no_truncation()
    backend.no_padding()
    texts = probe(tokenizer.backend_tokenizer)
    return any(
        backend.encode(text).ids != tokenizer.backend_tokenizer.encode(text).ids for text in texts
    )


def _added(tokenizer: PreTrainedTokenizerFast) -> list[list[Any]]:
    """The tokens that are matched before the model sees the text, and how they match."""
    found = sorted(tokenizer.added_tokens_decoder.items())
    return [
        [number, t.content, t.single_word, t.lstrip, t.rstrip, t.normalized, t.special]
        for number, t in found
    ]


def _builds_model(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether its class builds the model itself, and is one that AutoTokenizer finds anywhere."""
    kind = type(tokenizer)
    return kind.__module__.startswith("transformers.models.") and "__init__" in vars(kind)


def _own_configuration(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The tokenizer_config.json that the tokenizer's own class writes."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        found = read_json(Path(folder, CONFIG_FILE))
    return {name: value for name, value in found.items() if name != "chat_template"}


def _configuration(
    tokenizer: PreTrainedTokenizerFast, facts: Facts, builds_model: bool
) -> dict[str, Any]:
    """tokenizer_config.json: no class but one that `builds_model` changes what the file says."""
    made: dict[str, Any] = {
        "tokenizer_class": type(tokenizer).__name__ if builds_model else GENERIC,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": VERY_LARGE,
        "padding_side": "right",
        "truncation_side": "right",
        **facts.special_tokens,
    }
    if facts.pad_token is not None:
        made["pad_token"] = facts.pad_token
    if tokenizer.split_special_tokens:
        made["split_special_tokens"] = True
    return made
