"""Rows become documents: recipes, texts, and the spans that are trained on."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import batches_of
from helpers.datafiles import fails, write_columnar
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencache.base import limits
from tokencache.config.schema import Dataset
from tokencache.documents import render as documents
from tokencache.documents import templates
from tokencache.documents.conversations import is_empty
from tokencache.documents.recipe import RECIPE_VERSION, needed_columns, recipe_of
from tokencache.errors import UserError
from tokencache.sources import read
from tokencache.sources.nested import as_json
from tokencache.sources.source import Piece, Source

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + eos_token }}{% endgeneration %}{% else %}[{{ m.content }}]{% endif %}"
    "{% endfor %}"
)


# Its generation prompt is not how an answer begins.
PROMPTED = (
    "{{ bos_token }}{% for m in messages %}{{ 'A:' if m.role == 'assistant' else 'U:' }}"
    "{{ m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'A: <think>' }}{% endif %}"
)


def recipe(document, template=None, specials=SPECIALS, **settings):
    return recipe_of(Dataset(files=["-"], document=document, **settings), template, specials)


def chat(template=CHATML, specials=SPECIALS, messages="messages", **settings):
    return recipe({"messages": messages}, template, specials, **settings)


def write(path, rows):
    lines = [json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return Piece(Source(str(path), "jsonl", None, "line"), 0, path.stat().st_size)


def render(made, piece):
    """All texts and spans of a piece, and the sizes of the batches that they came in."""
    texts, spans, sizes = [], [], []
    for batch in documents.render(made, piece, read.digest(piece)):
        assert batch.hashes.dtype == np.uint64 and len(batch.hashes) == len(batch.texts)
        assert batch.texts.type == pa.large_string()
        assert batch.texts.null_count == 0
        assert batch.spans is None or len(batch.spans) == len(batch.texts)
        texts += batch.texts.to_pylist()
        spans += batch.spans.lists() if batch.spans is not None else [None] * len(batch.texts)
        sizes.append(len(batch.texts))
    return texts, spans, sizes


def talk(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": said} for n, said in enumerate(contents)]


# Recipes


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (recipe({"text": "a"}), recipe({"text": "{a}"})),
        (recipe({"text": "a"}), recipe({"text": "x"}, columns={"x": "a"})),
        (recipe({"text": "a"}), recipe({"text": "a"}, CHATML, {})),
        (recipe({"text": "{a}</s>"}), recipe({"text": "{a}{eos_token}"})),
        (recipe({"text": "{a}{b}"}), recipe({"prompt": "a", "completion": "b"})),
        (
            recipe({"text": "Q: {q} A: {a}"}),
            recipe({"prompt": "Q: {x}", "completion": " A: {y}"}, columns={"x": "q", "y": "a"}),
        ),
        (
            recipe({"prompt": "{q}", "completion": "a"}, loss="completion"),
            recipe({"completion": "{a}", "prompt": "q"}, loss="completion"),
        ),
        (chat(), chat(specials={})),  # the template takes none of them
        (chat(), chat(messages="talk", columns={"talk": "messages"})),
        (chat(), recipe({"messages": "messages", "tools": "tools"}, CHATML)),
        (chat(), chat(CHATML + "\n")),  # which Jinja leaves out
        (chat(), chat("{# words #}\n" + CHATML + "{#- words -#}\n")),
    ],
)
def test_equal_meaning_is_an_equal_recipe(one, other):
    assert one == other
    assert json.loads(json.dumps(one)) == one


def test_other_meaning_is_another_recipe():
    made = [
        recipe({"text": "a"}),
        recipe({"text": "b"}),
        recipe({"text": "{a} "}),
        recipe({"text": "{a}{b}"}),
        recipe({"text": "{b}{a}"}),
        recipe({"prompt": "a", "completion": "b"}, loss="completion"),
        recipe({"prompt": "{a}{b}", "completion": "b"}, loss="completion"),
        chat(),
        chat(loss="assistant"),
        chat(CHATML + "\n\n"),
        chat(MARKED),
        chat(MARKED, SPECIALS | {"eos_token": "<eos>"}),
        chat(messages="talk"),
        recipe({"messages": "messages", "tools": "tools"}, "{{ tools }}" + CHATML),
    ]
    assert len({json.dumps(m, sort_keys=True) for m in made}) == len(made)


def test_a_template_for_tools_is_in_the_recipe_where_there_may_be_tools():
    given = {"messages": "m", "tools": "t"}
    dataset = Dataset(files=["-"], document=given)
    made = recipe_of(dataset, CHATML, SPECIALS, None, "{# c #}" + MARKED)
    assert made["tool_template"] == MARKED and made["tools"] == "t"
    assert made["special_tokens"].keys() == {"bos_token", "eos_token"}, "those of both templates"
    assert needed_columns(made) == ["m", "t"]
    without = Dataset(files=["-"], document={"messages": "m"})
    assert recipe_of(without, CHATML, SPECIALS, None, MARKED) == chat(messages="m")


def test_settings_that_do_not_make_documents_are_in_no_recipe():
    one = recipe({"text": "a"}, overflow="drop", packing="best_fit", format="csv")
    assert one == recipe({"text": "a"}, validation={"fraction": 0.5})


def test_a_template_s_file_is_read_anew_in_the_same_process(tmp_path):
    file = tmp_path / "a.jinja"
    for template in (CHATML, MARKED):
        file.write_text(template, encoding="utf-8")
        assert templates.template_text(str(file)) == template
    fails(lambda: templates.template_text("no\0file"), "chat_template: 'no\\x00file'")
    fails(lambda: templates.template_text(str(tmp_path / "none")), "No such file")
    file.write_bytes(b"{{ \xff }}")
    fails(lambda: templates.template_text(str(file)), "chat_template: ")


def test_columns_that_are_needed():
    assert needed_columns(recipe({"text": "{b} {a} {b}"})) == ["b", "a"]
    made = recipe({"prompt": "x{q}", "completion": "{q}{a}"}, loss="completion")
    assert needed_columns(made) == ["q", "a"]
    made = recipe({"messages": "m", "tools": "t"}, "{{ tools }}", columns={"m": "M", "t": "T"})
    assert needed_columns(made) == ["M", "T"]


BRACES = "is more than a column's name"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"text": ""}, "document.text: is empty; name a column"),
        ({"prompt": "a", "completion": ""}, "document.completion: is empty"),
        ({"text": "{"}, "document.text: "),
        ({"text": "{a"}, "write {{ and }} for braces"),
        ({"text": "a}"}, "write {{ and }} for braces"),
        ({"text": "{}"}, f"document.text: {{}} {BRACES}"),
        ({"text": "{a.b}"}, f"document.text: {{a.b}} {BRACES}"),
        ({"text": "{a[0]}"}, f"document.text: {{a[0]}} {BRACES}"),
        ({"text": "{a!r}"}, f"document.text: {{a!r}} {BRACES}"),
        ({"text": "{a:>8}"}, f"document.text: {{a:>8}} {BRACES}"),
        ({"text": "{{a}}"}, "document.text: no column is named"),
        ({"text": "{eos_token}"}, "document.text: no column is named"),
        ({"prompt": "{{}}", "completion": "{{}}"}, "document.prompt and document.completion"),
        ({"text": "{a}{sep_token}{bos_token}"}, "{bos_token}: the tokenizer has no bos_token"),
        ({"messages": "m"}, "document.messages: the tokenizer brings no chat template"),
    ],
)
def test_what_a_recipe_refuses(document, said):
    message = fails(lambda: recipe(document, None, {"eos_token": "</s>"}), said)
    assert message.startswith("document.")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}", "has an error in its line 1"),
        ("\n{% frobnicate %}", "has an error in its line 2"),
        ("{{ messages | random }}", "draws at random"),
        ("{{ lipsum() }}", "draws at random"),
        (
            "{% macro f(m) %}{% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}"
            "{% for m in messages %}{{ f(m) }}{% endfor %}",
            "{% generation %} in a macro",
        ),
    ],
)
def test_what_a_chat_recipe_refuses(template, said):
    message = fails(lambda: chat(template, loss="assistant"), said, "models.NAME.chat_template")
    assert message.startswith("document.messages: ")


def test_recipe_of_another_version_is_refused(tmp_path):
    made = recipe({"text": "a"}) | {"version": RECIPE_VERSION + 1}
    piece = write(tmp_path / "a.jsonl", [{"a": "x"}])
    fails(lambda: render(made, piece), "another version of tokencache", "run snakemake again")


# Documents


def test_null_and_missing_are_nothing(tmp_path):
    rows = [{"a": "x", "b": "y"}, {"a": None, "b": "y"}, {"b": ""}, {"a": "", "b": None}]
    piece = write(tmp_path / "a.jsonl", rows)
    assert render(recipe({"text": "a"}), piece)[0] == ["x", "", "", ""]
    assert render(recipe({"text": "<{a}|{b}>"}), piece)[0] == ["<x|y>", "<|y>", "", ""]
    made = recipe({"prompt": "a", "completion": "b"}, loss="completion")
    assert render(made, piece)[:2] == (["xy", "y", "", ""], [[(1, 2)], [(0, 1)], [], []])


def test_spans_count_characters_not_bytes(tmp_path):
    piece = write(
        tmp_path / "a.jsonl", [{"q": "Größe🙂", "a": "日本 e\u0301"}, {"q": "x", "a": ""}]
    )
    made = recipe({"prompt": "{q}: ", "completion": "{a}"}, loss="completion")
    texts, spans, _ = render(made, piece)
    assert [[t[a:b] for a, b in s] for t, s in zip(texts, spans, strict=True)] == [
        ["日本 e\u0301"], [],
    ]  # fmt: skip


def test_side_of_text_alone(tmp_path):
    piece = write(tmp_path / "a.jsonl", [{"a": "x"}, {"a": "yy"}])
    made = recipe({"prompt": "{bos_token}{{", "completion": "{a}}}"}, loss="completion")
    assert render(made, piece)[:2] == (["<s>{x}", "<s>{yy}"], [[(4, 6)], [(4, 7)]])
    made = recipe({"prompt": "a", "completion": "{eos_token}"}, loss="completion")
    assert render(made, piece)[:2] == (["x</s>", "yy</s>"], [[(1, 5)], [(2, 6)]])


def test_column_with_signs_in_its_name(tmp_path):
    piece = write(tmp_path / "a.jsonl", [{"a.b {c}": "x", "text": "no"}])
    assert render(recipe({"text": "{d}!"}, columns={"d": "a.b {c}"}), piece)[0] == ["x!"]


def test_missing_column_is_said_with_those_there_are(tmp_path):
    piece = write(tmp_path / "a.jsonl", [{"a": "x", "b": "y"}])
    fails(lambda: render(recipe({"text": "c"}), piece), "a.jsonl", "'c'", "a, b")


def test_nothing_gives_no_batch(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "a.parquet")
    source = Source(str(tmp_path / "a.parquet"), "parquet", None, "line")
    assert render(recipe({"text": "a"}), Piece(source, 0, 0)) == ([], [], [])
    assert render(recipe({"text": "a"}), Piece(source, 0, 1)) == ([], [], [])


def test_a_row_that_cannot_be_a_conversation_is_named(tmp_path):
    wrong = {"messages": [{"role": None, "content": "a"}]}
    rows = [{"messages": talk("a", "b")}, {"messages": talk("a", "b")}, wrong]
    piece = write(tmp_path / "a.jsonl", rows)
    fails(lambda: render(chat(), piece), f"{tmp_path}/a.jsonl:3: message 1 has no role")
    size = len((json.dumps(rows[0]) + "\n").encode())
    rest = Piece(piece.source, size, piece.stop)
    fails(lambda: render(chat(), rest), f"{tmp_path}/a.jsonl:3: message 1 has no role")
    table = pa.table({"messages": [row["messages"] for row in rows]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    source = Source(str(tmp_path / "a.parquet"), "parquet", None, "line")
    for start, place in ((0, "row 3: "), (1, "row 1 from row group 1 on: ")):
        made = Piece(source, start, 2)
        fails(lambda made=made: render(chat(), made), f"{tmp_path}/a.parquet: {place}")


EMPTY = [{"t": "", "u": ""}, {"t": None, "u": None}, {"x": 1}, {"t": "", "u": None}]
SAYING = [{"t": " ", "u": ""}, {"t": "\u200b"}, {"u": "a"}]
ASKED = {"instruction": "t", "output": "u"}
TEXTS = [
    recipe({"text": "{t}{u}"}),
    recipe({"text": "# {t}\n{u}{eos_token}"}),
    recipe({"prompt": "Q: {t}", "completion": "A: {u}{eos_token}"}, loss="completion"),
    recipe(ASKED),
    recipe(ASKED | {"input": "u", "output": "t"}, loss="completion"),
    recipe(ASKED | {"style": "chat"}, CHATML, loss="assistant"),
]


@pytest.mark.parametrize("made", TEXTS)
def test_a_row_whose_columns_hold_nothing_is_an_empty_document(made, tmp_path):
    texts, spans, _ = render(made, write(tmp_path / "a.jsonl", [*EMPTY, *SAYING, *EMPTY]))
    nothing = len(EMPTY)
    for part in (slice(nothing), slice(-nothing, None)):
        assert texts[part] == [""] * nothing
        assert spans[part] in ([None] * nothing, [[]] * nothing)
    assert all(texts[nothing:-nothing]), "blank is not empty"


@pytest.mark.parametrize(
    "messages",
    [[], None, "", "[]", talk("", ""), [{"role": "user"}], [{"from": "human", "value": ""}],
     [{"role": "user", "content": None}, {"role": "assistant", "content": []}],
     [{"role": role, "content": [{"type": "text", "text": ""}]} for role in ("user", "assistant")],
     [{"role": "user", "content": "", "id": "7", "name": "A"}, {"role": "user", "weight": 0}],
     '[{"role": "user", "content": ""}, {"role": "assistant", "content": "", "id": "7"}]'],
)  # fmt: skip
def test_a_conversation_in_which_nobody_says_anything_is_an_empty_document(messages, tmp_path):
    rows = [{"messages": talk("a", "b"), "s": "S"}, {"messages": messages, "s": "Be brief."}, {}]
    for made in (chat(loss="assistant"), recipe({"messages": "messages", "system": "s"}, CHATML)):
        texts, spans, _ = render(made, write(tmp_path / "a.jsonl", rows))
        assert texts[0] and texts[1:] == ["", ""] and not any(spans[1:])


@pytest.mark.parametrize(
    "message",
    [
        {"content": "[]"}, {"content": [{"type": "image"}]}, {"content": [{"text": "a"}]},
        {"content": "", "reasoning_content": "a"}, {"value": "a"}, {"text": "a"},
    ],
)  # fmt: skip
def test_a_message_says_more_than_its_text(message):
    """Also under a name of its own, which only its template knows."""
    for messages in ([{"role": "user"} | message], json.dumps([{"role": "user"} | message])):
        assert not is_empty({"messages": "m"}, {"m": messages})


def test_messages_that_are_lists_in_lists_are_said(tmp_path):
    nested = []
    for _ in range(400):
        nested = [nested]
    piece = write(tmp_path / "a.jsonl", [{"messages": nested}])
    fails(lambda: render(chat(), piece), "a.jsonl:1: message 1 is a list")


def test_a_message_that_calls_a_tool_says_something(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    rows = [{"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}]
    assert render(chat(), write(tmp_path / "a.jsonl", rows))[0] != [""]


def hashes(made, piece):
    return [n for batch in documents.render(made, piece, read.digest(piece))
            for n in batch.hashes.tolist()]  # fmt: skip


def test_rows_have_the_same_hash_for_every_tokenizer_and_template(tmp_path):
    """By which the same documents are kept for validation."""
    rows = [{"t": f"{n}", "u": "b", "messages": talk(f"{n}", "b")} for n in range(9)]
    piece = write(tmp_path / "a.jsonl", [*rows, *rows[::-1]])
    other = {"eos_token": "<end>"}
    alike = [
        ({"text": "{t}{u}{eos_token}"}, None, {}),
        ({"messages": "messages"}, (CHATML, "{{ messages[0].content }}{{ tools }}"), {}),
        (ASKED | {"style": "chat"}, (CHATML, MARKED), {"loss": "assistant"}),
    ]
    for document, two_of_them, more in alike:
        one, two = two_of_them or [None] * 2
        found = hashes(recipe(document, one, **more), piece)
        assert found == hashes(recipe(document, two, other, **more), piece)
        assert found[:9] == found[9:][::-1] and len(set(found)) == 9
    assert hashes(recipe({"text": "{t}{u}"}), piece)[0] == 17633168388725634262
    assert hashes(recipe({"text": "t"}), piece)[0] != hashes(recipe({"text": "u"}), piece)[0]


def test_half_a_character_in_a_conversation_is_said(tmp_path):
    piece = write(tmp_path / "a.jsonl", [{"messages": talk("\ud83d", "b")}])
    fails(lambda: render(chat(), piece), "a.jsonl:1", "half a character, \\ud83d")


ROWS = st.lists(
    st.fixed_dictionaries({"q": st.none() | st.text(max_size=4), "a": st.text(max_size=4)}),
    min_size=1, max_size=25,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 60), st.integers(1, 7))
def test_documents_are_the_same_in_batches_of_any_size(tmp_path_factory, rows, size, count):
    rows = [row | {"messages": talk(row["q"] or "-", row["a"])} for row in rows]
    piece = write(tmp_path_factory.mktemp("rows") / "a.jsonl", rows)
    recipes = {
        "text": recipe({"text": "{q}|{a}."}),
        "sides": recipe({"prompt": "{q}|", "completion": "{a}"}, loss="completion"),
        "chat": chat(MARKED, loss="assistant"),
    }
    sides = [((row["q"] or "") + "|", row["a"]) for row in rows]
    some = [q + a != "|" for q, a in sides]  # or the row is an empty document
    wanted = {
        "text": [f"{q}{a}." * there for (q, a), there in zip(sides, some, strict=True)],
        "sides": [f"{q}{a}" * there for (q, a), there in zip(sides, some, strict=True)],
        "chat": [f"<s>[{row['q'] or '-'}]{row['a']}</s>" for row in rows],
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, made in recipes.items():
            texts, spans, _ = render(made, piece)
            assert texts == wanted[name]
            patch.setattr(limits, "_chosen", batches_of(size, count))
            small = render(made, piece)
            patch.undo()
            assert small[:2] == (texts, spans)
            assert max(small[2]) <= count
            said = [[t[a:b] for a, b in s or []] for t, s in zip(texts, spans, strict=True)]
            if name == "sides":
                assert said == [[row["a"]] if row["a"] else [] for row in rows]
            if name == "chat":
                assert said == [[row["a"] + "</s>"] for row in rows]


# What is cached already was made so

GOLDEN_VERSION = 2
GOLDEN_ROWS = [
    {"q": "What?", "a": "That.", "messages": talk("Hi", "Hello", "Bye", "See you")},
    {"q": "Größe 🙂", "a": None, "messages": [{"from": "human", "value": " x "}]},
    {"q": "", "a": "a\r\n</s>", "messages": [{"role": "system", "content": "S"}, *talk("", "")]},
]
GOLDEN = [
    (recipe({"text": "q"}), ["What?", "Größe 🙂", ""], [None, None, None]),
    (
        recipe({"text": "{bos_token}Q: {q}\nA: {a}{{}}{eos_token}"}),
        ["<s>Q: What?\nA: That.{}</s>", "<s>Q: Größe 🙂\nA: {}</s>", "<s>Q: \nA: a\r\n</s>{}</s>"],
        [None, None, None],
    ),
    (
        recipe({"prompt": "{q} ", "completion": "a"}, loss="completion"),
        ["What? That.", "Größe 🙂 ", " a\r\n</s>"],
        [[(6, 11)], [], [(1, 8)]],
    ),
    (
        chat(),
        [
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSee you<|im_end|>\n",
            "<|im_start|>user\n x <|im_end|>\n",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<|im_end|>\n"
            "<|im_start|>assistant\n<|im_end|>\n",
        ],
        [None, None, None],
    ),
    (
        chat(loss="assistant"),
        [
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSee you<|im_end|>\n",
            "<|im_start|>user\n x <|im_end|>\n",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<|im_end|>\n"
            "<|im_start|>assistant\n<|im_end|>\n",
        ],
        [[(52, 67), (121, 138)], [], [(81, 91)]],
    ),
    (
        chat(MARKED, loss="assistant"),
        ["<s>[Hi]Hello</s>[Bye]See you</s>", "<s>[ x ]", "<s>[S][]</s>"],
        [[(7, 16), (21, 32)], [], [(8, 12)]],
    ),
    (
        chat(loss="assistant", train_on_eos=False, roles_to_train=["user", "assistant"]),
        [
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSee you<|im_end|>\n",
            "<|im_start|>user\n x <|im_end|>\n",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<|im_end|>\n"
            "<|im_start|>assistant\n<|im_end|>\n",
        ],
        [[(17, 19), (52, 57), (85, 88), (121, 128)], [(17, 20)], []],
    ),
    (
        chat(PROMPTED, loss="assistant"),
        ["<s>U:Hi\nA:Hello\nU:Bye\nA:See you\n", "<s>U: x \n", "<s>U:S\nU:\nA:\n"],
        [[(10, 15), (24, 31)], [], []],
    ),
    (
        chat("{{ strftime_now('%d %B %Y') }}{{ messages[0].content }}"),
        ["26 July 2024Hi", "26 July 2024 x ", "26 July 2024S"],
        [None, None, None],
    ),
]


def test_documents_are_those_of_this_recipe_version(tmp_path):
    """Caches that users have were made by this version: it must not mean anything else."""
    piece = write(tmp_path / "a.jsonl", GOLDEN_ROWS)
    changed = (
        "The same rows give other documents than before: raise RECIPE_VERSION, so that "
        "caches made by the old version are made anew, then write the new documents here"
    )
    for made, texts, spans in GOLDEN:
        assert render(made, piece)[:2] == (texts, spans), changed
    assert RECIPE_VERSION == GOLDEN_VERSION, (
        "RECIPE_VERSION was raised: write the new version, and what is new, here"
    )
    keys = {
        "text": ["add_special_tokens", "form", "loss", "text", "version"],
        "messages": ["add_special_tokens", "chat_template", "form", "loss", "messages",
                     "special_tokens", "version"],
        "prompt_completion": ["add_special_tokens", "completion", "form", "loss", "prompt",
                              "version"],
    }  # fmt: skip
    for made, *_ in GOLDEN:
        asked = made.keys() - {"roles_to_train", "train_on_eos"}
        assert sorted(asked) == keys[made["form"]], changed
        assert made["add_special_tokens"] == (made["form"] != "messages")


# Nulls that only Parquet and Arrow have


def call(**arguments):
    return {"type": "function", "function": {"name": "f", "arguments": arguments}}


def schema(**properties):
    return {"type": "function", "function": {"name": "f", "parameters": properties}}


NESTED = [
    {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [call(city="Paris")]},
            {"role": "assistant", "content": "b", "tool_calls": [call(expr="1", of=[1, None])]},
            {"role": "assistant", "content": "c", "tool_calls": [call()]},
        ],
        "tools": [schema(city={"type": "string"}), schema(expr={"enum": ["a", None]})],
    },
    {"messages": [{"role": "user", "content": "d", "name": "e"}], "tools": None},
]
ALL_KEYS = "{{ tools | tojson }}{% for m in messages %}{{ m | tojson }}\n{% endfor %}"


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_nested_values_are_those_of_json_lines(tmp_path, suffix):
    """A struct has the fields of all rows, with null in rows that don't have them."""
    made = recipe({"messages": "messages", "tools": "tools"}, ALL_KEYS)
    wanted = render(made, write(tmp_path / "a.jsonl", NESTED))
    table = pa.Table.from_pylist(NESTED)
    assert (
        None in table["messages"][0].as_py()[1]["tool_calls"][0]["function"]["arguments"].values()
    )
    path = tmp_path / f"a.{suffix}"
    write_columnar(path, suffix, table, 8)
    found = render(made, Piece(Source(str(path), suffix, None, "line"), 0, 1))
    assert found == wanted
    assert '{"city": "Paris"}' in found[0][0] and "[1, null]" in found[0][0]


KEYS = st.sampled_from("abc")
VALUES = st.recursive(
    st.integers(0, 9),
    lambda inner: (
        st.fixed_dictionaries({}, optional={"x": inner, "y": st.integers(0, 9)})
        | st.lists(st.fixed_dictionaries({}, optional={"z": st.integers(0, 9)}), max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=3), min_size=1, max_size=4))
def test_nulls_of_a_struct_are_no_keys(rows):
    try:
        column = pa.array([[row] for row in rows])
    except (pa.ArrowException, TypeError):  # values of two types for one key
        return
    change = as_json(column.type)
    found = [change(value) if change else value for value in column.to_pylist()]
    assert found == [[row] for row in rows]


def test_a_map_is_an_object():
    kind = pa.map_(pa.string(), pa.struct([("a", pa.int64()), ("b", pa.int64())]))
    column = pa.array([[("x", {"a": 1})], None, [("y", None)]], kind)
    change = as_json(kind)
    assert [change(v) for v in column.to_pylist()] == [{"x": {"a": 1}}, None, {"y": None}]
    assert as_json(pa.list_(pa.string())) is None, "which is JSON's already"


def test_user_errors_have_no_traceback_of_another_error():
    with pytest.raises(UserError) as caught:
        recipe({"text": "{a"})
    assert caught.value.__suppress_context__


def test_a_row_s_line_counts_blank_lines(tmp_path):
    path = tmp_path / "chat.jsonl"
    good = json.dumps({"messages": [{"role": "user", "content": "a"}]})
    path.write_text("\n".join(["", good, " ", good, json.dumps({"messages": "a"}), good]) + "\n")
    dataset = Dataset(files=[str(path)], document={"messages": "messages"})
    made = recipe_of(dataset, "{% for m in messages %}{{ m.content }}{% endfor %}", {})
    source = Source(str(path), "jsonl", None, "line")
    whole = Piece(source, 0, path.stat().st_size)
    with pytest.raises(UserError, match=r"chat\.jsonl:5: the messages are text"):
        list(documents.render(made, whole, read.digest(whole)))
    later = Piece(source, len(good) + 2, path.stat().st_size)
    with pytest.raises(UserError, match=r"chat\.jsonl:5: "):
        list(documents.render(made, later, read.digest(later)))
