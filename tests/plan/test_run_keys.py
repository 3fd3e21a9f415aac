"""What is in the key of a run, and which of it `why` names when it changed."""

import json
from pathlib import Path

import pytest
from conftest import make_tokenizer
from helpers.workflow import TINY, rows, write_rows

from tokencache.base.records import RUN_FILE
from tokencache.config.load import load
from tokencache.plan import run_keys, stale
from tokencache.plan.resolve import resolve

TEXT = {"files": "a.jsonl", "document": {"text": "{prompt}"}}
CHAT = {"files": "a.jsonl", "document": {"messages": "messages"}}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_tokenizer("bos_eos", tmp_path / "tokenizer")
    write_rows(tmp_path / "a.jsonl", rows(20))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/config.json").write_text(json.dumps(TINY))
    (tmp_path / "weights/model.safetensors").write_bytes(b"tensors")
    return tmp_path


def planned(dataset=TEXT, training=None, **model):
    """The plan of one run, and its path."""
    config = {
        "models": {"one": {"tokenizer": "tokenizer", "weights": "weights", **model}},
        "datasets": {"some": dataset},
        "max_length": 32,
        "training": training or {},
    }
    plan = resolve(load(config))
    return plan, *plan.runs


def finished(plan, path):
    """Leave what `why` reads of a run."""
    about = run_keys.made_of(plan.runs[path], False)
    plan.make_folders()
    Path(path).mkdir()
    Path(path, RUN_FILE).write_text(json.dumps({"made_of": about}))


def test_the_chat_template_counts_for_chats_alone(folder):
    text = planned(chat_template=TEMPLATE)
    finished(*text)
    assert text[1] == planned(chat_template=TEMPLATE + " ")[1]
    assert text[0].runs[text[1]]["chat_template"] == TEMPLATE
    Path(text[1]).rename(folder / "elsewhere")
    chat = planned(CHAT, chat_template=TEMPLATE)
    finished(*chat)
    other, path = planned(CHAT, chat_template=TEMPLATE + " ")
    assert path != chat[1]
    said = [change.said for change in stale.of_run(other, path).changes]
    assert said == ["its cache", "chat_template"]


def test_the_template_for_tools_counts_for_rows_with_tools_alone(folder):
    def give(tool_use):
        file = folder / "tokenizer/tokenizer_config.json"
        named = {"default": TEMPLATE, "tool_use": tool_use}
        given = {"chat_template": [{"name": n, "template": text} for n, text in named.items()]}
        file.write_text(json.dumps(json.loads(file.read_text()) | given))

    without, tools = CHAT, {"files": "a.jsonl", "document": CHAT["document"] | {"tools": "prompt"}}
    give(TEMPLATE + "1")
    path, old = planned(without)[1], planned(tools)
    finished(*old)
    give(TEMPLATE + "2")
    assert planned(without)[1] == path
    assert planned(tools)[1] != old[1]
    said = [change.said for change in stale.of_run(*planned(tools)).changes]
    assert said == ["its cache", "tool_template"]


def test_other_bytes_of_the_same_weights_are_named(folder):
    finished(*planned())
    (folder / "weights/timing.json").write_text("{}")
    assert stale.of_run(*planned()).state == stale.FRESH
    (folder / "weights/model.safetensors").write_bytes(b"others")
    verdict = stale.of_run(*planned())
    assert str(verdict) == "stale: weights: model.safetensors"
    [change] = verdict.changes
    assert dict(change.old).keys() == dict(change.new).keys() and change.old != change.new


def test_the_name_of_a_folder_is_no_part_of_it(folder):
    path = planned()[1]
    (folder / "weights").rename(folder / "moved")
    assert planned(weights="moved")[1] == path
    assert planned(weights="moved", trust_remote_code=True)[1] == path
    (folder / "moved/modeling_own.py").write_text("")
    assert planned(weights="moved")[1] == path
    assert planned(weights="moved", trust_remote_code=True)[1] != path


def test_code_of_a_hub_may_make_other_weights(folder):
    weights = {"weights": f"some/model@{'1' * 40}"}
    finished(*planned(**weights))
    plan, path = planned(**weights, trust_remote_code=True)
    assert str(stale.of_run(plan, path)) == "stale: trust_remote_code"
    assert plan.fetches.keys() == planned(**weights)[0].fetches.keys()


def test_a_run_of_an_earlier_version(folder):
    plan, path = planned()
    finished(plan, path)
    file = Path(path, RUN_FILE)
    made_of = json.loads(file.read_text())["made_of"]
    for name in ("version", "chat_template", "weights_files"):
        del made_of[name]
    file.write_text(json.dumps({"made_of": made_of}))
    Path(path).rename(Path(path).with_name("32-0123456789ab"))
    assert str(stale.of_run(plan, path)) == "stale: library behaviour (version 1 → 2)"
    assert run_keys.RUN_VERSION == 2


def test_what_changed_is_always_named(folder):
    """Whatever is in the key is in run.json, where `why` finds it."""
    plan, path = planned(training={"learning_rate": 1e-3})
    finished(plan, path)
    other, new = planned(training={"learning_rate": 2e-3}, lora={"r": 2})
    assert str(stale.of_run(other, new)) == "stale: learning_rate 0.001 → 0.002; lora"
    model = {"weights": None, "architecture": TINY}
    other, new = planned(training={"learning_rate": 1e-3}, **model)
    assert str(stale.of_run(other, new)) == "stale: weights; architecture"
