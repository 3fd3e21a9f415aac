"""Fixed texts whose ids tell tokenizers apart, and one library's behaviour from the next one's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, models

from ..errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# They are part of every tokenizer's key: never change them.
PROBE = (
    "",
    " ",
    "a",
    "The quick brown fox jumps over the lazy dog. Don't you think it's fine? WE'LL SEE, he'd say.",
    "  two  leading spaces,   three inside,\ttabs\t\tand trailing   ",
    "\n\nlines\r\nof\n \n several\n\n\n\nkinds\u2028here\x0b\x0c\x85.",
    "0 12 345 6789 1234567890 3.14159 1,000,000 -42 1e-5 ½ ² ٣٤٥",
    "Größe, café, cafe\u0301, Ångström \u212b, \ufb01ne, İstanbul, ẞ, naïve façade",
    "Ελληνικά κείμενα, Русский текст, Ѐ",
    "日本語のテキスト。中文文本，没有空格。한국어 문장입니다. \u110b\u1161\u11ab",
    "שלום עולם, مرحبا بالعالم, नमस्ते दुनिया, สวัสดีชาวโลก, ሰላም ለዓለም",
    "🙂 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f937\U0001f3fd\u200d\u2642\ufe0f 🇩🇪",
    "\u200b\u200d\ufeff\u00ad\u00a0|\u3000|\u2003| \u00a0 ",
    "def f(x: int) -> str:\n    return f'{x:>10}'  # comment\n\nif __name__ == 'a':\n\tf(1)\n",
    "<html><body class='a'>&amp;</body></html> {\"key\": [1, null]} https://a.example/b?c=d#e \\n",
    "control \x00\x01\x07\x1b[0m\x7f and \ufffd \U0010ffff \ue000",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa !!!!!!!! ........ -------- ========",
    "x<s>y</s> <|endoftext|> [CLS] [SEP] [MASK] <unk> <pad> <|im_start|>user\nhi<|im_end|>\n",
    "▁meta ▁▁space <0x0A><0xFF> Ġbyte ##piece @@ camelCase snake_case SCREAMING_CASE 's 'S",
)
# Runs of one character, which Unigram models cut at ties. In the key of those alone.
TIES = tuple(
    separator.join([character * length] * 2)
    for character in "-=_.*#~+!?/0aeEln\u2014\u3002"
    for length in (2, 3, 5, 7, 11, 16, 24, 40, 57, 80)
    for separator in (" ", "x")
)
PROBED_TOKENS = 512  # of the added ones, each inside a text


def probe(backend: Tokenizer, tokens: int | None = PROBED_TOKENS) -> list[str]:
    """The fixed texts, and one for each token that is matched before the model.

    tokens: at most so many of these; None for all.
    """
    added = sorted(backend.get_added_tokens_decoder().items())
    names = [token.content for _, token in added[:tokens]]
    ties = TIES if isinstance(backend.model, models.Unigram) else ()
    return [*PROBE, *ties, *(f"a {name} b{name}{name}\n {name}C" for name in names)]


def probe_ids(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of the texts with special tokens around them, and without."""
    texts = list(texts)
    with_specials = tokenizer(texts, add_special_tokens=True)["input_ids"]
    return with_specials, tokenizer(texts, add_special_tokens=False)["input_ids"]


def around(whole: list[list[int]], content: list[list[int]]) -> tuple[list[int], list[int]]:
    """The ids before and after the content, which must be the same for every text."""
    pairs = list(zip(whole, content, strict=True))
    longest, inside = max(pairs, key=lambda pair: len(pair[1]))
    for start in range(len(longest) - len(inside) + 1):
        prefix, suffix = longest[:start], longest[start + len(inside) :]
        if all(w == prefix + c + suffix for w, c in pairs):
            return prefix, suffix
    raise UserError(
        "its post-processor does more than to put the same special tokens around each "
        "document, which caches can't be cut by; give one with TemplateProcessing"
    )
