"""Cache rows are Hugging Face's: `tokenizer(text, truncation=True, max_length=L)`, every id."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from conftest import PUBLISHED, SHARED, TOYS, batches_of, make_text, make_texts
from transformers import AutoTokenizer

from tokencache.base import limits
from tokencache.caches import dataset
from tokencache.caches.rows import IGNORED
from tokencache.config.references import Reference
from tokencache.config.schema import Dataset
from tokencache.documents.recipe import recipe_of
from tokencache.errors import UserError
from tokencache.sources import read
from tokencache.sources.source import Piece, Source
from tokencache.tokenizer import given
from tokencache.tokens import engines, write

MAX_LENGTH = 64

CHATML = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
)
# The mark ends at a space and sometimes begins at one, which some tokenizers' tokens don't hold.
PLAIN = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ ' ' if loop.index % 4 == 3 }}{{ m.content }} {% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """2,000 documents and more, one of them of a megabyte."""
    found = [*make_texts(2000), make_text(random.Random(5), 130_000)]
    for name in ("instruct", "long"):
        file = SHARED / "text" / f"{name}.jsonl"
        if file.exists():
            lines = file.read_text(encoding="utf-8").split("\n")[:3000:100]
            found += [json.loads(line)["text"][:5000] for line in lines if line]
    return found


def write_rows(path: Path, rows: list[dict]) -> Piece:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return Piece(Source(str(path), "jsonl", None, "line"), 0, path.stat().st_size)


@pytest.fixture(scope="module")
def materialized(tokenizer_folder, tmp_path_factory):
    """By name: the materialized folder, and the tokenizer as its user knows it."""
    made: dict[str, tuple] = {}

    def find(name: str) -> tuple:
        if name not in made:
            source = tokenizer_folder(name)
            folder = materialize(source, tmp_path_factory.mktemp("materialized") / name)
            made[name] = folder, AutoTokenizer.from_pretrained(source)
        return made[name]

    return find


def materialize(source: Path, folder: Path) -> Path:
    reference = Reference(path=str(source))
    given.materialize(reference, folder, given.describe(reference).key)
    return folder


def shard(piece: Piece, recipe: dict, tokenizer: Path, out: Path, engine="auto") -> Path:
    work = [(piece, read.digest(piece), recipe, out, out.stem)]
    write.tokenize_batch(work, tokenizer, "tokenize test", engine)
    return out


def cache(path: Path, recipe: dict, tokenizer: Path, out: Path, **settings) -> datasets.Dataset:
    """Pack one token shard and open it as a user would."""
    facts = given.facts(tokenizer)
    around = [facts.prefix, facts.suffix] if recipe["add_special_tokens"] else [[], []]
    wanted = {
        "model": "model", "dataset": "data", "max_length": MAX_LENGTH, "overflow": "truncate",
        "packing": "none", "validation": None, "key": "0" * 32, **settings,
    }  # fmt: skip
    tokens = {
        "prefix": len(around[0]),
        "suffix": len(around[1]),
        "splits": {"train": {"paths": [str(path)], "shards": ["0" * 32]}},
        "provenance": {},
    }
    dataset.build(wanted, tokens, out)
    return datasets.load_from_disk(str(out))["train"]


def rows_of(data: datasets.Dataset, column: str) -> list[list[int]]:
    return data.with_format("arrow")[:][column].to_pylist()


def recipe_for(tokenizer: Path, template: str | None = None, **settings) -> dict:
    special = given.facts(tokenizer).special_tokens
    return recipe_of(Dataset(files=["-"], **settings), template, special)


@pytest.mark.parametrize("name", TOYS + PUBLISHED)
def test_rows_are_those_of_hugging_face(name, materialized, texts, tmp_path):
    tokenizer, reference = materialized(name)
    recipe = recipe_for(tokenizer)
    piece = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    made = shard(piece, recipe, tokenizer, tmp_path / "t.arrow")
    ids = pa.uint16() if len(reference) <= 2**16 else pa.int32()
    with pa.ipc.open_file(made) as reader:
        assert reader.schema.field("input_ids").type == pa.large_list(ids)

    facts = given.facts(tokenizer)
    prefix, suffix = len(facts.prefix), len(facts.suffix)
    whole = [ids for ids in reference(texts)["input_ids"] if len(ids) > prefix + suffix]
    found = cache(made, recipe, tokenizer, tmp_path / "truncate")
    wanted = reference(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    wanted = [row for row in wanted if len(row) > prefix + suffix]
    assert rows_of(found, "input_ids") == wanted
    assert rows_of(found, "labels") == [
        row if len(ids) <= MAX_LENGTH else row[: MAX_LENGTH - suffix] + [-100] * suffix
        for row, ids in zip(wanted, whole, strict=True)
    ]

    found = rows_of(
        cache(made, recipe, tokenizer, tmp_path / "split", overflow="split"), "input_ids"
    )
    assert all(0 < len(row) <= MAX_LENGTH for row in found)
    assert [i for row in found for i in row] == [i for ids in whole for i in ids]
    assert len(found) == sum(-(-len(ids) // MAX_LENGTH) for ids in whole)

    found = cache(made, recipe, tokenizer, tmp_path / "drop", overflow="drop")
    assert rows_of(found, "input_ids") == [ids for ids in whole if len(ids) <= MAX_LENGTH]


def test_an_empty_text_is_a_document_without_tokens_and_is_in_no_row(materialized, tmp_path):
    """Of tokenizers that add special tokens it would teach to say nothing."""
    rows = [{"text": ""}, {"text": "one"}, {"text": None}, {"a": 1}, {"text": " "}] * 100
    forms = [
        {"document": {"text": "text"}},
        {"document": {"text": "{text}#"}},
        {"document": {"prompt": "{text}", "completion": "{a}"}, "loss": "completion"},
    ]
    piece = write_rows(tmp_path / "a.jsonl", [row | {"a": None} for row in rows])
    for name in ("bos_eos", "wordpiece", "byte_level"):
        tokenizer, _ = materialized(name)
        for number, form in enumerate(forms):
            made = shard(
                piece, recipe_for(tokenizer, **form), tokenizer, tmp_path / f"{name}{number}"
            )
            with pa.ipc.open_file(made) as reader:
                ids = reader.read_all()["input_ids"].to_pylist()
            assert ids[0] == ids[2] == ids[3] == [] and ids[1] and len(ids) == 500
            assert name == "wordpiece" or ids[4], "a space is a text, if the tokenizer keeps it"
            if number < 2:
                kept = [row for row in ids if row]
                out = tmp_path / f"{name}{number}-cache"
                found = cache(made, recipe_for(tokenizer, **form), tokenizer, out)
                assert rows_of(found, "input_ids") == kept and len(kept) <= 200
                about = json.loads((out / "cache.json").read_text())
                assert about["documents"]["train"]["documents_empty"] == 500 - len(kept)


@pytest.mark.parametrize("name", ["bos_eos", "wordpiece", "byte_level"])
def test_a_tokenizer_that_truncates_on_the_left_does_so(name, materialized, texts, tmp_path):
    tokenizer, reference = materialized(name)
    left = AutoTokenizer.from_pretrained(reference.name_or_path, truncation_side="left")
    some = texts[:300]
    piece = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in some])
    recipe = recipe_for(tokenizer)
    made = shard(piece, recipe, tokenizer, tmp_path / "t.arrow")
    found = cache(made, recipe, tokenizer, tmp_path / "left", truncation_side="left")
    facts = given.facts(tokenizer)
    prefix, specials = len(facts.prefix), len(facts.prefix) + len(facts.suffix)
    wanted = left(some, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    wanted = [row for row in wanted if len(row) > specials]
    whole = [ids for ids in left(some)["input_ids"] if len(ids) > specials]
    assert any(len(ids) > MAX_LENGTH for ids in whole)
    assert rows_of(found, "input_ids") == wanted
    # A beginning that was cut off is not predicted from BOS.
    false = prefix + 1 if prefix else 0
    assert rows_of(found, "labels") == [
        row if len(ids) <= MAX_LENGTH else [IGNORED] * false + row[false:]
        for row, ids in zip(wanted, whole, strict=True)
    ]


def conversations(count: int) -> list[list[dict]]:
    draw = random.Random(2)
    found = []
    for number in range(count):
        turns = [{"role": "system", "content": "Be brief."}] if number % 3 else []
        for _ in range(draw.choice((1, 1, 2, 4))):
            turns.append({"role": "user", "content": make_text(draw, draw.choice((0, 3, 20)))})
            turns.append({"role": "assistant", "content": make_text(draw, draw.choice((1, 9, 30)))})
        found.append(turns[1:] if number % 5 == 0 else turns)
    return found


@pytest.mark.parametrize("template", [CHATML, PLAIN], ids=["chatml", "plain"])
@pytest.mark.parametrize("name", TOYS + PUBLISHED)
def test_chat_rows_and_masks_are_those_of_hugging_face(name, template, materialized, tmp_path):
    tokenizer, reference = materialized(name)
    settings = {"document": {"messages": "messages"}, "loss": "assistant"}
    recipe = recipe_for(tokenizer, template, **settings)
    chats = conversations(100)
    piece = write_rows(tmp_path / "a.jsonl", [{"messages": chat} for chat in chats])
    made = shard(piece, recipe, tokenizer, tmp_path / "t.arrow")
    data = cache(made, recipe, tokenizer, tmp_path / "cache")
    wanted = [
        reference.apply_chat_template(
            chat,
            chat_template=template,
            truncation=True,
            max_length=MAX_LENGTH,
            return_assistant_tokens_mask=True,
        )
        for chat in chats
    ]
    wanted = [row for row in wanted if row["input_ids"]]
    assert rows_of(data, "input_ids") == [row["input_ids"] for row in wanted]
    masks = [[int(label != IGNORED) for label in row] for row in rows_of(data, "labels")]
    assert masks == [row["assistant_masks"] for row in wanted]


@pytest.mark.parametrize("name", ["byte_level", "bos_eos", "llama", "wordpiece", "gpt2"])
@pytest.mark.parametrize("asked", [["why"], ["why", "so", "why"]], ids=["one turn", "more"])
def test_completions_of_marked_templates_are_trained_on(asked, name, materialized, tmp_path):
    """Also where an answer begins with a space, which ends the search of transformers."""
    tokenizer, reference = materialized(name)
    roles = ("user", "assistant")
    prompt = [{"role": roles[n % 2], "content": words} for n, words in enumerate(asked)]
    rows = [{"p": prompt, "c": [{"role": "assistant", "content": c}]} for c in (" so it is", "x y")]
    settings = {"document": {"messages": ["p", "c"]}, "loss": "completion"}
    recipe = recipe_for(tokenizer, PLAIN.replace("{{ ' ' if", "{{ '' if"), **settings)
    piece = write_rows(tmp_path / "a.jsonl", rows)
    made = shard(piece, recipe, tokenizer, tmp_path / "t.arrow")
    data = cache(made, recipe, tokenizer, tmp_path / "cache")
    for row, labels in zip(rows, rows_of(data, "labels"), strict=True):
        trained = [label for label in labels if label != IGNORED]
        said = row["c"][0]["content"]
        whole = reference("".join([*asked, said, " "]), add_special_tokens=False)["input_ids"]
        assert trained and whole[len(whole) - len(trained) :] == trained
        assert said.strip() in reference.decode(trained).replace(" ##", "")


@pytest.mark.parametrize("name", ["byte_level", "bos_eos", "llama", "wordpiece", "gpt2"])
def test_completion_loss_is_on_whole_tokens_of_the_completion(name, materialized, tmp_path):
    tokenizer, reference = materialized(name)
    about = given.facts(tokenizer)
    document = {"prompt": "{q}", "completion": "{a}"}
    recipe = recipe_for(tokenizer, document=document, loss="completion")
    asked = [
        {"q": "Why? ", "a": "so\n    it is  "},
        {"q": "日本", "a": "語🙂"},
        {"q": "", "a": "all"},
        {"q": "none", "a": ""},
    ]
    piece = write_rows(tmp_path / "a.jsonl", asked)
    made = shard(piece, recipe, tokenizer, tmp_path / "t.arrow")
    data = cache(made, recipe, tokenizer, tmp_path / "cache")
    for row, ids, labels in zip(
        asked, rows_of(data, "input_ids"), rows_of(data, "labels"), strict=True
    ):
        whole = reference(row["q"] + row["a"], add_special_tokens=False)["input_ids"]
        assert ids == about.prefix + whole + about.suffix
        trained = [label for label in labels if label != IGNORED]
        if not row["a"]:
            assert not trained
            continue
        prefix = [] if row["q"] else about.prefix
        assert trained[: len(prefix)] == prefix
        assert trained[len(trained) - len(about.suffix) :] == about.suffix
        content = trained[len(prefix) : len(trained) - len(about.suffix)]
        assert whole[len(whole) - len(content) :] == content
        if name in ("byte_level", "bos_eos", "gpt2"):
            # One token may begin before it: the one that holds the border.
            assert reference.decode(content).endswith(row["a"])
            assert row["a"].endswith(reference.decode(content[1:]).lstrip("\ufffd"))


def test_bytes_depend_on_documents_alone(materialized, texts, tmp_path, monkeypatch):
    tokenizer, _ = materialized("bos_eos")
    recipe = recipe_for(tokenizer)
    piece = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts[:500]])
    monkeypatch.setattr(write, "TOKENS_IN_A_BATCH", 3000)
    seen = set()
    for engine in ("gigatoken", "tokenizers"):
        for size in (10**9, 4096, 100):
            monkeypatch.setattr(limits, "_chosen", batches_of(size))
            out = tmp_path / f"{engine}{size}.arrow"
            shard(piece, recipe, tokenizer, out, engine)
            seen.add(hashlib.sha256(out.read_bytes()).digest())
            said = json.loads(out.with_suffix(".json").read_text())
            assert said["engine"] == engine
            assert said["documents"] == 500
            assert said["bytes"] == out.stat().st_size
    assert len(seen) == 1
    with pa.ipc.open_file(out) as reader:
        assert reader.num_record_batches > 5
        column = reader.read_all()["input_ids"]
    assert column.type == pa.large_list(pa.uint16())
    assert said["tokens"] == sum(len(row) for row in column.to_pylist())


def test_shards_that_are_there_are_left_alone(materialized, tmp_path, capfd):
    tokenizer, _ = materialized("bos_eos")
    recipe = recipe_for(tokenizer)
    piece = write_rows(tmp_path / "a.jsonl", [{"text": "one"}, {"text": ""}])
    there, new = tmp_path / "there.arrow", tmp_path / "new.arrow"
    there.write_bytes(b"there")
    digest = read.digest(piece)
    work = [(piece, digest, recipe, there, "there"), (piece, digest, recipe, new, "new")]
    write.tokenize_batch(work, tokenizer, "tokenize test-0001")
    assert there.read_bytes() == b"there"
    assert new.exists()
    said = capfd.readouterr().err
    assert "tokenize test-0001: engine gigatoken (same ids" in said
    assert "documents/s" in said


def test_a_piece_that_changed_leaves_nothing(materialized, tmp_path):
    tokenizer, _ = materialized("bos_eos")
    piece = write_rows(tmp_path / "a.jsonl", [{"text": "one"}])
    digest = read.digest(piece)
    (tmp_path / "a.jsonl").write_text('{"text": "two"}\n')
    out = tmp_path / "out" / "t.arrow"
    with pytest.raises(UserError, match="run snakemake again"):
        write.tokenize_batch(
            [(piece, digest, recipe_for(tokenizer), out, "t")], tokenizer, "tokenize test"
        )
    assert not list(out.parent.iterdir())


def test_engine_that_cannot_is_left_or_refused(materialized, tmp_path):
    tokenizer, _ = materialized("wordpiece")
    found = engines.Engines(tokenizer)
    assert found.current.name == "tokenizers"
    assert "gigatoken can't be used: " in found.why
    with pytest.raises(UserError, match="engine: gigatoken can't be used"):
        engines.Engines(tokenizer, "gigatoken")
    with pytest.raises(UserError, match="engine: 'fastest' is unknown"):
        engines.Engines(tokenizer, "fastest")


def test_engine_that_differs_on_documents_is_left(materialized, tmp_path, monkeypatch, capfd):
    tokenizer, _ = materialized("bos_eos")
    recipe = recipe_for(tokenizer)
    piece = write_rows(tmp_path / "a.jsonl", [{"text": f"{i} rare"} for i in range(50)])
    encode = engines.Gigatoken.encode

    def wrong(self, texts):
        found = encode(self, texts)
        if "rare" not in "".join(texts.to_pylist()):
            return found
        return engines.Encoded(found.ids[::-1].copy(), found.offsets)

    monkeypatch.setattr(engines.Gigatoken, "encode", wrong)
    made = shard(piece, recipe, tokenizer, tmp_path / "a.arrow")
    assert json.loads(made.with_suffix(".json").read_text())["engine"] == "tokenizers"
    assert "it gives other ids than tokenizers, for example for '0 rare'" in capfd.readouterr().err
    plain = shard(piece, recipe, tokenizer, tmp_path / "b.arrow", "tokenizers")
    assert made.read_bytes() == plain.read_bytes()
    with pytest.raises(UserError, match="take engine: auto"):
        shard(piece, recipe, tokenizer, tmp_path / "c.arrow", "gigatoken")
    assert not (tmp_path / "c.arrow").exists()


def test_split_special_tokens_is_kept(tokenizer_folder, tmp_path):
    """`split_special_tokens` is in no tokenizer.json: the engines must not miss it."""
    source = tmp_path / "source"
    source.mkdir()
    for file in tokenizer_folder("bos_eos").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(
        json.dumps(config | {"split_special_tokens": True})
    )
    tokenizer = materialize(source, tmp_path / "tokenizer")
    recipe = recipe_for(tokenizer)
    rows = [{"text": "a</s>b <s>"}, {"text": "plain"}]
    made = shard(write_rows(tmp_path / "a.jsonl", rows), recipe, tokenizer, tmp_path / "t.arrow")
    data = cache(made, recipe, tokenizer, tmp_path / "cache")
    reference = AutoTokenizer.from_pretrained(source)
    wanted = reference([row["text"] for row in rows])["input_ids"]
    assert rows_of(data, "input_ids") == wanted
    assert (
        wanted
        != AutoTokenizer.from_pretrained(tokenizer_folder("bos_eos"))(
            [row["text"] for row in rows]
        )["input_ids"]
    )
