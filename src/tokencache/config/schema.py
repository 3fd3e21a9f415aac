"""config.yaml: its schema, its defaults, and messages that name the key and the fix."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ..base import plain
from ..base.credentials import hidden
from ..errors import UserError
from .dataset import Dataset
from .explain import unknown
from .types import Bytes, Folder, Length, Names, OneOrMore, Section, Switch

MOST_LETTERS = 128  # of a name, which stands in the names of files
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")

# Names of the workflow's own rules, targets and folders, which no model can have.
RESERVED = {
    "all", "caches", "fetch", "materialize_tokenizer", "train_tokenizer", "tokenize", "token_set",
    "pack", "pack_part", "train", "images", "build_image", "sources", "tokenizers", "tokens",
    "quarantine",
}  # fmt: skip


class TokenizerTraining(Section):
    """A tokenizer that the workflow trains."""

    dataset: Names
    algorithm: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    vocab_size: int = Field(32_000, ge=64, le=2**24)
    min_frequency: int = Field(2, ge=1)
    bos_token: str | None = None
    eos_token: str = "<|endoftext|>"
    pad_token: str = "<|pad|>"
    unk_token: str | None = None
    special_tokens: list[str] = Field([])
    lowercase: bool = False
    chat_template: str | None = None


class MLflow(Section):
    """Where records of runs go as well; None: a database in the results folder."""

    tracking_uri: str | None = None
    experiment: str = Field("tokencache", min_length=1)


class Training(Section):
    """Names and meanings are those of transformers.TrainingArguments, but for these.

    `nodes` times `processes_per_node` processes share the rows of each optimizer step,
    per_device_train_batch_size times gradient_accumulation_steps. `max_tokens` takes the
    place of the first: batches of so many tokens, padding included, which they share whole.
    """

    num_train_epochs: float = Field(1.0, gt=0)
    max_steps: int = -1
    per_device_train_batch_size: int = Field(8, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    group_by_length: bool | None = None
    per_device_eval_batch_size: int = Field(8, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    learning_rate: float = Field(5e-5, gt=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = "linear"
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    warmup_steps: int = Field(0, ge=0)
    label_smoothing_factor: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tf32: bool | None = None
    attn_implementation: Literal[
        "auto", "eager", "sdpa", "sdpa_per_document", "varlen", "flash_attention_2",
        "flash_attention_3", "flex_attention",
    ] = "auto"  # fmt: skip
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    dataloader_num_workers: int | None = Field(None, ge=0)
    seed: int = Field(42, ge=0, lt=2**32)
    logging_steps: int = Field(10, ge=1)
    eval_steps: int | None = Field(None, ge=1)
    eval_on_start: bool = True
    save_steps: int = Field(500, ge=1)
    save_minutes: float | None = Field(None, gt=0)
    save_total_limit: int = Field(2, ge=1)
    load_best_model_at_end: bool = False
    nodes: int = Field(1, ge=1)
    processes_per_node: int = Field(1, ge=1)
    fsdp: bool = False
    mlflow: Annotated[MLflow | None, Switch] = None

    @model_validator(mode="after")
    def _one_size(self) -> Training:
        given = "per_device_train_batch_size" in self.model_fields_set
        if given and self.max_tokens is not None:
            raise ValueError("give max_tokens or per_device_train_batch_size, not both")
        return self


class Lora(Section):
    """An adapter that is trained in the place of the weights.

    Names and meanings are those of peft.LoraConfig, but for `merge`: whether the result is
    the weights with the adapter merged into them.
    """

    r: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Names = Field(["all-linear"])
    modules_to_save: Annotated[list[str], OneOrMore] = Field([])
    use_rslora: bool = False
    merge: bool = False


class Model(Section):
    tokenizer: str | None = None
    weights: str | None = None
    lora: Lora | None = None
    architecture: dict[str, Any] | None = None
    chat_template: str | None = None
    trust_remote_code: bool = False
    training: Training = Training()

    @model_validator(mode="after")
    def _consistent(self) -> Model:
        if self.tokenizer is None and self.weights is None:
            raise ValueError(
                "give tokenizer: a folder, a tokenizer.json, ID@COMMIT or a tokenizers.NAME"
            )
        if self.weights is not None and self.architecture is not None:
            raise ValueError("give weights (to fine-tune) or architecture (from scratch), not both")
        if self.lora is not None and self.weights is None:
            raise ValueError(
                "lora adapts given weights; give weights, or leave lora out to train all of an "
                "architecture"
            )
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("architecture needs model_type, for example llama")
        return self

    @property
    def tokenizer_reference(self) -> str:
        return self.tokenizer if self.tokenizer is not None else self.weights


class Combination(Section):
    model: Names = Field(["all"])
    dataset: Names = Field(["all"])
    max_length: Annotated[list[Length | Literal["all"]], OneOrMore, Field(min_length=1)] = Field(
        ["all"]
    )


class Containers(Section):
    """What images of the jobs start from: never part of a key, so it makes nothing stale."""

    base: str = "docker://python:3.11-slim-bookworm"

    @field_validator("base")
    @classmethod
    def _known(cls, value: str) -> str:
        # It becomes a line of a definition file, in which another line could say anything.
        if not value.strip() or not value.isprintable() or re.search("[{}]", value):
            raise ValueError(f"{value!r} can't name an image; give one line without {{}}")
        if value != "debian" and "://" not in value and not os.path.exists(value):
            raise ValueError(
                f"there is no folder or image {plain.shown(value)}; give one, a URL such as "
                "docker://python:3.11-slim-bookworm, or debian"
            )
        return value


class Config(Section):
    cache: Folder = "cache"
    results: Folder = "results"
    shard_size: Bytes = 64 * 2**20
    tokenizers: dict[str, TokenizerTraining] = Field({})
    models: dict[str, Model] = Field(min_length=1)
    datasets: dict[str, Dataset] = Field(min_length=1)
    max_length: Annotated[list[Length], OneOrMore, Field(min_length=1)]
    build: Literal["all"] | Annotated[list[Combination], Field(min_length=1)] = "all"
    training: Training = Training()
    engine: Literal["auto", "gigatoken", "tokenizers"] = "auto"
    format: Literal["dataset", "view"] = "dataset"
    containers: Containers = Containers()

    @model_validator(mode="after")
    def _apart(self) -> Config:
        if os.path.realpath(self.cache) == os.path.realpath(self.results):
            raise ValueError("cache and results need a folder each")
        return self

    @field_validator("models", "datasets", "tokenizers")
    @classmethod
    def _names(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        for name in value:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"the name {plain.shown(name)} may hold letters, digits, '_', '-', '.' only"
                )
            if len(name) > MOST_LETTERS:
                raise ValueError(
                    f"the name {name} has {len(name)} letters; folders are called by it, so give "
                    f"one of {MOST_LETTERS} at most"
                )
            if info.field_name == "models" and name in RESERVED:
                raise ValueError(f"a model can't be named {name!r}: a target has that name")
        return value

    def combinations(self) -> list[tuple[str, str, int]]:
        """Every (model, dataset, max_length) to build, each once, in config order."""
        wanted = [Combination()] if self.build == "all" else self.build
        known = {"model": list(self.models), "dataset": list(self.datasets)}
        found: dict[tuple[str, str, int], None] = {}
        for number, entry in enumerate(wanted):
            for kind, names in known.items():
                for name in getattr(entry, kind):
                    if name != "all" and name not in names:
                        raise UserError(
                            f"build.{number}.{kind}: {unknown(name, names, '', what=kind)}"
                        )
            for model in known["model"] if "all" in entry.model else entry.model:
                for dataset in known["dataset"] if "all" in entry.dataset else entry.dataset:
                    lengths = self.max_length if "all" in entry.max_length else entry.max_length
                    for length in lengths:
                        found[model, dataset, length] = None
        return list(found)

    def shown(self) -> dict[str, Any]:
        """All settings as plain JSON, which anybody may read."""
        found = self.model_dump(mode="json")
        for training in (found["training"], *(m["training"] for m in found["models"].values())):
            if training["mlflow"] and (uri := training["mlflow"]["tracking_uri"]):
                training["mlflow"]["tracking_uri"] = hidden(uri)
        return found

    def training_of(self, model: str) -> Training:
        """The training settings of one model: the common ones, with its own laid over them."""
        training = self.models[model].training
        own = {name: getattr(training, name) for name in training.model_fields_set}
        if "per_device_train_batch_size" in own:
            own.setdefault("max_tokens", None)
        return self.training.model_copy(update=own)
