"""Which characters of a conversation are trained on, by template and by setting."""

from __future__ import annotations

import pytest
from helpers import chat_templates as styles
from helpers.datafiles import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tokencache.documents.chat_spans import Places
from tokencache.documents.chat_template import Chat
from tokencache.operate.lib.spoken import Conversation, NotCompared

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def bare():
    """A tokenizer for its `apply_chat_template` alone."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def user(content):
    return {"role": "user", "content": content}


def answer(content, **more):
    return {"role": "assistant", "content": content, **more}


def calls(*calls):
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def tool(content):
    return {"role": "tool", "content": content}


def call(arguments):
    function = {"name": "sum", "arguments": arguments}
    return {"type": "function", "id": "abcdefghi", "function": function}


def spoken(template, messages, **how):
    text, spans = Chat(template, SPECIALS, True, **how).document(messages, None)
    return [text[start:stop] for start, stop in spans]


# Words that are pieces of marks, for every style, against what the style's end is

ENDS = {
    "CHATML": "<|im_end|>",
    "QWEN25": "<|im_end|>",
    "QWEN3": "<|im_end|>",
    "LLAMA3": "<|eot_id|>",
    "MISTRAL": "</s>",
    "DEEPSEEK": "<｜end▁of▁sentence｜>",
    "NEMOTRON": "<|im_end|>",
    "PHI": "<|end|>",
}
TRIMMED = {"LLAMA3", "MISTRAL", "NEMOTRON"}
AWKWARD = [
    "d", "i", "n", ">", "|", "<", "<|", "<|im_end|", "_end|>", "s>", "assistant", "</s", "user\n",
    "<|im_start|>assistant", "<s>", " a", "a ", "\n a\n", "9", "</think", "<think>", "[/INST]",
    "<|end|>", "<|eot_id|>", "<|im_end|>\n<|im_start|>user\nd",
]  # fmt: skip
THOUGHT = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize("style", ENDS)
@pytest.mark.parametrize("words", AWKWARD)
def test_words_that_are_pieces_of_marks(style, words):
    template, end = getattr(styles, style), ENDS[style]
    said = words.strip() if style in TRIMMED else words
    if style == "QWEN3":
        said = said.lstrip("\n")
    first, last = said, THOUGHT + said if style == "QWEN3" else said
    chat = [user(words), answer(words), user(words), answer(words)]
    assert spoken(template, chat, eos=False) == [first, last]
    after = "\n</s>" if style == "PHI" else ""
    assert spoken(template, chat) == [first + end, last + end + after]


@pytest.mark.parametrize("style", ENDS)
@pytest.mark.parametrize("words", AWKWARD)
def test_words_of_a_user(style, words):
    template = getattr(styles, style)
    said = words.strip() if style == "LLAMA3" else words
    chat = [user(words), answer(words), user(words)]
    assert spoken(template, chat, roles=["user"], eos=False) == [said, said]
    end = {"MISTRAL": "[/INST]", "DEEPSEEK": ""}.get(style, ENDS[style])
    last = end + "\n</s>" if style == "PHI" else end
    assert spoken(template, chat, roles=["user"]) == [said + end, said + last]


@pytest.mark.parametrize("style", ENDS)
def test_an_empty_answer_is_its_end(style):
    template, end = getattr(styles, style), ENDS[style]
    thought = THOUGHT if style == "QWEN3" else ""
    after = "\n</s>" if style == "PHI" else ""
    chat = [user("a"), answer("")]
    assert spoken(template, chat) == [thought + end + after]
    assert spoken(template, chat, eos=False) == ([thought] if thought else [])


# Headers


def test_no_header_is_trained_on_where_the_prompt_is_another():
    chat = [user("a"), answer("b"), user("c"), answer("d")]
    assert spoken(styles.NEMOTRON, chat) == ["b<|im_end|>", "d<|im_end|>"]
    end = "<｜end▁of▁sentence｜>"
    assert spoken(styles.DEEPSEEK, chat) == [f"b{end}", f"d{end}"]


@pytest.mark.parametrize("style", sorted(set(ENDS) - {"MISTRAL"}))
def test_no_header_is_trained_on_where_the_assistant_begins(style):
    """Neither BOS nor the system prompt that Qwen2.5's template adds by itself."""
    for messages in ([answer("b"), user("c")], [answer("b"), user("c"), answer("d")]):
        assert spoken(getattr(styles, style), messages)[0] == f"b{ENDS[style]}"
        assert spoken(getattr(styles, style), messages, eos=False)[0] == "b"


def test_a_header_without_a_generation_prompt_is_not_trained_on():
    plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    never = plain + "{% if add_generation_prompt and messages[-1].role == 'user' %}{% endif %}"
    for template in (plain, never):
        assert spoken(template, [user("a"), answer("b")]) == ["b</assistant>"]


def test_what_the_model_writes_by_itself_is_trained_on():
    chat = [user("a"), answer("b", reasoning_content="r")]
    assert spoken(styles.QWEN3, chat) == ["<think>\nr\n</think>\n\nb<|im_end|>"]
    # Here, the generation prompt has the begin of the thinking in it.
    assert spoken(styles.NEMOTRON, chat) == ["r\n</think>\nb<|im_end|>"]
    assert spoken(styles.NEMOTRON, chat, eos=False) == ["r\n</think>\nb"]
    forced = styles.CHATML.replace(
        "assistant\\n' }}{%- endif", "assistant\\n<think>\\n' }}{%- endif"
    )
    assert forced != styles.CHATML
    # No prompt of the model's: what the row says in its place may be trained on.
    assert spoken(forced, [user("a"), answer("<think>\nb")]) == ["<think>\nb<|im_end|>"]


# Thinking, which templates take from the content, and throw away once another question came


def test_thinking_in_the_content():
    thinking = [answer(f"<think>\nr{n}\n</think>\n\nb{n}") for n in (1, 2)]
    chat = [user("a"), thinking[0], user("c"), thinking[1]]
    last = "<think>\nr2\n</think>\n\nb2"
    assert spoken(styles.QWEN3, chat) == ["b1<|im_end|>", f"{last}<|im_end|>"]
    assert spoken(styles.QWEN3, chat, eos=False) == ["b1", last]
    assert spoken(styles.DEEPSEEK, chat, eos=False) == ["\n\nb1", "\n\nb2"]


def test_thinking_beside_the_content():
    thinking = [answer(f"b{n}", reasoning_content=f"r{n}") for n in (1, 2)]
    chat = [user("a"), thinking[0], user("c"), thinking[1]]
    last = "<think>\nr2\n</think>\n\nb2<|im_end|>"
    assert spoken(styles.QWEN3, chat) == ["b1<|im_end|>", last]


# Calls of tools and their answers

QWEN_CALL = '<tool_call>\n{"name": "sum", "arguments": {"x": "</tool_call>"}}\n</tool_call>'
CALLED = {
    "QWEN25": (QWEN_CALL, "<|im_end|>", "\n</tool_response>"),
    "QWEN3": (QWEN_CALL, "<|im_end|>", "<|im_end|>"),
    "MISTRAL": (
        '[TOOL_CALLS] [{"name": "sum", "arguments": {"x": "</tool_call>"}}]',
        "</s>",
        "}[/TOOL_RESULTS]",
    ),
    "NEMOTRON": (
        "<tool_call>\n<function=sum>\n<parameter=x>\n</tool_call>\n</parameter>\n</function>\n"
        "</tool_call>\n",
        "<|im_end|>",
        "<|im_end|>",
    ),
    "DEEPSEEK": (
        '<｜tool▁calls▁begin｜>function<｜tool▁sep｜>sum\n{"x": "</tool_call>"}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "<｜end▁of▁sentence｜>",
        "<｜tool▁output▁end｜>",
    ),
}


@pytest.mark.parametrize("style", CALLED)
def test_calls_are_trained_on_whole(style):
    template, (called, end, after) = getattr(styles, style), CALLED[style]
    arguments = {"x": "</tool_call>"}
    made = call('{"x": "</tool_call>"}' if style == "DEEPSEEK" else arguments)
    last = THOUGHT + "b" if style == "QWEN3" else "b"
    chat = [user("a"), calls(made), tool("3"), tool("4"), answer("b")]
    assert spoken(template, chat) == [called + end, last + end]
    assert spoken(template, chat, eos=False) == [called, last]
    found = spoken(template, chat, roles=["tool"])
    assert found[0] == "3" + after
    assert spoken(template, chat, roles=["tool"], eos=False) == ["3", "4"]


def test_a_call_that_ends_in_another_way_than_text():
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content or m.tool_calls[0].function.name }}"
        "{{ '<|eom_id|>' if m.tool_calls else '<|eot_id|>' }}{% endfor %}"
    )
    chat = [user("a"), calls(call({}))]
    assert spoken(template, chat) == ["sum<|eom_id|>"]
    message = fails(lambda: spoken(template, chat, eos=False), "message 2", "another way than text")
    assert "train_on_eos: false" in message


# Content of several parts


def test_parts_of_a_content():
    template = (
        "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}"
        "{% else %}{% for part in m.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
        "{% endif %}</end>{% endfor %}"
    )
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "n"}]
    assert spoken(template, [user(parts), answer(parts)]) == ["a<image>n</end>"]
    assert spoken(template, [user("a"), answer(parts)], eos=False) == ["a<image>n"]


# What can't be told


@pytest.mark.parametrize(
    ("shown", "how", "why"),
    [
        ("{{ m.content }}{{ m.content }}", {}, "writes its words more than once"),
        ("{{ m.content | list | join('-') }}", {}, "the template leaves its words out, or changes"),
        ("{{ m.content }}{{ m.content | length }}", {"eos": False}, "ends it in another way"),
    ],
)
def test_what_cannot_be_told_is_said(shown, how, why):
    template = f"{{% for m in messages %}}<{{{{ m.role }}}}>{shown}</end>{{% endfor %}}"
    made = Chat(template, {}, True, **how)
    chat = [user("a"), answer("b c")]
    message = fails(lambda: made.document(chat, None), why, "{% generation %}", "loss: all")
    assert message.startswith("it can't be told where message 2 stands in the text: ")
    assert Chat(template, {}, False).document(chat, None)[1] is None


def test_a_message_that_the_template_leaves_out_is_not_trained_on():
    shown = (
        "{% for m in messages %}{% if loop.index < 4 %}{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    assert spoken(shown, [user("a"), answer("b"), user("c"), answer("d")]) == ["b</s>"]
    before_last = shown.replace("loop.index < 4", "not loop.last")
    chat = [user("a"), answer("b"), user("c"), answer("d")]
    assert spoken(before_last, chat, eos=False) == ["b"]
    fails(lambda: spoken(before_last, chat), "message 2", "the template leaves its words out")


def test_words_that_the_template_changes():
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}</end>{% endfor %}"
    chat = [user("a"), answer("d e"), user("a"), answer("end")]
    assert spoken(template, chat) == ["D E</end>", "END</end>"]
    assert spoken(template, chat, eos=False) == ["D E", "END"]


# At random: a family of templates, whose spans are written down as the text is

PIECES = st.sampled_from(
    ["<", "|", "im_", "end", "|>", "<|end|>", "\n", " ", "d", "user", "<b>", "9"]
)
WORDS = st.lists(PIECES, max_size=5).map("".join)
ROLES = st.sampled_from(["user", "assistant", "tool"])
CHATS = st.lists(st.tuples(ROLES, WORDS), min_size=1, max_size=5)
CHANGES = {"": str, " | trim": str.strip, " | upper": str.upper}
HEADERS = ["<|{}|>\n", "<{}", "{}: ", "\n", ""]
FIRST = ["", "<s>", "<s>d<|end|>\n"]
BEHIND = ["<|end|>", "<|end|>\n", "\n", "</s>", "d"]


@settings(max_examples=150, deadline=None)
@given(
    CHATS, st.sampled_from(HEADERS), st.sampled_from(FIRST), st.sampled_from(BEHIND),
    st.sampled_from(sorted(CHANGES)), st.sets(ROLES, min_size=1), st.booleans(), st.booleans(),
)  # fmt: skip
def test_spans_of_any_template(chat, header, first, end, change, roles, eos, prompted):
    """Each message is a header, its words as the template changes them, and an end."""
    shown = header.replace("{}", "' + m.role + '")
    template = (
        f"{{{{- {first!r} }}}}{{%- for m in messages %}}{{{{- '{shown}' }}}}"
        f"{{{{- m.content{change} }}}}{{{{- {end!r} }}}}{{%- endfor %}}"
    ).replace("\n'", "\\n'")
    if prompted:
        said = header.replace("{}", "assistant")
        template += f"{{%- if add_generation_prompt %}}{{{{- {said!r} }}}}{{%- endif %}}"
    text, wanted = first, []
    for role, words in chat:
        text += header.replace("{}", role)
        start = len(text)
        text += CHANGES[change](words)
        stop = len(text) + (len(end.rstrip()) if eos else 0)
        text += end
        if role in roles and start < stop:
            wanted.append((start, stop))
    messages = [{"role": role, "content": words} for role, words in chat]
    made = Chat(template, {}, True, sorted(roles), eos).document(messages, None)
    assert made == (text, wanted)


TURNS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3)


@pytest.mark.parametrize("style", ENDS)
@settings(max_examples=25, deadline=None)
@given(TURNS, st.sampled_from(["assistant", "user"]), st.booleans())
def test_placeholders_in_all_messages_show_what_one_by_one_do(style, turns, role, eos):
    chat = [message for asked, said in turns for message in (user(asked), answer(said))]
    made = Chat(getattr(styles, style), SPECIALS, True, [role], eos)
    found = made.document(chat, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Places, "_together", lambda *_: {})
        assert made.document(chat, None) == found


CALLS = st.lists(st.tuples(WORDS, WORDS), max_size=2)
MORE = st.sampled_from(["", "think", "tool"])


@pytest.mark.parametrize("style", sorted(set(ENDS) - {"PHI", "CHATML", "LLAMA3"}))
@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(WORDS, CALLS, WORDS, MORE), min_size=1, max_size=3), st.booleans(),
       st.sets(ROLES, min_size=1))  # fmt: skip
def test_verify_tells_the_same_spans_by_itself(bare, style, turns, eos, roles):
    """It shares nothing with what makes token shards but the rules of docs/how-it-works.md."""
    template, chat = getattr(styles, style), []
    for asked, called, said, more in turns:
        chat.append(user(asked))
        if called and style != "DEEPSEEK":  # whose calls transformers can't write
            made = [call({"x": words, "y": other}) for words, other in called]
            chat += [calls(*made), *(tool(words) for words, _ in called)]
        chat.append(answer(said, **({"reasoning_content": "r"} if more == "think" else {})))
    made = Chat(template, SPECIALS, True, sorted(roles), eos)
    plain = [{k: v for k, v in m.items() if v is not None} for m in chat]
    said = Conversation(bare, template, SPECIALS, plain, None)
    try:
        wanted = sorted(said.spans(0, sorted(roles), eos))
    except NotCompared:
        return
    assert made.document(chat, None) == (said.text, wanted)


MARKS_THE_LINE_BREAK = """{% for m in messages %}{{ '<|' + m.role + '|>\n' }}\
{% if m.role == 'assistant' %}{% generation %}{{ m.content + '</s>\n' }}{% endgeneration %}\
{% else %}{{ m.content + '</s>\n' }}{% endif %}{% endfor %}"""


@pytest.mark.parametrize("asked", [[user("c")], []])
@pytest.mark.parametrize("old", ["b", "b ", "d", ""])
def test_verify_tells_the_marks_of_a_completion_by_itself(bare, asked, old):
    """Where the marks of the prompt's answers end with what a message ends with."""
    chat = [user("a"), answer(old), *asked, answer("d")]
    template, first = MARKS_THE_LINE_BREAK, 2
    text, spans = Chat(template, {}, True).document(chat, None, first)
    assert [text[start:stop] for start, stop in spans] == ["d</s>\n"]
    assert Conversation(bare, template, {}, chat, None).marked(first) == spans


@pytest.mark.parametrize("said", ["[]", '[{"name": "f"}]', [1], [{"function": "f"}]])
def test_calls_that_verify_cannot_read_are_not_compared(bare, said):
    template = "{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}"
    chat = [user("a"), {"role": "assistant", "tool_calls": said}]
    with pytest.raises(NotCompared, match="calls of tools are not a list"):
        Conversation(bare, template, {}, chat, None)
