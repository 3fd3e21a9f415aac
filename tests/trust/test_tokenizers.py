"""Tokenizers that nobody published: ids and masks are those of AutoTokenizer, or it is refused."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path

import pyarrow as pa
from conftest import make_texts
from test_exactness import materialize, recipe_for, shard, write_rows
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
from transformers import AutoTokenizer

from tokencache.errors import UserError

NORMALIZERS = (
    None,
    normalizers.NFC(),
    normalizers.NFKC(),
    normalizers.Lowercase(),
    normalizers.Strip(),
    normalizers.Nmt(),
    normalizers.BertNormalizer(),
    normalizers.Replace(" ", "▁"),
    normalizers.Replace(Regex(r"\s+"), " "),
    normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("a", "")]),
)
SPLITS = (
    None,
    pre_tokenizers.Whitespace(),
    pre_tokenizers.WhitespaceSplit(),
    pre_tokenizers.BertPreTokenizer(),
    pre_tokenizers.Digits(individual_digits=True),
    pre_tokenizers.Punctuation(),
    pre_tokenizers.ByteLevel(add_prefix_space=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    *(
        pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
        for scheme in ("always", "never", "first")
        for split in (True, False)
    ),
    pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s+(?!\S)"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]),
)  # fmt: skip
ADDED = (
    "<x>",
    "the",
    " and",
    "a ",
    "▁of",
    "is",
    "naïve",
    "ab cd",
    "<|im_end|>",
    "日本",
    "3",
    "\n",
    "  ",
)


def generated(draw: random.Random, folder: Path, texts: list[str]) -> str:
    """Save a tokenizer of any parts; what it is of."""
    family = draw.choice(["bpe", "byte fallback", "unigram", "unigram ties", "wordpiece", "words"])
    normalizer, split = draw.choice(NORMALIZERS), draw.choice(SPLITS)
    size = draw.choice([200, 400, 900])
    special = ["<unk>", "<s>", "</s>"]
    words = {"vocab_size": size, "special_tokens": special, "show_progress": False}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if family == "bpe":
        made = Tokenizer(models.BPE(unk_token=draw.choice([None, "<unk>"])))
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **words)
    elif family == "byte fallback":
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        words["special_tokens"] = special + [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(**words | {"vocab_size": size + 256})
    elif family.startswith("unigram"):
        made = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **words)
    elif family == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        trainer = trainers.WordPieceTrainer(**words)
    else:
        made = Tokenizer(models.WordLevel(unk_token="<unk>"))
        trainer = trainers.WordLevelTrainer(**words)
    if normalizer is not None:
        made.normalizer = normalizer
    if split is not None:
        made.pre_tokenizer = split
    made.train_from_iterator(texts[:200], trainer)
    if family == "unigram ties":
        saved = json.loads(made.to_str())
        vocabulary = saved["model"]["vocab"]
        # Pieces with equal scores, and sums that are equal but for the last digit.
        saved["model"]["vocab"] = [[p, round(s, draw.choice([0, 1])) / 3] for p, s in vocabulary]
        made = Tokenizer.from_str(json.dumps(saved))
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for content in draw.sample(ADDED, draw.randint(0, 5)):
        token = AddedToken(content, **{flag: draw.random() < 0.4 for flag in flags})
        (made.add_special_tokens if token.special else made.add_tokens)([token])
    if draw.random() < 0.6:
        ids = [(name, made.token_to_id(name)) for name in ("<s>", "</s>")]
        single = draw.choice(["<s> $A", "$A </s>", "<s> $A </s>", "<s> <s> $A </s>"])
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    if isinstance(split, pre_tokenizers.ByteLevel):
        made.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    added = [str(token) for token in made.get_added_tokens_decoder().values()]
    added = [token for token in added if "<0x" not in token]
    return f"{family}, {normalizer}, {split}, {added}"


def test_generated_tokenizers(net, tmp_path):
    texts = make_texts(400, seed=3)
    texts += ["-" * n for n in range(1, 60)] + ["a" * 50 + "the" * n for n in range(20)]
    texts += [f"{a}{added}{b}" for added in ADDED for a in ("", "x", " ") for b in ("", "y", " ")]
    piece = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    for number in range(200 if net.full else 8):
        folder = tmp_path / str(number)
        try:
            what = generated(net.draw, folder, texts)
            reference = AutoTokenizer.from_pretrained(folder)
        except Exception:  # what transformers does not take either is no trial
            continue
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                made = materialize(folder, tmp_path / f"{number}-made")
                out = shard(piece, recipe_for(made), made, tmp_path / f"{number}.arrow")
        except UserError:
            net.tried += 1
            continue
        with pa.ipc.open_file(out) as reader:
            ids = reader.read_all()["input_ids"].to_pylist()
        wanted, nothing = reference(texts)["input_ids"], reference("")["input_ids"]
        # A text without a token of its own is left out.
        wanted = [[] if one == nothing else one for one in wanted]
        ids = [[] if one == nothing else one for one in ids]
        different = [n for n, (a, b) in enumerate(zip(ids, wanted, strict=True)) if a != b]
        first = texts[different[0]] if different else ""
        net.check(not different, f"{number}: {what}: {len(different)} differ, first {first!r}")
