"""The section of a data set in config.yaml: its files, and how a row becomes a document."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .types import Names, Section


class Document(Section):
    """How a row becomes a document: exactly one of text, prompt + completion, messages,
    instruction + output, or source + target, which are a document each.

    `text`, `prompt`, `completion`, `instruction`, `input`, `output`, `source` and `target`
    are a column's name, or a template with {column} in it; {bos_token} and {eos_token} stand
    for the tokenizer's own. `messages` are one or several columns, put one after the other.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    instruction: str | None = None
    input: str | None = None
    output: str | None = None
    style: Literal["alpaca", "chat"] = "alpaca"
    source: str | None = None
    target: str | None = None
    messages: Names | None = None
    system: str | None = None
    tools: str | None = None
    chat_template: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Document:
        forms = [self.text is not None, self.messages is not None]
        forms.append(self.prompt is not None or self.completion is not None)
        forms.append(self.instruction is not None or self.output is not None)
        forms.append(self.is_pair)
        if sum(forms) != 1:
            raise ValueError(
                "give one of: text; prompt and completion; instruction and output; source and "
                "target; messages"
            )
        for one, other in (
            ("prompt", "completion"),
            ("instruction", "output"),
            ("source", "target"),
        ):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one} and {other} go together")
        if self.instruction is None and (
            "style" in self.model_fields_set or self.input is not None
        ):
            raise ValueError("input and style go with instruction and output")
        chat = ("chat_template", "tools", "system")
        if not self.is_chat and (given := [name for name in chat if getattr(self, name)]):
            raise ValueError(
                f"{' and '.join(given)} go with messages, or with instruction and style: chat"
            )
        return self

    @property
    def is_pair(self) -> bool:
        """Whether a row is a text and its translation, for encoder-decoder models."""
        return self.source is not None or self.target is not None

    @property
    def is_chat(self) -> bool:
        """Whether a row is a conversation, which goes through the chat template."""
        return self.messages is not None or (self.instruction is not None and self.style == "chat")

    @property
    def has_completion(self) -> bool:
        """Whether a row's end alone may be trained on."""
        parts = self.completion is not None or self.instruction is not None
        return parts or len(self.messages or []) > 1


class Validation(Section):
    """What is kept for validation: a fraction of the documents, other files, or a hub split."""

    fraction: float | None = Field(None, ge=0, lt=1)
    seed: int = 42
    files: Names | None = None
    split: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Validation:
        if sum(v is not None for v in (self.fraction, self.files, self.split)) != 1:
            raise ValueError("give one of: fraction (with seed); files; split")
        return self


Format = Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "text"]


# Keys that mean something with `files` or with `hub` alone, and what to do without them.
FILES_ALONE = {
    "format": "`datasets` finds out how the files are read",
    "sample_by": "`datasets` finds out how the files are read",
}
HUB_ALONE = {
    "name": "name the files of one configuration",
    "split": "name the files of that split (of a folder that `datasets` saved: FOLDER/SPLIT)",
    "num_shards": "shard_size: says how files are cut",
}


class Dataset(Section):
    """A data set. Without `document` it is the column `text`, or what its columns tell
    (documents.recognized)."""

    files: Names | None = None
    hub: str | None = None
    name: str | None = None
    split: str = "train"
    num_shards: int = Field(8, ge=1, le=100_000)
    format: Format = "auto"
    sample_by: Literal["line", "paragraph", "document"] = "line"
    columns: dict[str, str] = Field({})
    document: Document = Document(text="text")
    loss: Literal["all", "completion", "assistant"] = "all"
    roles_to_train: Names = Field(["assistant"])
    train_on_eos: bool = True
    overflow: Literal["truncate", "split", "drop"] = "truncate"
    packing: Literal["none", "best_fit"] = "none"
    validation: Validation | None = Validation(fraction=0.05)

    @property
    def files_by_split(self) -> dict[str, list[str]]:
        """The files of each split, as config.yaml names them."""
        validation = self.validation.files if self.validation else None
        return {"train": self.files or [], "validation": validation or []}

    @property
    def is_to_be_recognized(self) -> bool:
        """Whether nothing says how a row becomes a document."""
        return "document" not in self.model_fields_set and self.hub is None

    def wholly_trained(self) -> Dataset:
        """The same documents with the loss on all of them, as a tokenizer is trained on them."""
        whole = {"loss": "all", "roles_to_train": ["assistant"], "train_on_eos": True}
        return self.model_copy(update=whole)

    @model_validator(mode="after")
    def _consistent(self) -> Dataset:
        if (self.files is None) == (self.hub is None):
            raise ValueError("give files, or hub (a hub id with its commit, or a folder)")
        self._check_words()
        if not self.is_to_be_recognized:
            self._check_loss()
        if self.roles_to_train != ["assistant"] and self.loss != "assistant":
            raise ValueError("roles_to_train needs loss: assistant")
        if not self.train_on_eos and self.loss == "all":
            raise ValueError("train_on_eos: false needs loss: completion or loss: assistant")
        if self.document.is_pair and self.packing != "none":
            raise ValueError(
                f"packing: {self.packing} is not for document: {{source: …, target: …}}, of which "
                "each pair is a row; set packing: none"
            )
        if self.document.is_pair and self.overflow == "split":
            raise ValueError(
                "overflow: split would part a source from its target; take truncate or drop"
            )
        if self.validation and self.validation.split and self.hub is None:
            raise ValueError("validation: {split: …} needs hub; files need validation: {files: …}")
        if self.validation and self.validation.files and self.hub is not None:
            raise ValueError("validation: {files: …} needs files; for a hub data set give a split")
        if self.validation and self.validation.split == self.split:
            raise ValueError(
                f"validation: {{split: {self.split}}} is what is trained on; give another split"
            )
        return self

    def _check_words(self) -> None:
        """Raises ValueError for what says how other data than these are found or read."""
        of, others = ("hub", FILES_ALONE) if self.hub is not None else ("files", HUB_ALONE)
        if given := [name for name in others if name in self.model_fields_set]:
            one = given[0]
            raise ValueError(f"{one} does nothing with {of}: {others[one]}; leave it out")

    def _check_loss(self) -> None:
        if self.loss == "completion" and not self.document.has_completion:
            raise ValueError("loss: completion needs document: {prompt: …, completion: …}")
        if self.loss == "assistant" and not self.document.is_chat:
            raise ValueError("loss: assistant needs document: {messages: …}")
