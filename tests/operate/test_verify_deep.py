"""`tokencache verify --deep` on conversations and cut documents: right caches are called right."""

from __future__ import annotations

import json

import pytest
from helpers.compared import Made
from helpers.experiment import CHATML, UNMARKED
from helpers.workflow import rows

from tokencache.operate.lib import deep
from tokencache.operate.lib.spoken import Conversation, NotCompared

COLUMNS = {"messages": ["asked", "answered"], "chat_template": UNMARKED}
STYLE = {"instruction": "prompt", "output": "completion", "style": "chat"}
TALK = {"messages": "messages", "chat_template": UNMARKED}

DATASETS = {
    "style": {"document": STYLE | {"chat_template": CHATML}, "loss": "assistant"},
    "columns": {"document": COLUMNS, "loss": "completion"},
    "eos": {"document": TALK, "loss": "assistant", "train_on_eos": False},
    "roles": {"document": TALK, "loss": "assistant", "roles_to_train": ["user"]},
    "both roles": {"document": TALK, "loss": "assistant", "roles_to_train": ["user", "assistant"]},
    "system": {"document": TALK | {"system": "said"}, "loss": "assistant"},
    "marked system": {
        "document": {"messages": "messages", "system": "said", "chat_template": CHATML},
        "loss": "assistant",
        "overflow": "split",
        "packing": "best_fit",
    },
    "text eos": {
        "document": {"prompt": "{prompt} ", "completion": "{completion}{eos_token}"},
        "loss": "completion",
        "train_on_eos": False,
        "overflow": "split",
    },
    "pairs": {"document": {"source": "prompt", "target": "completion"}},
}


def given(count):
    for number, row in enumerate(rows(count)):
        asked, answered = row["messages"]
        yield row | {
            "asked": [asked],
            "answered": [answered],
            "said": "Be brief." if number % 2 else None,
        }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    datasets = {name.replace(" ", "-"): about for name, about in DATASETS.items()}
    return Made(tmp_path_factory.mktemp("deep") / "w", given(50), datasets, 100)


def test_right_caches_of_every_setting_are_called_right(made):
    status, said = made.verify()
    assert (status, said["damaged"]) == (0, [])
    assert len(said["compared"]) == len(DATASETS)
    for one in said["compared"]:
        assert one["same"] == one["rows"] > 20, json.dumps(one)


def test_a_document_that_is_in_no_row_or_in_two(made, monkeypatch):
    """All ids and labels are right, and yet something is not."""
    real = deep.dataset.split_rows

    def moved(cache, tokens):
        splits, counts = real(cache, tokens)
        if cache["overflow"] == "truncate" and not tokens["targets"]:
            documents = splits["train"].rows.windows.document
            documents[3] = documents[4]
        return splits, counts

    opened = deep.open_cache

    def doubled(folder, split):
        rows = opened(folder, split)
        order = list(range(len(rows)))
        if split == "train":
            order[3] = 4
        return rows.select(order)

    monkeypatch.setattr(deep.dataset, "split_rows", moved)
    monkeypatch.setattr(deep, "open_cache", doubled)
    status, said = made.verify("cache/one/style")
    [one] = said["compared"]
    assert status == 1 and one["same"] == one["rows"]
    assert "is in 0 rows" in one["differing"][0] or "is in 2 rows" in one["differing"][0]


# A conversation


class Templated:
    """A tokenizer that writes its messages by a function."""

    def __init__(self, write):
        self._write = write

    def apply_chat_template(self, chat, add_generation_prompt=False, **_):
        return self._write(chat, add_generation_prompt)


def chatml(chat, prompt):
    text = "".join(f"<{m['role']}>{m['content']}<end>\n" for m in chat)
    return text + ("<assistant>" if prompt else "")


def spans_of(chat, write=chatml, first=0, roles=("assistant",), eos=True):
    said = Conversation(Templated(write), "", {}, chat, None)
    return [said.text[a:b] for a, b in said.spans(first, list(roles), eos)]


def talk(*words):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": word} for n, word in enumerate(words)]


@pytest.mark.parametrize("words", ["d", "end", "<end>", " x ", "<assistant>", "70350148206"])
def test_words_that_are_also_in_the_marks(words):
    assert spans_of(talk("hello", words)) == [f"{words}<end>"]
    assert spans_of(talk("hello", words), eos=False) == [words]
    assert spans_of(talk(words, "hello"), roles=["user"]) == [f"{words}<end>"]
    assert spans_of(talk(words, words, "x", words), first=3, eos=False) == [words]


def test_nothing_but_the_words_is_spoken_where_the_prompt_is_no_prefix():
    def write(chat, prompt):
        return chatml(chat, False) + ("<assistant><think></think>" if prompt else "")

    assert spans_of(talk("a", "b"), write) == ["b<end>"]


def test_what_can_not_be_told_is_not_compared():
    def twice(chat, prompt):
        return "".join(m["content"] * 2 for m in chat)

    def counted(chat, prompt):
        return "".join(f"{m['content']}<{len(m['content'])}>" for m in chat)

    for write in (twice, counted):
        with pytest.raises(NotCompared):
            spans_of(talk("a", "b") * 2, write)
