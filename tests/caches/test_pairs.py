"""Sources and targets through snakemake itself: token shards, caches, views, training."""

import json
import shutil

import pytest
from conftest import make_tokenizer
from datasets import load_from_disk
from helpers.workflow import Workflow
from transformers import AutoTokenizer, DataCollatorForSeq2Seq

from tokencache.caches.rows import IGNORED
from tokencache.caches.view import open_cache

ROWS = [
    *({"de": f"{n} " + "Haus " * (n % 7 + 1), "en": f"{n} " + "house " * (n % 7 + 1)}
      for n in range(60)),
    {"de": "ohne", "en": ""}, {"de": None, "en": "without"}, {"de": "kurz", "en": "long " * 40},
]  # fmt: skip
PAIRS = [row for row in ROWS if row["de"] and row["en"]]
CONFIG = {
    "shard_size": 1024,
    "models": {
        "one": {
            "tokenizer": "tokenizer",
            "architecture": {
                "model_type": "bart", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
                "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
                "decoder_ffn_dim": 32,
            },
        }
    },
    "datasets": {
        "words": {
            "files": "data.jsonl",
            "columns": {"german": "de"},
            "document": {"source": "german", "target": "<{en}>"},
            "overflow": "drop",
            "validation": {"fraction": 0.1, "seed": 1},
        }
    },
    "max_length": [16],
    "training": {"max_steps": 3, "per_device_train_batch_size": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done") / "w"
    make_tokenizer("bos_eos", folder / "tokenizer")
    workflow = Workflow.new(folder, CONFIG, {"data.jsonl": ROWS})
    workflow.run()
    return workflow


@pytest.fixture
def workflow(done, tmp_path):
    return done.copy(tmp_path / "w")


def configure(workflow, more=None, **dataset):
    words = CONFIG["datasets"]["words"] | dataset
    workflow.configure(CONFIG | {"datasets": {"words": words}} | (more or {}))


def only(workflow, pattern):
    [found] = workflow.folder.glob(pattern)
    return found


def rows_of(cache):
    return [
        (list(row["input_ids"]), list(row["labels"])) for split in cache for row in cache[split]
    ]


def test_the_rows_are_what_the_tokenizer_gives(done):
    path = only(done, "cache/one/words/*")
    cache = load_from_disk(path)
    assert cache["train"].column_names == ["input_ids", "labels"]
    tokenizer = AutoTokenizer.from_pretrained(done.folder / "tokenizer")
    encoded = [tuple(tokenizer([r["de"], f"<{r['en']}>"])["input_ids"]) for r in PAIRS]
    fit = [pair for pair in encoded if max(map(len, pair)) <= 16]
    assert sorted(rows_of(cache)) == sorted(map(tuple, fit))
    about = json.loads((path / "cache.json").read_text())
    assert about["documents"]["train"] | {"tokens_lost": 0} == {
        "documents": 63, "documents_empty": 2, "documents_too_long": len(encoded) - len(fit),
        "tokens_lost": 0,
    }  # fmt: skip
    lost = sum(len(side) for pair in encoded if pair not in fit for side in pair)
    assert about["documents"]["train"]["tokens_lost"] == lost
    trained = sum(split["tokens_trained"] for split in about["splits"].values())
    assert trained == sum(len(target) for _, target in fit)
    assert about["recipe"].keys() == {"source", "target"}
    shards = [shard for file in about["sources"]["train"] for shard in file["shards"]]
    keys = {shard[name] for shard in shards for name in ("tokens", "target_tokens")}
    assert {f"{key}.arrow" for key in keys} == done.token_shards() and len(shards) > 2
    # transformers' own collator takes them.
    tokenizer.pad_token = tokenizer.eos_token
    batch = DataCollatorForSeq2Seq(tokenizer)([cache["train"][n] for n in range(3)])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_truncated_pairs_keep_their_special_tokens(workflow):
    configure(workflow, overflow="truncate")
    assert workflow.jobs() == {"pack": 1, "train": 1}
    before = only(workflow, "cache/one/words/*")
    workflow.run("caches")
    [path] = set(workflow.folder.glob("cache/one/words/*")) - {before}
    tokenizer = AutoTokenizer.from_pretrained(workflow.folder / "tokenizer")
    cut = {"truncation": True, "max_length": 16}
    wanted = []
    for texts in ([r["de"], f"<{r['en']}>"] for r in PAIRS):
        source, target = tokenizer(texts, **cut)["input_ids"]
        if len(tokenizer(texts[1])["input_ids"]) > 16:  # the end is not its own
            target[-1] = IGNORED
        wanted.append((source, target))
    assert sorted(rows_of(load_from_disk(path))) == sorted(wanted)
    about = json.loads((path / "cache.json").read_text())
    splits = about["splits"].values()
    too_long = about["documents"]["train"]["documents_too_long"]
    assert sum(split["rows_cut"] for split in splits) == too_long
    labels = [label for _, target in wanted for label in target]
    assert sum(split["targets"] for split in splits) == sum(n != IGNORED for n in labels)


def test_a_pair_without_a_side_is_left_out(workflow):
    configure(workflow, document={"source": "de", "target": "en"}, columns={})
    workflow.run("caches")
    found = [
        json.loads(f.read_text()) for f in workflow.folder.glob("cache/one/words/*/cache.json")
    ]
    assert sorted(about["documents"]["train"]["documents_empty"] for about in found) == [2, 2]


def test_a_view_has_the_same_rows_and_trains_to_the_same(workflow):
    dataset = only(workflow, "cache/one/words/*")
    configure(workflow, {"format": "view"})
    assert workflow.jobs() == {"pack": 1}  # the run is fresh
    [weights] = workflow.folder.glob("results/one/words/*/model.safetensors")
    before = weights.read_bytes()
    shutil.rmtree(workflow.folder / "results")
    workflow.run()
    [path] = set(workflow.folder.glob("cache/one/words/*")) - {dataset}
    view = open_cache(path)
    assert rows_of(view) == rows_of(load_from_disk(dataset))
    some = view["train"].select([3, 1])
    assert len(some) == 2 and list(some[1]["labels"]) == list(view["train"][1]["labels"])
    assert [list(ids) for ids in some[0:2]["input_ids"]] == [list(r["input_ids"]) for r in some]
    assert weights.read_bytes() == before
    shutil.rmtree(workflow.folder / "cache/tokens")
    assert "stale: its token shards are missing" in workflow.run("-n")
    assert workflow.jobs() == {"tokenize": workflow.jobs()["tokenize"]}


def test_large_caches_in_parts_are_the_same(workflow):
    cache = only(workflow, "cache/one/words/*")
    before = cache.rename(workflow.folder / "before")
    workflow.in_parts(1000)
    place = "src/tokencache/caches/dataset.py"
    workflow.edit(place, "TOKENS_IN_A_FILE = 500", "TOKENS_IN_A_FILE = 100")
    assert workflow.jobs()["pack_part"] > 1
    workflow.run("caches")
    assert len(list(cache.glob("train/*.arrow"))) > 1
    assert rows_of(load_from_disk(cache)) == rows_of(load_from_disk(before))


def test_what_is_stale_is_said_of_each_side(workflow):
    configure(workflow, document={"source": "german", "target": "{en}"})
    output = workflow.run("-n")
    assert "stale: recipe: target" in output
    # The sources' token shards are there.
    assert workflow.jobs() == {"tokenize": 1, "pack": 1, "train": 1}
    # Those of both are, for the other direction.
    configure(workflow, document={"source": "<{en}>", "target": "german"})
    assert workflow.jobs() == {"pack": 1, "train": 1}


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"packing": "best_fit"}, "datasets.words: packing: best_fit is not for document: {source"),
        ({"overflow": "split"}, "datasets.words: overflow: split would part a source from its"),
        ({"document": {"source": "de"}}, "datasets.words.document: source and target go together"),
        ({"document": {"source": "de", "target": "fr"}}, "there is no column 'fr' in data.jsonl"),
        ({"document": {"source": "de", "target": "{}"}}, "document.target: {} is more than a col"),
        ({"document": {"source": "de", "text": "en", "target": "en"}}, "give one of: text; prompt"),
        ({"loss": "completion"}, "loss: completion needs document: {prompt"),
    ],
)
def test_mistakes_in_the_configuration(dataset, message, workflow):
    configure(workflow, **dataset)
    assert message in workflow.run("-n", fails=True)
