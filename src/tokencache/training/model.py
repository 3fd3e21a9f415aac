"""The model of a run: from an architecture, with random weights, or from given weights."""

from __future__ import annotations

import difflib
import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    set_seed,
)

from ..base import manifest
from ..errors import UserError
from ..sources import weights
from ..tokenizer import given as own_tokenizers

# transformers would ask the hub to convert weights that are not safetensors.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

# Keys that transformers takes for many architectures and rewrites.
REWRITTEN = {"rope_theta", "rope_scaling", "partial_rotary_factor", "torch_dtype", "dtype"}

LOAD_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError,
               AttributeError, ZeroDivisionError, SafetensorError)  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """Every id is below `size`; `pad` is always an id, the others None where there is no token."""

    size: int
    bos: int | None
    eos: int | None
    pad: int


def vocabulary(folder: Path) -> Vocabulary:
    """What a model must know of the tokenizer in this folder."""
    facts = own_tokenizers.facts(folder)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def number(token: str | None) -> int | None:
        return None if token is None else backend.token_to_id(token)

    eos, pad = number(facts.eos_token), number(facts.pad_token)
    # Any id will do: padding is masked by length.
    pad = next(token for token in (pad, eos, 0) if token is not None)
    return Vocabulary(facts.vocab_size, number(facts.bos_token), eos, pad)


def load(run: dict[str, Any], vocab: Vocabulary) -> PreTrainedModel:
    """The model of a run of the plan, in float32 on the CPU, ready to train.

    Raises UserError, which names the key of config.yaml, for an architecture or
    weights that can't be used with this vocabulary and max_length, and for weights
    that are not those that the plan is for.
    """
    make = _from_scratch if run["weights"] is None else _from_weights
    model = make(run, vocab)
    # torch would never train the embedding of the pad token, which may be a real eos.
    for part in (model, model.get_encoder(), model.get_decoder()) if run["pairs"] else (model,):
        part.get_input_embeddings().padding_idx = None
    for settings in (model.config, model.generation_config):
        if settings is not None:
            settings.pad_token_id = vocab.pad
            if run["pairs"] and settings.decoder_start_token_id is None:
                settings.decoder_start_token_id = _start(vocab)
    return model


def _start(vocab: Vocabulary) -> int:
    """What a decoder begins with; like Marian's and T5's, it may be the pad token."""
    return vocab.pad if vocab.bos is None else vocab.bos


def _class(run: dict[str, Any], config: Any, where: str) -> Any:
    """The kind of model that a run's data is for.

    Raises UserError for pairs and an architecture that is no encoder with a decoder.
    """
    if not run["pairs"]:
        return AutoModelForCausalLM
    if type(config) not in AutoModelForSeq2SeqLM._model_mapping:
        raise UserError(
            f"{where}: {config.model_type} has no encoder and decoder, which "
            f"document: {{source: …, target: …}} of datasets.{run['dataset']} needs; take one that "
            "has, such as marian, bart or t5, or leave the combination out (see build:)"
        )
    return AutoModelForSeq2SeqLM


def _from_scratch(run: dict[str, Any], vocab: Vocabulary) -> PreTrainedModel:
    where = f"models.{run['model']}.architecture"
    given = dict(run["architecture"])
    given.setdefault("vocab_size", vocab.size)
    own_tokenizers.check_architecture(given, vocab.size, f"models.{run['model']}")
    config = _config(where, given)
    _check_keys(where, config, given)
    _set_positions(where, config, given, run["max_length"])
    config.bos_token_id, config.eos_token_id, config.pad_token_id = vocab.bos, vocab.eos, None
    kind = _class(run, config, f"{where}.model_type")
    if run["pairs"]:
        _set_decoder(config, vocab)
    set_seed(run["training"]["seed"])
    try:
        model = _with_attention(
            lambda attention: kind.from_config(
                config, attn_implementation=attention, dtype=torch.float32
            )
        )
    except LOAD_ERRORS as error:
        raise UserError(f"{where}: no model can be made of this: {short(error)}") from None
    if run["pairs"]:
        model.generation_config.max_length = run["max_length"]
    return model


def _set_decoder(config: Any, vocab: Vocabulary) -> None:
    """Tokens of encoder-decoder models, whose defaults are ids of other vocabularies.

    Some count positions by the pad token, so it must be there when they are made.
    """
    config.pad_token_id = vocab.pad
    config.decoder_start_token_id = _start(vocab)
    for name, token in (("forced_eos_token_id", vocab.eos), ("forced_bos_token_id", None)):
        if hasattr(config, name):
            setattr(config, name, token)


def _config(where: str, given: dict[str, Any]) -> Any:
    kind = given["model_type"]
    try:
        known = AutoConfig.for_model(kind)
    except ValueError as error:
        names = str(error).partition("contain one of ")[2].split(", ")
        near = difflib.get_close_matches(str(kind), names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{where}.model_type: transformers knows no {kind!r}{hint}") from None
    rest = {key: value for key, value in given.items() if key != "model_type"}
    try:
        return type(known)(**rest)
    except Exception as error:  # transformers checks values with exceptions of many kinds
        raise UserError(f"{where}: {short(error)}") from None


def _check_keys(where: str, config: Any, given: dict[str, Any]) -> None:
    """Unknown keys would be kept in silence, and the default used."""
    kind = type(config)
    known = set(kind().to_dict()) | set(kind.attribute_map) | REWRITTEN
    known |= set(inspect.signature(kind.__init__).parameters) | set(
        inspect.signature(kind).parameters
    )
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{where}.{key}: {given['model_type']} has no such key{hint}")


def _set_positions(where: str, config: Any, given: dict[str, Any], max_length: int) -> None:
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or positions >= max_length:
        return
    name = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    for key in ("max_position_embeddings", name):
        if key in given:
            raise UserError(
                f"{where}.{key}: {positions} is less than max_length: {max_length}; raise it, or "
                "leave it out"
            )
    config.max_position_embeddings = max_length


def _with_attention(make: Any) -> PreTrainedModel:
    """SDPA, and eager attention for the architectures that have no other."""
    try:
        return make("sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return make("eager")


def _from_weights(run: dict[str, Any], vocab: Vocabulary) -> PreTrainedModel:
    where, name = f"models.{run['model']}.weights", run["weights_folder"]
    options = {"trust_remote_code": run["trust_remote_code"]}
    if run["weights"]["hub"]:
        manifest.check(Path(name), where)  # a folder of ours
    weights.check(Path(name), where)
    try:
        config = AutoConfig.from_pretrained(name, **options)
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and positions < run["max_length"]:
            raise UserError(
                f"max_length: {run['max_length']} is more than the {positions} positions of {name} "
                f"({where}); take a shorter max_length for this model (see build:)"
            )
        kind = _class(run, config, f"{where}: {name}")
        set_seed(run["training"]["seed"])
        model, info = _with_attention(
            lambda attention: kind.from_pretrained(
                name, config=config, use_safetensors=True, dtype=torch.float32,
                attn_implementation=attention, output_loading_info=True, **options,
            )
        )  # fmt: skip
    except LOAD_ERRORS as error:
        hint = ""
        if "safetensors" in str(error):
            hint = "; only safetensors are loaded, because pickle files can run any code"
        raise UserError(f"{where}: {name} can't be loaded: {short(error)}{hint}") from None
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(
            f"{where}: {name} lacks weights of a language model: {', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}; give weights with a language-model head"
        )
    weights.check_identity(run, where)
    _check_embedding(where, name, model, vocab)
    _set_tokens(model, vocab)
    return model


def _check_embedding(where: str, name: str, model: PreTrainedModel, vocab: Vocabulary) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < vocab.size:
        raise UserError(
            f"{where}: {name} has {rows} embeddings, fewer than the tokenizer's {vocab.size} "
            f"tokens; give models.{where.split('.')[1]}.tokenizer the tokenizer of these weights, "
            "or weights whose embedding was resized"
        )


def _set_tokens(model: PreTrainedModel, vocab: Vocabulary) -> None:
    """The tokenizer's bos and eos, except where the model's own ends include it already."""
    for settings in (model.config, model.generation_config):
        if settings is None:
            continue
        settings.bos_token_id = vocab.bos
        ends = settings.eos_token_id
        if vocab.eos not in (ends if isinstance(ends, list) else [ends]):
            settings.eos_token_id = vocab.eos


def short(error: BaseException) -> str:
    """What an error says, in one line that is not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "…"
