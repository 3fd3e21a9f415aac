"""Rows in the formats that people have, to the ids that transformers makes of them."""

from __future__ import annotations

import contextlib
import io
import json
import os

import datasets
import pytest
from conftest import make_tokenizer
from helpers.datafiles import fails, source, write
from helpers.workflow import write_rows
from transformers import AutoTokenizer

from tokencache.config.dataset import Dataset
from tokencache.config.load import load
from tokencache.documents import conversations, render
from tokencache.documents.chat_template import Chat
from tokencache.documents.columns import recognized
from tokencache.documents.recipe import needed_columns, recipe_of
from tokencache.plan.resolve import resolve
from tokencache.sources import read
from tokencache.sources.source import Piece
from tokencache.training import run as train
from tokencache.workflow import stages

TEMPLATE = (
    "{% if tools %}TOOLS{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content is defined %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.content is defined and m.content is not none %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "sum", "parameters": {"x": "number"}}}
CALL = {"name": "sum", "arguments": {"x": [1, 2]}}

SHAREGPT = [
    {
        "conversations": [
            {"from": "human", "value": "1 + 2?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "It is 3."},
        ],
        "system": "Count.",
        "tools": json.dumps([TOOL]),
    },
    {
        "conversations": [{"from": "user", "value": "Größe?"}, {"from": "gpt", "value": "日本"}],
        "system": None,
        "tools": None,
    },
]
SHAREGPT_MESSAGES = [
    [
        {"role": "system", "content": "Count."},
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ],
    [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "日本"}],
]
ALPACA = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Say hello.", "input": "", "output": "Hello!"},
    {"instruction": "Say bye.", "input": None, "output": ""},
]
ALPACA_PROMPTS = [
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n",
    *(
        "Below is an instruction that describes a task. Write a response that appropriately "
        f"completes the request.\n\n### Instruction:\n{said}\n\n### Response:\n"
        for said in ("Say hello.", "Say bye.")
    ),
]
PAIRS = [
    {"prompt": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"},
                {"role": "user", "content": "C"}],
     "completion": [{"role": "assistant", "content": "D"}]},
    {"prompt": [{"role": "user", "content": "E"}],
     "completion": [{"role": "assistant", "content": "F", "thinking": "hm"}]},
]  # fmt: skip


def talk(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": said} for n, said in enumerate(contents)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Of data sets most of which nothing is said of: what is said, their caches by name, the
    tokenizer, and the folder."""
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = make_tokenizer("bos_eos", folder / "tokenizer")
    about = json.loads((tokenizer / "tokenizer_config.json").read_text())
    about["chat_template"] = TEMPLATE
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(about))
    given = {
        "sharegpt": {"files": "sharegpt.jsonl", "loss": "assistant"},
        "alpaca": {"files": "alpaca.jsonl", "loss": "completion"},
        "pairs": {"files": "pairs.jsonl", "loss": "completion"},
        "texts": {"files": "texts.jsonl", "loss": "completion", "train_on_eos": False},
        "asked": {
            "files": "alpaca.jsonl",
            "document": {"instruction": "instruction", "input": "input", "output": "output",
                         "style": "chat"},
            "loss": "assistant",
        },
    }  # fmt: skip
    texts = [{"prompt": "Q: ", "completion": "yes"}, {"prompt": "R: ", "completion": ""}]
    rows = {"sharegpt": SHAREGPT, "alpaca": ALPACA, "pairs": PAIRS, "texts": texts}
    for name, found in rows.items():
        write_rows(folder / f"{name}.jsonl", found)
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stderr(said):
        plan = resolve(config_of(given))
        for target in plan.tokenizers:
            stages.materialize_tokenizer(plan, target)
        for batch in plan.batches:
            stages.tokenize_batch(plan, batch)
        for cache in plan.caches:
            stages.pack_cache(plan, cache)
    caches = {
        name: datasets.load_from_disk(str(next(folder.glob(f"cache/one/{name}/512-*"))))["train"]
        for name in given
    }
    return said.getvalue(), caches, AutoTokenizer.from_pretrained(tokenizer), folder


def test_rows_with_tools_go_through_the_template_for_tools(tmp_path, monkeypatch):
    """Of a tokenizer that has two; and of a model that names one, that one."""
    monkeypatch.chdir(tmp_path)
    tokenizer = make_tokenizer("bos_eos", tmp_path / "tokenizer")
    about = json.loads((tokenizer / "tokenizer_config.json").read_text())
    named = {"default": "{{ messages[0].content }}", "tool_use": TEMPLATE}
    about["chat_template"] = [{"name": n, "template": text} for n, text in named.items()]
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(about))
    write_rows(tmp_path / "a.jsonl", [{"m": talk("a"), "t": [TOOL]}, {"m": talk("b"), "t": None}])
    given = {"a": {"files": "a.jsonl", "document": {"messages": "m", "tools": "t"}}}
    plan = resolve(config_of(given))
    [recipe] = plan.data["recipes"].values()
    assert (recipe["chat_template"], recipe["tool_template"]) == tuple(named.values())
    path = str(tmp_path / "a.jsonl")
    piece = Piece(source(path), 0, os.path.getsize(path))
    [batch] = render.render(recipe, piece, read.digest(piece))
    reference = AutoTokenizer.from_pretrained(tokenizer)
    wanted = [
        reference.apply_chat_template(talk(words), tools=tools, tokenize=False)
        for words, tools in (("a", [TOOL]), ("b", None))
    ]
    assert batch.texts.to_pylist() == wanted
    run = {"chat_template": named["default"], "tool_template": TEMPLATE}
    about.pop("chat_template")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(about))
    train._write_templates(tokenizer, run)
    assert AutoTokenizer.from_pretrained(tokenizer).chat_template == named, "which a run's has"
    given["a"]["document"]["chat_template"] = TEMPLATE
    [recipe] = resolve(config_of(given)).data["recipes"].values()
    assert recipe["chat_template"] == TEMPLATE and "tool_template" not in recipe


def test_an_edited_template_file_makes_other_documents_in_the_same_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_tokenizer("bos_eos", tmp_path / "tokenizer")
    write_rows(tmp_path / "a.jsonl", [{"m": talk("a")}])
    given = {"a": {"files": "a.jsonl", "document": {"messages": "m", "chat_template": "t.jinja"}}}
    found = []
    for template in (TEMPLATE, "{{ 1 }}" + TEMPLATE, "{# only a word #}" + TEMPLATE):
        (tmp_path / "t.jinja").write_text(template)
        found += list(resolve(config_of(given)).caches)
    assert found[0] != found[1] and found[0] == found[2]


def config_of(given):
    return load(
        {
            "models": {"one": {"tokenizer": "tokenizer"}},
            "datasets": {name: about | {"validation": None} for name, about in given.items()},
            "max_length": [512],
        }
    )


def trained(tokenizer, row):
    """The words that there is loss on, in stretches."""
    stretches, before = [], False
    for label in row["labels"]:
        if label != -100:
            stretches = (
                [*stretches[:-1], [*stretches[-1], label]] if before else [*stretches, [label]]
            )
        before = label != -100
    return [tokenizer.decode(ids) for ids in stretches]


def test_what_is_recognized_is_said(made):
    said = made[0]
    for wanted in (
        "datasets.sharegpt: taken as document: {messages: conversations, system: system, "
        "tools: tools}",
        "datasets.alpaca: taken as document: {instruction: instruction, input: input, "
        "output: output}",
        "datasets.pairs: taken as document: {messages: [prompt, completion]}",
        "datasets.texts: taken as document: {prompt: prompt, completion: completion}",
    ):
        assert said.count(wanted) == 1
    assert "datasets.asked: taken" not in said


def test_sharegpt_is_what_transformers_makes_of_it(made):
    _, caches, tokenizer, _ = made
    for row, messages, tools in zip(
        caches["sharegpt"], SHAREGPT_MESSAGES, ([TOOL], None), strict=True
    ):
        wanted = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True)
        assert row["input_ids"] == wanted["input_ids"]
    call = f"<call>{json.dumps(CALL)}</call><|im_end|>"
    assert trained(tokenizer, caches["sharegpt"][0]) == [call, "It is 3.<|im_end|>"]
    assert trained(tokenizer, caches["sharegpt"][1]) == ["日本<|im_end|>"]


def test_alpaca_has_its_two_prompts(made):
    _, caches, tokenizer, _ = made
    for row, prompt, given in zip(caches["alpaca"], ALPACA_PROMPTS, ALPACA, strict=True):
        assert row["input_ids"] == tokenizer(prompt + given["output"])["input_ids"]
    assert [trained(tokenizer, row) for row in caches["alpaca"]] == [["3</s>"], ["Hello!</s>"], []]


def test_alpaca_as_a_conversation(made):
    _, caches, tokenizer, _ = made
    for row, asked, given in zip(
        caches["asked"], ("Add.\n1 and 2", "Say hello.", "Say bye."), ALPACA, strict=True
    ):
        wanted = tokenizer.apply_chat_template(talk(asked, given["output"]), return_dict=True)
        assert row["input_ids"] == wanted["input_ids"]
        assert trained(tokenizer, row) == [given["output"] + "<|im_end|>"]


def test_prompts_and_completions_of_messages(made):
    _, caches, tokenizer, _ = made
    for row, given in zip(caches["pairs"], PAIRS, strict=True):
        messages = given["prompt"] + given["completion"]
        wanted = tokenizer.apply_chat_template(messages, return_dict=True)
        assert row["input_ids"] == wanted["input_ids"]
    # transformers gives `thinking` to a template that knows it as `reasoning_content`.
    said = [trained(tokenizer, row) for row in caches["pairs"]]
    assert said == [["D<|im_end|>"], ["<think>hm</think>F<|im_end|>"]]


def test_the_end_token_is_not_trained_on_where_it_shall_not_be(made):
    _, caches, tokenizer, _ = made
    assert [row["input_ids"] for row in caches["texts"]] == [
        tokenizer(text)["input_ids"] for text in ("Q: yes", "R: ")
    ]
    assert [trained(tokenizer, row) for row in caches["texts"]] == [["yes"], []]


def test_columns_that_tell_nothing_are_named(made):
    folder = made[3]
    write(folder / "odd.jsonl", '{"title": "a", "body": "b"}\n')
    with contextlib.chdir(folder):
        fails(
            lambda: resolve(config_of({"odd": {"files": "odd.jsonl"}})),
            "datasets.odd: nothing says how a row becomes a document",
            "there are: title, body", "document: {text: title}",
        )  # fmt: skip


def test_a_column_may_come_late_in_a_file_but_not_in_none_of_its_rows(made):
    folder, about = made[3], {"document": {"text": "late"}}
    write(folder / "late.jsonl", '{"id": "%s"}\n' % ("x" * 500) * 4000 + '{"late": "y"}')
    write(folder / "never.jsonl", '{"id": "x"}\n' * 10)
    with contextlib.chdir(folder):
        assert resolve(config_of({"late": {"files": "late.jsonl"} | about})).caches
        fails(
            lambda: resolve(config_of({"late": {"files": ["late.jsonl", "never.jsonl"]} | about})),
            "datasets.late.document: there is no column 'late' in never.jsonl; there are: id",
        )


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"text": "a", "messages": []}, {"text": "text"}),
        ({"messages": [], "system": "x"}, {"messages": ["messages"], "system": "system"}),
        ({"conversations": []}, {"messages": ["conversations"]}),
        ({"instruction": "a", "output": "b"}, {"instruction": "instruction", "output": "output"}),
        ({"prompt": "a", "completion": None}, {"prompt": "prompt", "completion": "completion"}),
        ({"prompt": [], "completion": []}, {"messages": ["prompt", "completion"]}),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_what_is_recognized(tmp_path, row, wanted, suffix):
    text = json.dumps([row]) if suffix == "json" else json.dumps(row) + "\n"
    found = source(write(tmp_path / f"a.{suffix}", text))
    made = recognized("a", Dataset(files=["a"]), list(row), found)
    assert made.document.model_dump(exclude_unset=True) == wanted


def test_recognized_columns_go_by_their_other_names(tmp_path):
    found = source(write(tmp_path / "a.jsonl", json.dumps({"body": "x"}) + "\n"))
    dataset = Dataset(files=["a"], columns={"text": "body"})
    assert recognized("a", dataset, ["body"], found).document.text == "text"
    said = fails(
        lambda: recognized("a", Dataset(files=["a"], loss="assistant"), ["text"], found),
        "loss: assistant needs",
    )
    assert "taken as document: {text: text}" in said


# Who is trained on, and to where


def said(roles=("assistant",), eos=True, template=TEMPLATE, messages=None, first=0):
    text, spans = Chat(template, {}, True, roles, eos).document(
        messages or [{"role": "system", "content": "S"}, *talk("A", " B ", "C", "D")], None, first
    )
    return [text[start:stop] for start, stop in spans]


def test_roles_to_train():
    assert said() == [" B <|im_end|>", "D<|im_end|>"]
    assert said(("user", "assistant")) == [
        "A<|im_end|>", " B <|im_end|>", "C<|im_end|>", "D<|im_end|>",
    ]  # fmt: skip
    assert said(("system",)) == ["S<|im_end|>"]
    assert said(first=4) == ["D<|im_end|>"]
    marked = TEMPLATE.replace(
        "{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}"
    )
    assert said(("user",), template=marked) == ["A<|im_end|>", "C<|im_end|>"]


def test_train_on_eos():
    assert said(eos=False) == [" B ", "D"]
    trimmed = TEMPLATE.replace("{{ m.content }}", "{{ m.content | trim }}")
    assert said(eos=False, template=trimmed) == ["B", "D"]
    assert said(eos=False, messages=talk("A", "")) == []
    call = [*talk("A"), {"role": "assistant", "content": "x", "tool_calls": [{"function": CALL}]}]
    assert said(eos=False, messages=call) == [
        'x<call>{"name": "sum", "arguments": {"x": [1, 2]}}</call>'
    ]


SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}


def recipe(document, **settings):
    return recipe_of(Dataset(files=["-"], document=document, **settings), TEMPLATE, SPECIALS)


def test_what_is_new_is_in_the_recipe_only_where_it_is_said():
    plain = {"add_special_tokens", "form", "loss", "version", "messages", "chat_template",
             "special_tokens"}  # fmt: skip
    found = recipe({"messages": "m"}, loss="assistant")
    assert found.keys() == plain and found["messages"] == "m"
    same = recipe({"messages": ["m"]}, loss="assistant", roles_to_train="gpt", train_on_eos=True)
    assert same == found
    settings = {"loss": "assistant", "roles_to_train": ["user"], "train_on_eos": False}
    whole = Dataset(files=["-"], document={"messages": "m"}, **settings).wholly_trained()
    assert recipe_of(whole, TEMPLATE, SPECIALS) == recipe({"messages": "m"})
    found = recipe(
        {"messages": ["m", "n"], "system": "s"}, loss="assistant",
        roles_to_train=["user", "gpt"], train_on_eos=False,
    )  # fmt: skip
    assert found["messages"] == ["m", "n"] and found["roles_to_train"] == ["assistant", "user"]
    assert not found["train_on_eos"]
    assert needed_columns(found) == ["m", "n", "s"]


def test_an_end_token_in_the_template_is_not_trained_on_either(tmp_path):
    ended = {"prompt": "a", "completion": "{b}{eos_token}"}
    made = recipe(ended, loss="completion", train_on_eos=False)
    path = write(tmp_path / "a.jsonl", '{"a": "Q", "b": "yes"}\n{"a": "Q", "b": ""}\n')
    piece = Piece(source(path), 0, os.path.getsize(path))
    [batch] = render.render(made, piece, read.digest(piece))
    assert batch.texts.to_pylist() == ["Qyes</s>", "Q</s>"]
    assert batch.spans.lists() == [[(1, 4)], []]


def test_instructions_without_an_input_are_prompts_and_completions():
    made = recipe({"instruction": "{i}!", "output": "{o}{eos_token}"}, loss="completion")
    assert made["form"] == "prompt_completion"
    assert made["completion"] == [{"column": "o"}, "</s>"]
    assert made["prompt"][1:3] == [{"column": "i"}, "!\n\n### Response:\n"]
    with_input = recipe({"instruction": "i", "input": "n", "output": "o"})
    assert needed_columns(with_input) == ["i", "n", "o"]


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ({"instruction": "a"}, "instruction and output go together"),
        ({"text": "a", "input": "b"}, "input and style go with instruction and output"),
        ({"text": "a", "system": "b"}, "system go with messages"),
        ({"instruction": "a", "output": "b", "text": "c"}, "give one of: text;"),
    ],
)
def test_what_a_document_refuses(document, wanted):
    with pytest.raises(ValueError, match=wanted):
        Dataset(files=["-"], document=document)


def test_what_a_recipe_refuses():
    chat = {"instruction": "{a}", "output": "b", "style": "chat"}
    fails(lambda: recipe(chat), "document.instruction", "no template")


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ([{"from": "function_call", "value": "f(1)"}], "message 1 is a function_call that is not"),
        ('[{"role": "user"', "the messages are text that is not JSON"),
    ],
)  # fmt: skip
def test_what_is_no_conversation(value, wanted):
    fails(lambda: conversations.conversation(value), wanted)


def test_messages_as_json_text():
    assert conversations.conversation(json.dumps(talk("a", "b"))) == talk("a", "b")
