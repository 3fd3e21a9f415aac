"""What keys are made of, through the plan: what changes them, and what does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from conftest import make_tokenizer
from helpers.workflow import TINY, rows, write_rows
from transformers.utils import chat_template_utils

from tokencache import cli
from tokencache.base.json_files import read_json, write_json
from tokencache.config.load import load
from tokencache.documents import render, rendering
from tokencache.errors import UserError
from tokencache.plan import stale
from tokencache.plan.plan import Plan
from tokencache.plan.resolve import resolve
from tokencache.sources import hub_files
from tokencache.workflow import stages


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer("bos_eos", tmp_path_factory.mktemp("tokenizer") / "tokenizer")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "data/a.jsonl", rows(20))
    return tmp_path


@pytest.fixture
def plan(folder, tokenizer):
    """The plan of a data set and more of a configuration."""

    def made(dataset=None, **more) -> Plan:
        dataset = {"files": "data", "document": {"text": "prompt"}} | (dataset or {})
        models = {"m": {"tokenizer": str(tokenizer), "architecture": TINY}}
        return resolve(
            load({"models": models, "datasets": {"qa": dataset}, "max_length": 32} | more)
        )

    return made


def key(plan):
    [path] = plan.caches
    return plan.caches[path]["key"]


def test_what_the_workflow_writes_into_a_folder_with_data_is_no_data(plan, folder):
    own = {"cache": "data/cache", "results": "data/results"}
    before = plan(**own)
    [path] = before.caches
    write_json(Path(path, "cache.json"), before.provenance(path))
    write_json(folder / "data/results/m/qa/32-0/run.json", {})
    for files in ("data", "data/*", "**/*.json*", "."):
        assert key(plan({"files": files}, **own)) == key(before)


@pytest.mark.parametrize("left", [0, 1, 1000, -3])
def test_a_plan_that_is_cut_is_one_message(plan, folder, capsys, left):
    found = plan()
    found.write()
    text = Path(found.path).read_bytes()
    Path(found.path).write_bytes(text[:left])
    for words in (["tokenize", "--plan", found.path, "qa-0001"], ["status"]):
        capsys.readouterr()
        assert cli.main(words) == 1
        said = capsys.readouterr().err
        assert f"the plan {found.path} is damaged" in said and "run snakemake again" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("text", ['"a text"', "7", "[1]", "null"])
def test_a_plan_that_is_another_json_file_is_one_message(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"the plan .* is damaged"):
        Plan.read(path)


def test_a_plan_with_one_other_bit_is_one_message_or_the_same_plan(plan, folder):
    """What a job reads decides what stands under a key."""
    found = plan()
    found.write()
    text = Path(found.path).read_bytes()
    for place in range(0, len(text), max(1, len(text) // 300)):
        damaged = bytearray(text)
        damaged[place] ^= 1 << place % 7
        Path(found.path).write_bytes(damaged)
        try:
            same = Plan.read(found.path).data
            assert {name: same[name] for name in found.data} == found.data
        except UserError as error:
            assert f"the plan {found.path} is damaged" in str(error)
    Path(found.path).write_bytes(text)
    assert Plan.read(found.path).data == json.loads(json.dumps(found.data))


def test_a_last_newline_changes_no_key(plan, folder):
    before = key(plan())
    path = folder / "data/a.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert key(plan()) == before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"validation": None}, {"validation": {"fraction": 0}}),
        ({"validation": {"fraction": 0, "seed": 1}}, {"validation": {"fraction": 0.0}}),
        ({"document": {"text": "prompt"}}, {"document": {"text": "{prompt}"}}),
        (
            {"document": {"text": "prompt"}},
            {"document": {"text": "question"}, "columns": {"question": "prompt"}},
        ),
        (
            {"document": {"prompt": "prompt", "completion": "completion"}, "loss": "completion"},
            {
                "document": {"prompt": "{q}", "completion": "a"},
                "columns": {"q": "prompt", "a": "completion", "unused": "prompt"},
                "loss": "completion",
            },
        ),
        (
            {"document": {"messages": "messages", "chat_template": "{{ messages }}"}},
            {
                "document": {"messages": ["talk"], "chat_template": "{{ messages }}"},
                "columns": {"talk": "messages"},
            },
        ),
    ],
)
def test_two_ways_to_say_the_same_have_one_key(plan, one, other):
    assert key(plan(one)) == key(plan(other))


# How chat templates are rendered

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
JSON = "{{ tools | tojson if tools }}" + PLAIN


def test_the_side_that_is_cut_decides_where_something_is_cut(plan, folder, tokenizer):
    side = folder / "left"
    shutil.copytree(tokenizer, side)
    config = read_json(side / "tokenizer_config.json") | {"truncation_side": "left"}
    write_json(side / "tokenizer_config.json", config)
    models = {"m": {"tokenizer": str(side), "architecture": TINY}}
    for overflow in ("split", "drop"):
        found = {"overflow": overflow}
        assert key(plan(found, models=models)) == key(plan(found))
    left, right = plan(models=models), plan()
    assert key(left) != key(right)
    [path] = left.caches
    assert left.provenance(path)["settings"]["truncation_side"] == "left"
    assert (
        stages._tokens_of(left, path)["splits"] == stages._tokens_of(right, *right.caches)["splits"]
    )
    assert [run["tokenizer_settings"]["truncation_side"] for run in left.runs.values()] == ["left"]


def chat(template):
    return {"files": "data", "document": {"messages": "messages", "chat_template": template}}


@pytest.fixture
def release(monkeypatch):
    """Another version of transformers, which writes JSON in other letters or not."""

    def made(number, **how):
        monkeypatch.setattr(rendering, "version", lambda name: number)
        other = SimpleNamespace(dumps=lambda *given, **more: json.dumps(*given, **(more | how)))
        monkeypatch.setattr(chat_template_utils, "json", other)

    return made


def test_a_release_that_renders_the_same_makes_nothing_stale(plan, release):
    found = [key(plan(chat(template))) for template in (PLAIN, JSON)]
    release("99")
    assert [key(plan(chat(template))) for template in (PLAIN, JSON)] == found


def test_a_release_that_renders_otherwise_makes_stale_what_it_changes(plan, release):
    before = [plan(chat(template)) for template in (PLAIN, JSON)]
    release("99", ensure_ascii=True)
    plain, other = (plan(chat(template)) for template in (PLAIN, JSON))
    assert key(plain) == key(before[0]) and key(other) != key(before[1])
    [path] = before[1].caches
    write_json(Path(path, "cache.json"), before[1].provenance(path))
    [path] = other.caches
    said = "stale: library behaviour (how chat templates are rendered)"
    assert str(stale.of_cache(other, path)) == said


def test_a_job_that_renders_otherwise_than_the_plan_is_for_says_so(plan):
    found = plan(chat(PLAIN))
    [recipe] = found.data["recipes"].values()
    piece, digest = stages.piece_of(next(iter(found.data["shards"].values())))
    assert sum(len(batch.texts) for batch in render.render(recipe, piece, digest)) == 20
    with pytest.raises(UserError, match="rendered otherwise here than where the plan was made"):
        list(render.render(recipe | {"rendering": "0" * 32}, piece, digest))


# Data sets that `datasets` reads

HUB = {"files": None, "hub": "hub", "num_shards": 2}


def test_a_release_of_datasets_makes_stale_what_it_reads_otherwise(plan, folder, monkeypatch):
    write_rows(folder / "hub/a.jsonl", rows(5))
    before = key(plan(HUB))
    reading = hub_files.reading
    monkeypatch.setattr(hub_files, "version", lambda name: "99")
    assert key(plan(HUB)) == before
    monkeypatch.setattr(hub_files, "version", lambda name: "100")
    monkeypatch.setattr(hub_files, "reading", lambda: reading() + "otherwise")
    assert key(plan(HUB)) != before


def test_how_values_are_read_is_seen(monkeypatch):
    before, read = hub_files.reading(), datasets.load_dataset
    assert hub_files.reading() == before

    def other(*given, **more):
        found = read(*given, **more)
        if "f" not in found.column_names:
            return found
        return found.cast_column("f", datasets.Value("float32"))

    monkeypatch.setattr(datasets, "load_dataset", other)
    assert hub_files.reading() != before


def test_a_description_in_a_folder_is_part_of_the_key(plan, folder):
    write_rows(folder / "hub/a.jsonl", rows(5))
    write_rows(folder / "hub/b.jsonl", rows(7))
    found = {key(plan(HUB))}
    for name in ("a.jsonl", "b.jsonl"):
        card = f"---\nconfigs:\n- config_name: default\n  data_files: {name}\n---\n"
        (folder / "hub/README.md").write_text(card)
        found.add(key(plan(HUB)))
        (folder / "hub/README.md").write_text(f"{card}\n# For people\n")
        found.add(key(plan(HUB)))
    assert len(found) == 3


def test_a_folder_that_the_workflow_writes_into_is_no_data_set(plan, folder):
    write_rows(folder / "hub/a.jsonl", rows(5))
    for own in ({"cache": "hub/cache"}, {"results": "hub/results"}):
        with pytest.raises(UserError, match=r"datasets\.qa\.hub: this workflow writes to hub/"):
            plan(HUB, **own)
    plan(HUB, cache="hub/.cache")


def test_a_folder_that_is_missing_is_one_message(plan, folder):
    for path in ("./hub", str(folder / "data/a.jsonl")):
        with pytest.raises(UserError, match=r"datasets\.qa\.hub: .* is not a folder"):
            plan(HUB | {"hub": path})
