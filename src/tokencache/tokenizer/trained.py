"""Training a tokenizer: the same texts in the same order give the same bytes.

BPE is byte-level with Llama 3's split into words; WordPiece is BERT's; Unigram is
SentencePiece's, with byte fallback. Special tokens come first in the vocabulary, so
that their ids are known before there is any text. Every document begins with the bos
token where one is configured, and ends with the eos token: what is packed needs ends.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from ..base.hashing import key_of
from ..base.progress import Progress
from ..base.publish import published
from ..documents import templates
from ..errors import UserError
from . import given as tokenizers
from . import trainer_progress

# Raise when the same settings and texts train to a tokenizer of other bytes.
TRAINER_VERSION = 1

LABEL = "train tokenizer"

# What splits text into words before BPE: Llama 3's pattern.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Pieces cross no line, and no word is so long that the likelihood of its pieces underflows.
UNIGRAM_LINES = r"\n+|[^\n]{1,200}"

BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
# The text "<0x0A>" is never best made of the piece of byte 10, for the pieces that spell it
# are better and always there.
BYTE_SCORE = -1000.0
BYTE_SPELLING = list("<0x123456789ABCDEF>")

# The trainer sums probabilities in an order that differs from run to run: the scores differ
# from about the twelfth digit on, and are cut here well before.
SCORE_DIGITS = 4
SCORE_STEP = 0.0001  # between the scores that the trainer gives to characters that are no piece

LONGEST_WORD = 100  # characters; WordPiece makes one unknown token of a longer one
DOCUMENTS_AT_ONCE = 1000
ROLES = ("pad_token", "eos_token", "bos_token", "unk_token")


def planned_facts(settings: dict[str, Any]) -> dict[str, Any]:
    """What is known of a tokenizer before its training, as tokenizers.Facts' fields.

    `settings` are those of config.TokenizerTraining. The key is "" and the vocabulary
    size the configured one; the trained one may be smaller. Raises UserError for
    settings that no text could make right.
    """
    tokens = _special_tokens(settings)
    ids = {token: number for number, token in enumerate(tokens)}
    roles = _roles(settings)
    smallest = len(tokens) + (0 if settings["algorithm"] == "wordpiece" else 256)
    if settings["vocab_size"] < smallest:
        raise _too_small(settings, f"{smallest:,}: 256 bytes and {len(tokens)} special tokens")
    for role in ("bos_token", "eos_token"):
        if role in roles and re.search(r"[\s:]|^\$", roles[role]):
            raise UserError(
                f"{role}: {roles[role]!r} has a space or ':' in it or begins with '$', "
                "which the tokenizers library can't put at a document's edge; take another"
            )
    return {
        "key": "",
        "vocab_size": settings["vocab_size"],
        "prefix": [ids[roles["bos_token"]]] if "bos_token" in roles else [],
        "suffix": [ids[roles["eos_token"]]],
        "bos_token": roles.get("bos_token"),
        "eos_token": roles["eos_token"],
        "pad_token": roles["pad_token"],
        "special_tokens": roles,
        "chat_template": templates.template_text(settings["chat_template"]),
        "tool_template": None,
        "notes": [],
        "parts": {name: key_of(part) for name, part in made_of(settings).items()},
        "settings": {},
    }


def made_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What decides a trained tokenizer's bytes, besides its texts and their order."""
    return {
        "trainer": TRAINER_VERSION,
        "tokenizers": version("tokenizers"),
        "settings": _decisive(settings),
    }


def _decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without names of data sets and of files, and without what has no effect."""
    names = ["algorithm", "vocab_size", "lowercase"]
    if settings["algorithm"] != "unigram":  # which keeps what makes the texts likely
        names.append("min_frequency")
    return {name: settings[name] for name in names} | {
        "roles": _roles(settings),
        "special_tokens": _special_tokens(settings),
    }


def _roles(settings: dict[str, Any]) -> dict[str, str]:
    """The tokens by role, as transformers' special_tokens_map."""
    unknown = {"wordpiece": "[UNK]", "unigram": "<unk>"}.get(settings["algorithm"])
    given = {role: settings[role] for role in ROLES}
    given["unk_token"] = given["unk_token"] or unknown
    return {role: token for role, token in given.items() if token}


def _special_tokens(settings: dict[str, Any]) -> list[str]:
    """Every special token once: its place is its id."""
    tokens = [*_roles(settings).values(), *settings["special_tokens"]]
    if not all(tokens) or not settings["eos_token"] or not settings["pad_token"]:
        raise UserError("special_tokens: one is empty; write its text, or leave it out")
    return list(dict.fromkeys(tokens))


def _too_small(settings: dict[str, Any], needed: str) -> UserError:
    return UserError(
        f"vocab_size: {settings['vocab_size']:,} is too small for "
        f"{settings['algorithm']}; give at least {needed}"
    )


def train_tokenizer(
    settings: dict[str, Any],
    texts: Iterator[pa.LargeStringArray],
    total_bytes: int,
    folder: Path,
    key: str,
) -> None:
    """Train on the texts in their order and publish the tokenizer as `folder`.

    `total_bytes` (of the sources, about those of the texts) is for the progress line.
    Raises UserError where there is no text, or more characters than `vocab_size`.
    """
    planned = planned_facts(settings)
    with trainer_progress.shown(LABEL) as stream:
        parts = _without(_read(texts, total_bytes, stream), _special_tokens(settings))
        wordpiece = partial(_wordpiece, stream=stream)
        model = {"bpe": _bpe, "wordpiece": wordpiece, "unigram": _unigram}[settings["algorithm"]]
        tokenizer = _pipeline(settings, model(settings, parts))
    _finish(tokenizer, settings)
    # As it is read from its file: a score may lose its last bit there, see unigram.
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    facts = tokenizers.Facts(**planned | {"key": key, "vocab_size": tokenizer.get_vocab_size()})
    if facts.vocab_size < settings["vocab_size"]:
        facts.notes.append(
            f"the vocabulary has {facts.vocab_size:,} tokens of the {settings['vocab_size']:,} "
            "of vocab_size: the texts hold no more"
        )
    with published(folder, folder=True) as temporary:
        tokenizers.save(_for_transformers(tokenizer, settings, facts), temporary, facts)


def _read(
    texts: Iterator[pa.LargeStringArray], total_bytes: int, stream: TextIO
) -> Iterator[pa.LargeStringArray]:
    """The texts with progress. Raises UserError at their end where they hold nothing."""
    found = False
    with Progress(total_bytes, "bytes", f"{LABEL}: read", stream) as progress:
        for batch in texts:
            found = found or bool(pc.any(pc.match_substring_regex(batch, r"\S")).as_py())
            yield batch
            progress.update(pc.sum(pc.binary_length(batch)).as_py() or 0, documents=len(batch))
        progress.total = progress.done  # the sources' quotes and names were no text
    if not found:
        raise UserError("dataset: there is no text to train a tokenizer on")


def _without(
    texts: Iterator[pa.LargeStringArray], tokens: list[str]
) -> Iterator[pa.LargeStringArray]:
    """The texts cut at special tokens: those are never made of other tokens."""
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    for batch in texts:
        yield pc.list_flatten(pc.split_pattern_regex(batch, pattern))


def _lists(texts: Iterator[pa.LargeStringArray]) -> Iterator[list[str]]:
    for batch in texts:
        for start in range(0, len(batch), DOCUMENTS_AT_ONCE):
            yield batch.slice(start, DOCUMENTS_AT_ONCE).to_pylist()


def _pipeline(settings: dict[str, Any], model: Any) -> Tokenizer:
    """A tokenizer of that model with all that stands before and after it."""
    tokenizer = Tokenizer(model)
    lowercase = settings["lowercase"]
    if settings["algorithm"] == "wordpiece":
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    if settings["algorithm"] == "bpe":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="first"),
            pre_tokenizers.Split(Regex(UNIGRAM_LINES), "isolated"),
        ]
    )
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*spaces, decoders.Strip(" ", 1, 0)])
    return tokenizer


def _bpe(settings: dict[str, Any], texts: Iterator[pa.LargeStringArray]) -> models.BPE:
    trainer = trainers.BpeTrainer(
        vocab_size=settings["vocab_size"],
        min_frequency=settings["min_frequency"],
        special_tokens=_special_tokens(settings),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer = _pipeline(settings, models.BPE())
    tokenizer.train_from_iterator(_lists(texts), trainer)
    return tokenizer.model


def _wordpiece(
    settings: dict[str, Any], texts: Iterator[pa.LargeStringArray], stream: TextIO
) -> models.WordPiece:
    """WordPiece, trained on words counted here.

    The trainer gives ids to the characters inside words in the order of a hash table,
    another one in each process, and ids break ties. So they go in as special tokens, in
    order, for which the words must be known.
    """
    unknown, special = _roles(settings)["unk_token"], _special_tokens(settings)
    words = _words(_pipeline(settings, models.WordPiece(unk_token=unknown)), texts, stream)
    inside = [f"##{char}" for char in sorted({char for word in words for char in word[1:]})]
    alphabet = {char for word in words for char in word}
    smallest = len(special) + len(alphabet) + len(inside)
    if settings["vocab_size"] < smallest:
        raise _too_small(
            settings,
            f"{smallest:,}: the texts hold {len(alphabet):,} characters, {len(inside):,} of them "
            f"inside words, and there are {len(special)} special tokens",
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings["vocab_size"],
        min_frequency=settings["min_frequency"],
        special_tokens=special + inside,
    )
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(_repeated(words), trainer)
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"]
    return models.WordPiece(vocab, unk_token=unknown, max_input_chars_per_word=LONGEST_WORD)


def _words(
    tokenizer: Tokenizer, texts: Iterator[pa.LargeStringArray], stream: TextIO
) -> dict[str, int]:
    """How often each word is in the texts, words in order.

    Arrow counts what stands between spaces, so only what is new is cut up in Python.
    """
    counts: Counter[str] = Counter()
    for batch in texts:
        found = pc.value_counts(pc.list_flatten(pc.utf8_split_whitespace(batch)))
        counts.update(dict(zip(*(field.to_pylist() for field in found.flatten()), strict=True)))
    words: Counter[str] = Counter()
    with Progress(len(counts), "words", f"{LABEL}: count words", stream) as progress:
        for text, count in counts.items():
            normalized = tokenizer.normalizer.normalize_str(text)
            for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized):
                if len(word) <= LONGEST_WORD:
                    words[word] += count
            progress.update(1)
    return dict(sorted(words.items()))


def _repeated(words: dict[str, int]) -> Iterator[list[str]]:
    for word, count in words.items():
        whole, rest = divmod(count, DOCUMENTS_AT_ONCE)
        for _ in range(whole):
            yield [f"{word} " * DOCUMENTS_AT_ONCE]
        yield [f"{word} " * rest]


def _unigram(settings: dict[str, Any], texts: Iterator[pa.LargeStringArray]) -> models.Unigram:
    special = _special_tokens(settings)
    trainer = trainers.UnigramTrainer(
        vocab_size=settings["vocab_size"],
        special_tokens=special + BYTE_PIECES,
        unk_token=_roles(settings)["unk_token"],
        initial_alphabet=BYTE_SPELLING,
    )
    tokenizer = _pipeline(settings, models.Unigram())
    try:
        tokenizer.train_from_iterator(_lists(texts), trainer)
    except Exception as error:
        if "not large enough" in str(error):
            raise _too_small(settings, "as many as the texts have characters, and 300") from None
        raise
    found = json.loads(tokenizer.to_str())["model"]["vocab"]
    taken = len(special) + len(BYTE_PIECES)
    pieces = _in_order([(p, s) for p, s in found[taken:] if p not in special])
    if taken + len(pieces) > settings["vocab_size"]:
        raise _too_small(
            settings,
            f"{taken + len(pieces):,}: the texts hold {len(pieces):,} characters, and there are "
            f"256 bytes and {len(special)} special tokens",
        )
    vocab = [(t, 0.0) for t in special] + [(t, BYTE_SCORE) for t in BYTE_PIECES] + pieces
    unknown = special.index(_roles(settings)["unk_token"])
    return models.Unigram(vocab, unk_id=unknown, byte_fallback=True)


def _in_order(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The trained pieces with what chance decided taken out of their scores and order.

    Characters that are no piece of their own get scores a step apart from the lowest
    on, in the order of a hash table: here they get the same ones in their own order.
    """
    scores = dict(pieces)
    lowest = sorted((score, piece) for piece, score in pieces if len(piece) == 1)
    stepped: list[tuple[float, str]] = []
    for score, piece in lowest:
        steps = (score - lowest[0][0]) / SCORE_STEP
        if steps > len(stepped) + 0.5 or abs(steps - round(steps)) > 0.001:
            break
        stepped.append((score, piece))
    for (score, _), piece in zip(stepped, sorted(piece for _, piece in stepped), strict=True):
        scores[piece] = score
    rounded = [(piece, round(score, SCORE_DIGITS)) for piece, score in scores.items()]
    return sorted(rounded, key=lambda pair: (-pair[1], pair[0]))


def _finish(tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    """Special tokens and what is put at the edges of a document."""
    special, roles = _special_tokens(settings), _roles(settings)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    edges = {role: roles[role] for role in ("bos_token", "eos_token") if role in roles}
    bos, eos = edges.get("bos_token"), edges["eos_token"]
    single = [*([bos] if bos else []), "$A", eos]
    second = [*([f"{bos}:1"] if bos else []), "$B:1", f"{eos}:1"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *second],
        special_tokens=[(token, special.index(token)) for token in dict.fromkeys(edges.values())],
    )
    for number, token in enumerate(special):
        if tokenizer.token_to_id(token) != number:
            raise RuntimeError(f"{token!r} got the id {tokenizer.token_to_id(token)}, not {number}")


def _for_transformers(tokenizer: Tokenizer, settings: dict[str, Any], facts: Any) -> Any:
    from transformers import PreTrainedTokenizerFast  # takes a second to import

    roles = _roles(settings)
    others = [t for t in _special_tokens(settings) if t not in roles.values()]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **roles,
        **({"additional_special_tokens": others} if others else {}),
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    if (empty := wrapped("")["input_ids"]) != facts.prefix + facts.suffix:
        raise RuntimeError(f"an empty document is {empty}, not {facts.prefix} and {facts.suffix}")
    return wrapped
