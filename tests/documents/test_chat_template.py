"""Conversations as text are those of transformers, and what the assistant says in them."""

from __future__ import annotations

import datetime
import json

import pytest
from helpers.datafiles import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from tokencache.documents import conversations, renderer
from tokencache.documents.chat_template import Chat
from tokencache.documents.templates import inspect, uncommented
from tokencache.errors import UserError

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA = """{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'\
+ message['content'] | trim + '<|eot_id|>' %}\
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}\
{% endfor %}{% if add_generation_prompt %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{{ message['content'] + eos_token}}
{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}
{% endif %}
{% endfor %}"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- set tool_call = tool_call.function %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
# What the assistant says, its end token included, with marks and without them.
MARKED = """{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>
{% generation %}{{ m.content }}</s>{% endgeneration +%}
{% else %}<|{{ m.role }}|>
{{ m.content }}</s>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration +%}", "")
TEMPLATES = {
    "chatml": CHATML, "llama": LLAMA, "mistral": MISTRAL, "zephyr": ZEPHYR, "tools": TOOLS,
    "marked": MARKED,
}  # fmt: skip

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOL = {"type": "function", "function": {"name": "sum", "parameters": {"ä": [1, None, "<&>'"]}}}
CALL = {"type": "function", "function": {"name": "sum", "arguments": {"x": [1, 2], "y": "é"}}}


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, "<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **SPECIALS)


def talk(*contents, system=None):
    first = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    return first + [{"role": roles[n % 2], "content": c} for n, c in enumerate(contents)]


def said(template, messages, tools=None, specials=SPECIALS):
    """What the assistant says, as text."""
    text, spans = Chat(template, specials, True).document(messages, tools)
    return [text[start:stop] for start, stop in spans]


# The text


CONTENT = st.text(max_size=8) | st.sampled_from(["  x \n", "</s>", "{{ 1 }}", "<|im_end|>", "\n"])


@settings(max_examples=60, deadline=None)
@given(st.lists(CONTENT, min_size=1, max_size=5), st.none() | CONTENT)
def test_text_is_that_of_transformers(tokenizer, contents, system):
    for name, template in TEMPLATES.items():
        messages = talk(*contents, system=None if name == "mistral" else system)
        wanted = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        specials = tokenizer.special_tokens_map
        assert Chat(template, specials, False).document(messages, None) == (wanted, None)
        if name == "marked":
            assert Chat(template, specials, True).document(messages, None)[0] == wanted


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_and_calls_are_those_of_transformers(tokenizer, as_text):
    messages = [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "name": "sum"},
        {"role": "assistant", "content": "3", "reasoning_content": "easy"},
    ]
    wanted = tokenizer.apply_chat_template(
        messages, tools=[TOOL], chat_template=TOOLS, tokenize=False
    )
    assert '"ä": [1, null, "<&>\'"]' in wanted
    given_tools = json.dumps([TOOL]) if as_text else [TOOL]
    made = Chat(TOOLS, tokenizer.special_tokens_map, False)
    assert made.document(messages, given_tools)[0] == wanted
    for none in (None, [], "[]", "null"):
        wanted = tokenizer.apply_chat_template(messages, chat_template=TOOLS, tokenize=False)
        assert made.document(messages, none)[0] == wanted
    call = '<tool_call>\n{"name": "sum", "arguments": {"x": [1, 2], "y": "é"}}\n</tool_call>'
    # The prompt's newline is the one that stands before what is said.
    assert said(TOOLS, messages, [TOOL]) == [f"{call}<|im_end|>", "3<|im_end|>"]


def test_null_is_absence_as_in_transformers(tokenizer):
    """Columns of Parquet and Arrow have every key in every message."""
    template = (
        "{% for m in messages %}{% if m['content'] is none %}none{% else %}{{ m['content'] }}"
        "{% endif %}{{ m.tool_calls | length }}{% if m.name is defined %}!{% endif %}"
        "{% for call in m.tool_calls %}{{ call.function.name }}{% endfor %}{% endfor %}"
    )
    messages = [*talk("a"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    everywhere = [{"name": None, "tool_calls": None, **m} for m in messages]
    made = Chat(template, {}, False)
    for found in (messages, everywhere):
        wanted = tokenizer.apply_chat_template(found, chat_template=template, tokenize=False)
        assert made.document(found, None)[0] == wanted == "a01sum"


NONE_ASKED = (
    "{% for m in messages %}{% if m.content is none %}{{ m.tool_calls[0].function.name }}"
    "{% else %}{{ m.content TAIL }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("tail", ["+ ''", ""])  # refuses a call without content, or loses it
@pytest.mark.parametrize("content", [{}, {"content": None}])
def test_calls_without_content_where_the_template_asks_for_none(tail, content):
    template = NONE_ASKED.replace("TAIL", tail)
    messages = [*talk("a"), {"role": "assistant", **content, "tool_calls": [CALL]}]
    assert Chat(template, {}, False).document(messages, None)[0] == "asum"
    assert said(template, messages) == ["sum"]
    plain = [*talk("a"), {"role": "assistant", "content": "b", "tool_calls": [CALL]}]
    assert Chat(template, {}, False).document(plain, None)[0] == "ab"


def test_calls_that_a_template_never_writes_are_as_in_transformers(tokenizer):
    template = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"
    messages = [*talk("a"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    wanted = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert Chat(template, {}, False).document(messages, None)[0] == wanted == "useraassistant"


def test_rows_with_tools_take_their_own_template(tokenizer):
    named = {"default": CHATML, "tool_use": TOOLS}
    made = Chat(CHATML, {}, True, tool_template=TOOLS)
    for tools in ([TOOL], None):
        tokenizer.chat_template = named
        wanted = tokenizer.apply_chat_template(talk("a", "b"), tools=tools, tokenize=False)
        tokenizer.chat_template = None
        text, spans = made.document(talk("a", "b"), tools)
        assert text == wanted
        assert ("# Tools" in text) == bool(tools)
        assert [text[a:b] for a, b in spans] == ["b<|im_end|>"]


STARTS = [
    "",
    "\n",
    "\n\n",
    "  ",
    "  {% if true %}x{% endif %}",
    "\n {# c #} ",
    "{%- if 1 %}\n{% endif %}\n",
]


@pytest.mark.parametrize("start", STARTS)
def test_clock_stands_still(tokenizer, monkeypatch, start):
    class Day(datetime.datetime):
        @classmethod
        def now(cls):
            return cls(2024, 7, 26)

    formats = ["%d %b %Y", "%B %d, %Y", "%Y-%m-%d", "%A %-d %B %y", "%a %e %j %H:%M:%S", "%I %p %F"]
    template = start + (
        "{% macro day(f) %}{{ strftime_now(f) }}{% endmacro %}"
        "{% if strftime_now is defined %}{% for f in ['" + "', '".join(formats) + "'] %}"
        "{% set today = strftime_now(f) %}{{ today }}|{{ day(f) }}\n{% endfor %}{% endif %}"
        "{{ messages[0].content }}"
    )
    text, _ = Chat(template, {}, False).document(talk("x"), None)
    assert "26 Jul 2024|26 Jul 2024" in text
    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    wanted = tokenizer.apply_chat_template(talk("x"), chat_template=template, tokenize=False)
    assert text == wanted


# What the assistant says


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=6), st.none() | st.text(max_size=3))
def test_marks_and_prefixes_agree(contents, system):
    messages = talk(*contents, system=system)
    text, spans = Chat(MARKED, {}, True).document(messages, None)
    plain, found = Chat(UNMARKED, {}, True).document(messages, None)
    assert inspect(MARKED).generation and not inspect(UNMARKED).generation
    assert plain == text
    assert found == spans
    assert [text[a:b] for a, b in spans] == [f"{c}</s>" for c in contents[1::2]]


@pytest.mark.parametrize(
    ("name", "spoken"),
    [
        ("chatml", ["B<|im_end|>", " D <|im_end|>"]),
        ("llama", ["B<|eot_id|>", "D<|eot_id|>"]),
        ("mistral", ["B</s>", " D </s>"]),
        ("tools", ["B<|im_end|>", " D <|im_end|>"]),
        ("marked", ["B</s>", " D </s>"]),
        ("zephyr", ["B</s>", " D </s>"]),
    ],
)
def test_spans_of_each_template(name, spoken):
    assert said(TEMPLATES[name], talk("A", "B", "C", " D ", "E")) == spoken
    assert said(TEMPLATES[name], talk("A")) == []


def test_last_message_is_trained_on_to_the_end():
    assert said(CHATML, talk("A", "B")) == ["B<|im_end|>"]
    assert said(CHATML, talk("A", "")) == ["<|im_end|>"]


def test_marks_around_nothing_are_no_spans():
    template = (
        "{% for m in messages %}{{ m.role }}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% endfor %}"
    )
    assert said(template, talk("", "x")) == ["x"]


def test_autoescape_is_no_mark():
    template = "{% autoescape false %}{{ messages[0].content }}{% endautoescape %}"
    assert not inspect(template).generation
    assert inspect("{% generation %}" + template + "{% endgeneration %}").generation
    assert inspect("{% generation %}{% endgeneration %}").generation


@pytest.mark.parametrize(
    "template",
    [
        "{% macro f(m) %}{% generation %}{{ m }}{% endgeneration %}{% endmacro %}{{ f('x') }}",
        "{% filter upper %}{% generation %}x{% endgeneration %}{% endfilter %}",
        "{% set y %}{% generation %}x{% endgeneration %}{% endset %}{{ y }}",
        "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{% generation %}x"
        "{% endgeneration %}{% endcall %}",
    ],
)
def test_marks_in_a_macro_are_found_out(template):
    assert inspect(template).hidden
    assert not inspect(
        "{% if 1 %}{% for m in messages %}" + MARKED + "{% endfor %}{% endif %}"
    ).hidden


def test_marks_of_a_completion_are_those_of_its_messages():
    """Also where the assistant speaks in the prompt."""
    chat = talk("a", "b", "c", " d")
    text, spans = Chat(MARKED, {}, True).document(chat, None, first=3)
    assert [text[a:b] for a, b in spans] == [" d</s>"]
    part = MARKED.replace("</s>{% endgeneration", "{% endgeneration").replace("_ +%}", " +%}")
    assert part != MARKED
    text, spans = Chat(part, {}, True).document(chat, None, first=3)
    assert [text[a:b] for a, b in spans] == [" d"]


# Bounds


LOOP = "{% for X in range(9999) %}"


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (LOOP * 3 + "{% endfor %}" * 3, "takes more than 100,000 steps for one row"),
        ("{% for a in 'x' * 999 %}" * 5 + "{% endfor %}" * 5, "more than 100,000 steps"),
        ("{% for a in messages * 999 %}" * 5 + "{% endfor %}" * 5, "more than 100,000 steps"),
        ("{% for a in (messages * 999) | map(attribute='role') %}" * 5 + "{% endfor %}" * 5,
         "more than 100,000 steps"),
        (LOOP + "{{ range(9999) | sum }}{% endfor %}", "more than 100,000 steps"),
        ("{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else '' }}{% endmacro %}{{ f(50) }}",
         "more than 100,000 steps"),
        ("{% for x in messages recursive %}{{ loop([1, 1]) }}{% endfor %}", "RecursionError"),
        ("{{ 'x' * 10 ** 9 }}", "makes more than 1,000,000 characters"),
        ("{{ [1] * 10 ** 9 }}", "makes more than"),
        ("{{ 9 ** (10 ** 9) }}", "makes more than"),
        ("{{ '%99999999d' % 1 }}", "pads a text"),
        ("{% set n = namespace(x='x') %}" + LOOP + "{% set n.x = n.x ~ n.x %}{% endfor %}",
         "makes more than"),
        ("{% set n = namespace(x='x') %}" + LOOP + "{% set n.x = n.x + n.x %}{% endfor %}",
         "makes more than"),
        ("{% set n = namespace(x='x') %}" + LOOP
         + "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}", "makes more than"),
        (LOOP + "{{ 'x' * 99999 }}{% endfor %}", "makes more than"),
    ],
)  # fmt: skip
def test_templates_are_bounded(monkeypatch, template, wanted):
    monkeypatch.setattr(renderer, "MOST_STEPS", 100_000)
    monkeypatch.setattr(renderer, "MOST_CHARACTERS", 1_000_000)
    fails(lambda: Chat(template, {}, False).document(talk("a"), None), wanted, "models.NAME")


def test_no_template_runs_for_long():
    template = LOOP * 3 + "{% endfor %}" * 3
    fails(lambda: Chat(template, {}, False).document(talk("a"), None), "10,000,000 steps")


def test_bounds_change_no_text(tokenizer):
    template = (
        "{% macro f(m, n=1) -%} {{ m }}<{{ n }}|{{ nothing }}|{{ [1, 'a', none] }}>{{ caller }} "
        "{%- endmacro %}{% macro g() %}[{{ caller(1) }}]{% endmacro %}"
        "{% for m in messages if m.content %}{{ loop.index }}/{{ loop.length }}{{ f(m.content) }}"
        "{% call(x) g() %} {{ x }} {% endcall %}{% else %}none{% endfor %}"
        "{% for m in messages | selectattr('content') %}{{ loop.last }}{{ loop.length }}"
        "{% endfor %}"
        "{% for k, v in {'a': 1}.items() %}{{ k ~ v ~ none }}{% endfor %}"
        "{% for x in [[1, [2]], 3] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}"
        "{% filter upper %}{{ 'a' + 'b' * 2 }}x{% endfilter %}{% set y %}{{ 7 % 4 }}z{% endset %}"
        "{{ y }}{{ 2 ** 3 }}{{ [1] + [2] }}{{ '%d-%s' % (1, 'a') }}{{ range(3) | list }}"
        "{% for x in nothing %}{% endfor %}{{ y.join(['a', 'b']) }}{% set z = [1] * 2 %}{{ z }}"
    )
    for messages in (talk("a", "", "c"), talk("")):
        wanted = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        assert Chat(template, {}, False).document(messages, None)[0] == wanted


# Comments

COMMENTED = [
    "a{# c #}b", "a {# c #} b", "a\n{# c #}\nb", "a\n  {# c #}  \nb", "a\n\n {#- c -#} \n\nb",
    "{# c #}\n{{ 1 }}", "{{ 1 }}{# c #}\n", "a {#- c #}\n b", "a\n{# c -#}\n b",
    "{% if 1 -%} {# c #} x {%- endif %}", "{% if 1 %}\n{# c #}\n{# d #}\nx{% endif %}",
    "{# c\n c #}{#- d -#} x", "{# a #}{# b #}",
]  # fmt: skip


@pytest.mark.parametrize("template", COMMENTED)
def test_a_comment_changes_no_recipe(tokenizer, template):
    template = template.replace("\\n", "\n")
    texts = []
    for source in (template, template.replace(" c ", " other\nwords "), template + "\n"):
        found = uncommented(source)
        assert " c " not in found and "words" not in found
        texts.append(found)
        for one in (source, found):
            texts.append(
                tokenizer.apply_chat_template(talk("x"), chat_template=one, tokenize=False)
            )
    assert texts[1:3] == texts[4:6]
    assert texts[:3] == texts[3:6]


@pytest.mark.parametrize(
    "template",
    ["{{ '{# c #}' }}", "{% raw %}{# c #}{% endraw %}", "{{ 'a' }}", "{# c", "{{ 1 }}\n\n"],
)
def test_what_only_looks_like_a_comment_stays(template):
    assert uncommented(template) == template


PARTS = st.sampled_from(
    ["{# c #}", "{#- c #}", "{# c -#}", "{#- c -#}", " ", "\n", "a", "{{ 1 }}", "{{- 2 -}}",
     "{% if 1 %}", "{%- endif -%}", "{% raw %}", "{% endraw %}", "'{#'", "#}", "{{ '{# c #}' }}"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(PARTS, max_size=9).map("".join))
def test_comments_go_only_where_nothing_changes(tokenizer, template):
    try:
        inspect(template)
    except UserError:
        return
    before, after = (
        tokenizer.apply_chat_template(talk("x"), chat_template="." + one, tokenize=False)
        for one in (template, uncommented("." + template)[1:])
    )
    assert (
        before.strip() == after.strip()
        if not (template and uncommented(template))
        else before == after
    )


# Messages


def test_sharegpt_is_the_same_conversation():
    for role, name in conversations.SHAREGPT_ROLES.items():
        if role == "function_call":
            continue  # holds a call, no text
        assert conversations.conversation([{"from": role, "value": "x"}]) == [
            {"role": name, "content": "x"}
        ]
    rows = [{"from": "human", "value": "A"}, {"from": "gpt", "value": "B", "weight": 1}]
    assert Chat(CHATML, {}, True).document(rows, None) == Chat(CHATML, {}, True).document(
        talk("A", "B"), None
    )
    assert conversations.conversation(rows)[1] == {"role": "assistant", "content": "B", "weight": 1}
    both = {"role": "user", "content": "A", "from": None, "value": None}
    assert Chat(CHATML, {}, False).document([both], None)[0] == "<|im_start|>user\nA<|im_end|>\n"
    assert rows[0] == {"from": "human", "value": "A"}, "rows are left as they are"


@pytest.mark.parametrize(
    ("messages", "wanted"),
    [
        (None, "the messages are null; needed is a list of {role, content}"),
        ([], "the messages are an empty list"),
        ("hi", "the messages are text"),
        ({"role": "user"}, "the messages are a mapping"),
        (3, "the messages are a number"),
        (True, "the messages are true or false"),
        (["hi"], "message 1 is text; needed is {role, content}"),
        ([*talk("a"), None], "message 2 is null"),
        ([{"content": "a"}], "message 1 has no role; its keys: content"),
        ([*talk("a"), {}], "message 2 has no role; its keys: none"),
        ([{"role": None, "content": "a"}], "message 1 has no role"),
        ([{"role": 3}], "message 1 has no role; its keys: role"),
        ([{"from": "bard", "value": "a"}], "message 1 is from 'bard'; known are human, user, gpt"),
        ([{"from": ["gpt"], "value": "a"}], "message 1 is from ['gpt']"),
        ("[" * 100_000, "the messages are text that is nested too deeply"),
        ("[1", "the messages are text that is not JSON"),
    ],
)
def test_what_is_no_conversation(messages, wanted):
    fails(lambda: Chat(CHATML, {}, False).document(messages, None), wanted)


def test_messages_that_are_nested_too_deeply():
    for depth in (400, 900, 5000):
        deep = []
        for _ in range(depth):
            deep = [deep]
        message = {"role": "user", "content": "a", "more": deep}
        made = Chat("{{ messages[0].content }}{{ messages[0].more }}", {}, False)
        for messages, tools in (([message], None), (talk("a"), [{"x": deep}])):
            try:
                assert made.document(messages, tools)[0].startswith("a")
            except UserError as error:
                assert "nested too deeply" in str(error) or "RecursionError" in str(error)


@pytest.mark.parametrize(
    ("tools", "wanted"),
    [
        ("no json", "the tools are text that is not JSON"),
        ("{}", "the tools are a mapping; needed is a list of JSON schemas"),
        ([1], "the tools are a list; needed is a list of JSON schemas"),
        (3, "the tools are a number"),
        ("[" * 100_000, "the tools are text that is nested too deeply"),
    ],
)
def test_what_is_no_list_of_tools(tools, wanted):
    fails(lambda: Chat(TOOLS, {}, False).document(talk("a"), tools), wanted)


@pytest.mark.parametrize(
    ("template", "messages", "wanted"),
    [
        (MISTRAL, talk("A", system="S"), "Conversation roles must alternate"),
        (MISTRAL, [*talk("A"), *talk("A")], "must alternate"),
        (CHATML, [{"role": "user"}], "UndefinedError: "),
        (CHATML, [{"role": "user", "content": 3}], "TypeError: "),
        ("{{ messages[9].role }}", talk("A"), "UndefinedError: "),
        ("{{ 1 / 0 }}", talk("A"), "ZeroDivisionError: "),
        ("{{ messages.append(1) }}", talk("A"), "SecurityError: "),
    ],
)
def test_template_that_refuses(template, messages, wanted):
    made = Chat(template, SPECIALS, False)
    message = fails(lambda: made.document(messages, None), wanted, "models.NAME.chat_template")
    assert message.startswith("the chat template refuses these messages: ")


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{{ [1, 2] | random }}", "draws at random"),
        ("{% if 0 %}{{ lipsum(5) }}{% endif %}", "draws at random"),
        ("{% if %}", "has an error in its line 1"),
        ("a\n{{ 'b }}", "has an error in its line 2"),
        ("{% generation %}", "has an error in its line 1"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "it is nested too deeply"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "nested"),
        ("{{ \0 }}", "has an error in its line 1"),
        ("{{ 'a' | no_filter }}", "no_filter"),
        ("{{ 1 }}\ud800", "can't be read"),
    ],
)
def test_templates_that_cannot_be_used(template, wanted):
    fails(lambda: inspect(template), wanted, "models.NAME.chat_template")


def test_names_that_a_template_takes():
    assert inspect(LLAMA).variables >= {"messages", "bos_token", "add_generation_prompt"}
    assert "eos_token" not in inspect(LLAMA).variables
    assert "tools" in inspect(TOOLS).variables
    assert (
        "strftime_now" in inspect("{% macro f() %}{{ strftime_now('') }}{% endmacro %}").variables
    )
