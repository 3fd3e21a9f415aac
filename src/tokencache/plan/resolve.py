"""From the configuration to the plan: hash what is new, derive every key, see what is missing."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict
from typing import Any

from ..base.hashing import key_of
from ..config.references import Reference, reference
from ..config.schema import Config, Dataset, TokenizerTraining
from ..documents import render, rendering, templates
from ..documents.recipe import needed_columns, recipe_of, sides
from ..errors import UserError
from ..sources import identity as fingerprint
from ..sources import weights as model_weights
from ..sources.index import Index
from ..tokenizer import files as tokenizer_files
from ..tokenizer import given as tokenizers
from ..tokenizer import trained
from . import run_keys, token_jobs
from .data_sets import DataSets
from .plan import ID_TIME, INDEX, Plan, fetched_path, target_path, tokenizer_path

# Raise when the same inputs give a cache of other bytes.
CACHE_VERSION = 3

# Of sources, about: what one job writes the rows of.
BYTES_IN_A_PART = 2**31
MOST_PARTS = 256


def resolve(config: Config) -> Plan:
    """Hash what is new, derive every key, and find which token shards are missing."""
    with Index(INDEX) as index:
        return Plan(_Resolver(config, index).data())


class _Resolver:
    """Derives keys from sources to runs, in the order of the data flow."""

    def __init__(self, config: Config, index: Index) -> None:
        self.config = config
        self.index = index
        self.data_sets = DataSets(config, index)
        self.shards = self.data_sets.shards
        self.fetches = self.data_sets.fetches
        self.recipes: dict[str, dict[str, Any]] = {}
        self.tokens: dict[str, dict[str, Any]] = {}
        self.token_sets: dict[str, dict[str, Any]] = {}
        self._token_set_of: dict[tuple[str, str, str | None], str] = {}
        self._token_sets_made: dict[tuple[str, str, str], str] = {}
        self._parts_of: dict[str, int] = {}
        self.tokenizers: dict[str, dict[str, Any]] = {}
        self._facts: dict[tuple[str, bool], dict[str, Any]] = {}
        self._renderings: dict[str, str] = {}
        self._weights: dict[tuple[Reference, bool], list[Any]] = {}

    def data(self) -> dict[str, Any]:
        caches: dict[str, Any] = {}
        runs: dict[str, Any] = {}
        for model, dataset, max_length in self.config.combinations():
            path, cache = self._cache(model, dataset, max_length)
            caches[path] = cache
            found = self._run(model, path, cache)
            if found:
                runs[found[0]] = found[1]
        return {
            "id": time.strftime(f"{ID_TIME}-") + secrets.token_hex(3),
            "config": self.config.shown(),
            "shards": self.shards,
            "sources": self.data_sets.sources,
            "recipes": self.recipes,
            "tokens": self.tokens,
            "token_sets": self.token_sets,
            "tokenizers": self.tokenizers,
            "fetches": self.fetches,
            "caches": caches,
            "runs": runs,
            "batches": token_jobs.batches(self.config, self.token_sets, self.tokens, self.shards),
        }

    # Tokenizers

    def facts_of(self, model: str) -> dict[str, Any]:
        """The facts of a model's tokenizer, with the chat template that it brings."""
        settings = self.config.models[model]
        reference = settings.tokenizer_reference
        given = (reference, settings.trust_remote_code)
        if given not in self._facts:
            if reference in self.config.tokenizers:
                found = self._trained(reference, self.config.tokenizers[reference])
            else:
                found = self._given(model, reference)
            self._facts[given] = found["facts"]
            shared = found | {"facts": asdict(tokenizers.Facts(**found["facts"]).shared)}
            self.tokenizers.setdefault(self._folder(found["facts"]), shared)
        return self._facts[given]

    def _folder(self, facts: dict[str, Any]) -> str:
        return tokenizer_path(self.config.cache, facts["key"])

    def _given(self, model: str, given: str) -> dict[str, Any]:
        settings = self.config.models[model]
        where = f"models.{model}.{'tokenizer' if settings.tokenizer is not None else 'weights'}"
        wanted = reference(given, where)
        files = [] if wanted.hub else tokenizer_files.files_of(wanted)
        names = wanted.model_dump() if wanted.hub else [file.name for file in files]
        about = [tokenizers.VERSIONS(), tokenizers.FACTS_VERSION, names, settings.trust_remote_code]
        try:
            facts = self.index.recall(
                files,
                about,
                lambda: asdict(tokenizers.describe(wanted, settings.trust_remote_code)),
            )
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        return {
            "reference": wanted.model_dump(),
            "trust_remote_code": settings.trust_remote_code,
            "facts": facts,
        }

    def _trained(self, name: str, settings: TokenizerTraining) -> dict[str, Any]:
        try:
            facts = trained.planned_facts(settings.model_dump())
        except UserError as error:
            raise UserError(f"tokenizers.{name}.{error}") from None
        texts = []
        for dataset_name in settings.dataset:
            dataset = self.data_sets.dataset(dataset_name).wholly_trained()
            where = f"tokenizers.{name}"
            template = templates.template_text(dataset.document.chat_template)
            used = facts | ({"chat_template": template} if template is not None else {})
            recipes = [
                self._recipe(where, dataset_name, dataset, used, side) for side in sides(dataset)
            ]
            for shard in self.data_sets.shards_of(dataset_name)["train"]:
                texts += [[recipe, shard] for recipe in recipes]
        made_of = trained.made_of(settings.model_dump())
        key = key_of(["trained tokenizer", made_of, texts])
        return {
            "name": name,
            "training": settings.model_dump(),
            "texts": texts,
            "facts": facts | {"key": key, "parts": facts["parts"] | {"text": key_of(texts)}},
        }

    # Documents, token shards

    def _recipe(
        self, where: str, name: str, dataset: Dataset, facts: dict[str, Any], side: str | None
    ) -> str:
        self.data_sets.shards_of(name)
        try:
            about = (facts["chat_template"], facts["special_tokens"], side, facts["tool_template"])
            recipe = recipe_of(dataset, *about)
        except UserError as error:
            raise UserError(f"datasets.{name} for {where}: {error}") from None
        if recipe["form"] == "messages":
            recipe["rendering"] = self._rendering(recipe)
        self.data_sets.check_columns(name, needed_columns(recipe))
        key = key_of(recipe)
        self.recipes[key] = recipe
        return key

    def _rendering(self, recipe: dict[str, Any]) -> str:
        """See rendering.identity: found once for each version of what renders."""
        key = key_of(recipe)
        if key not in self._renderings:
            files, versions = rendering.decided_by()
            self._renderings[key] = self.index.recall(
                files,
                ["rendering", versions, recipe],
                lambda: rendering.identity(render.chat_of(recipe)),
            )
        return self._renderings[key]

    def token_set(self, model: str, name: str, side: str | None) -> str:
        """The token shards of a data set (of its source or target, where it has these) for a
        model: the same set for models that share a tokenizer (and, for chat, a template)."""
        if (model, name, side) not in self._token_set_of:
            facts, dataset = self.facts_of(model), self.data_sets.dataset(name)
            facts = facts | self._chat_templates(model, dataset)
            recipe = self._recipe(f"models.{model}", name, dataset, facts, side)
            made_of = (facts["key"], recipe, name)
            if made_of not in self._token_sets_made:
                self._token_sets_made[made_of] = self._new_token_set(*made_of)
            self._token_set_of[model, name, side] = self._token_sets_made[made_of]
        return self._token_set_of[model, name, side]

    def _new_token_set(self, tokenizer: str, recipe: str, name: str) -> str:
        splits = {}
        for split, shards in self.data_sets.shards_of(name).items():
            splits[split] = []
            for shard in shards:
                key = key_of(["tokens", tokenizer, recipe, shard])
                self.tokens[key] = {"tokenizer": tokenizer, "recipe": recipe, "shard": shard}
                splits[split].append(key)
        made_of = {"tokenizer": tokenizer, "recipe": recipe, "dataset": name, "splits": splits}
        key = key_of(made_of)
        self.token_sets[key] = made_of
        return key

    def _chat_templates(self, model: str, dataset: Dataset) -> dict[str, str | None]:
        """The chat template in force, and the one for rows with tools if that is another,
        without the comments that change nothing."""
        given = dataset.document.chat_template or self.config.models[model].chat_template
        if given is not None:
            found = tokenizers.NO_TEMPLATES | {"chat_template": templates.template_text(given)}
        else:
            found = {name: self.facts_of(model)[name] for name in tokenizers.NO_TEMPLATES}
        return {name: text and templates.uncommented(text) for name, text in found.items()}

    # Caches and runs

    def _cache(self, model: str, name: str, max_length: int) -> tuple[str, dict[str, Any]]:
        dataset = self.data_sets.dataset(name)
        facts = self.facts_of(model)
        specials = len(facts["prefix"]) + len(facts["suffix"])
        if not dataset.document.is_chat and max_length <= specials:
            raise UserError(
                f"max_length: {max_length} leaves no room for text: the tokenizer of {model!r} "
                f"adds {specials} special tokens to each document"
            )
        sets = [self.token_set(model, name, side) for side in sides(dataset)]
        splits = [self.token_sets[token_set]["splits"] for token_set in sets]
        validation = dataset.validation.model_dump() if dataset.validation else None
        if validation:
            validation = {k: validation[k] for k in ("fraction", "seed")}
            if validation["fraction"] is None:
                validation = "given"
            elif validation["fraction"] == 0:  # whatever the seed
                validation = None
        decides = {
            "version": CACHE_VERSION,
            "max_length": max_length,
            "overflow": dataset.overflow,
            "packing": dataset.packing,
            "validation": validation,
        }
        if dataset.overflow == "truncate" and facts["settings"].get("truncation_side") == "left":
            decides["truncation_side"] = "left"
        rows_key = key = key_of(["dataset", decides, *splits])
        if self.config.format == "view":
            decides["format"] = "view"
            key = key_of(["dataset", decides, *splits])
        return target_path(self.config.cache, model, name, max_length, key), {
            "key": key,
            "rows_key": rows_key,
            "parts": 1 if self.config.format == "view" else self._parts(sets[0]),
            "model": model,
            "dataset": name,
            "token_set": sets[0],
            "target_set": sets[1] if dataset.document.is_pair else None,
            "tokenizer": self._folder(facts),
            **decides,
        }

    def _parts(self, token_set: str) -> int:
        """How many jobs write a dataset; they make the same bytes, however many."""
        if token_set not in self._parts_of:
            splits = self.token_sets[token_set]["splits"].values()
            shards = [self.tokens[key]["shard"] for keys in splits for key in keys]
            total = sum(self.shards[shard]["bytes"] or self.config.shard_size for shard in shards)
            self._parts_of[token_set] = min(MOST_PARTS, max(1, round(total / BYTES_IN_A_PART)))
        return self._parts_of[token_set]

    def _run(self, model: str, path: str, cache: dict[str, Any]) -> tuple[str, dict] | None:
        settings = self.config.models[model]
        if settings.weights is None and settings.architecture is None:
            return None
        if settings.architecture and settings.tokenizer_reference not in self.config.tokenizers:
            size = self.facts_of(model)["vocab_size"]  # of one to be trained, it may get smaller
            tokenizers.check_architecture(settings.architecture, size, f"models.{model}")
        weights = identity = None
        if settings.weights is not None:
            where = f"models.{model}.weights"
            weights = reference(settings.weights, where)
            identity = self._weights_identity(weights, settings.trust_remote_code, where)
        document = self.data_sets.dataset(cache["dataset"]).document
        run = {
            "model": model,
            "dataset": cache["dataset"],
            "max_length": cache["max_length"],
            "cache": path,
            "cache_key": cache["key"],
            "rows_key": cache["rows_key"],
            "tokenizer": cache["tokenizer"],
            "chat": document.is_chat,
            "tools": document.tools is not None,
            **self._chat_templates(model, self.data_sets.dataset(cache["dataset"])),
            "tokenizer_settings": self.facts_of(model)["settings"],
            "weights": weights.model_dump() if weights else None,
            "weights_identity": identity,
            "weights_folder": self._weights_folder(model, weights, identity),
            "pairs": document.is_pair,
            "lora": settings.lora and settings.lora.model_dump(),
            "architecture": settings.architecture,
            "trust_remote_code": settings.trust_remote_code,
            "training": self.config.training_of(model).model_dump(),
        }
        run["key"] = run_keys.key(run, cache["packing"] != "none")
        where = (model, cache["dataset"], cache["max_length"], run["key"])
        return target_path(self.config.results, *where), run

    def _weights_identity(self, wanted: Reference, trusted: bool, where: str) -> list[Any]:
        if (wanted, trusted) not in self._weights:
            self._weights[wanted, trusted] = model_weights.identity(
                wanted, trusted, lambda files: fingerprint.file_digests(files, self.index), where
            )
        return self._weights[wanted, trusted]

    def _weights_folder(
        self, model: str, weights: Reference | None, identity: list[Any] | None
    ) -> str | None:
        """Where a run finds its weights: those of a hub, where they are fetched to."""
        if weights is None or not weights.hub:
            return weights and weights.path
        key = key_of(["hub weights", identity])
        folder = fetched_path(self.config.cache, key)
        self.fetches[folder] = {"key": key, "model": model, "reference": weights.model_dump()}
        return folder
