"""Corpora and tokenizers to measure with: the same bytes whenever they are made again.

A corpus is a folder of JSON Lines files, rows of {"id", "text"}, and corpus.json, which
says what is in them. Documents are drawn with replacement from real text, and each copy
is marked, so that no two are equal. Real text is `../shared/data` beside the checkout
where that is there, and Python's standard library where not.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"

MEGABYTES = {"instruct": 75, "code": 150, "multilingual": 50}
# Documents longer than this many tokens are cut; of code that is about one in a hundred.
MAX_LENGTH = {"instruct": 2048, "code": 32768, "multilingual": 2048}
SIZES = {"tiny": 0.004, "small": 0.05, "full": 1.0, "tenfold": 10.0}
TENFOLD = {"tiny": "small", "small": "full", "full": "tenfold"}  # and more, of the small ones
FILES = 4  # of each corpus: some peers work in parallel on files only

SCRIPTS = {  # first and last letter
    "Latin": (0xC0, 0x17E), "Greek": (0x3B1, 0x3C9), "Cyrillic": (0x430, 0x44F),
    "Hebrew": (0x5D0, 0x5EA), "Arabic": (0x627, 0x64A), "Devanagari": (0x915, 0x939),
    "Thai": (0xE01, 0xE2E), "Hangul": (0xAC00, 0xD7A3), "Han": (0x4E00, 0x9FA5),
}  # fmt: skip


def corpus(name: str, size: str, folder: Path) -> Path:
    """Make a corpus below `folder`, unless it is there; returns its folder."""
    target = folder / f"{name}-{size}"
    about = {"name": name, "size": size, "bytes_wanted": int(MEGABYTES[name] * SIZES[size] * 1e6)}
    about["made_from"], documents = _source(name)
    done = target / "corpus.json"
    if done.exists() and about.items() <= json.loads(done.read_text()).items():
        return target
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    about |= {"documents": 0, "bytes": 0}
    rows = _rows(documents, random.Random(name), about["bytes_wanted"])
    with ExitStack() as opened:
        streams = [opened.enter_context(open(file, "wb")) for file in files(target)]
        for row in rows:
            streams[FILES * about["bytes"] // about["bytes_wanted"]].write(row)
            about["documents"] += 1
            about["bytes"] += len(row)
    done.write_text(json.dumps(about))
    return target


def files(folder: Path) -> list[str]:
    return [str(folder / f"{n}.jsonl") for n in range(FILES)]


def _rows(documents: list[str], rng: random.Random, size: int) -> Iterator[bytes]:
    written = number = 0
    while written < size:
        # Without space around it: some peers strip documents.
        text = f"{rng.choice(documents).strip()}\n# {number}"
        row = json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n"
        yield row.encode()
        written += len(row.encode())
        number += 1


def _source(name: str) -> tuple[str, list[str]]:
    """What a corpus is made from, in words, and its documents."""
    if name == "code":
        found = python_sources()
        return f"{len(found)} Python sources of the environment", found
    if name == "instruct":
        return instructions()
    where, found = instructions()
    foreign = [text for text in found if sum(c > "\x7f" for c in text) > len(text) / 5]
    made_up = _made_up(random.Random("scripts"), 4000)
    if not foreign:
        return f"{len(made_up)} made-up texts in {len(SCRIPTS)} scripts", made_up
    both = foreign + made_up
    return f"{where}, those mostly not ASCII; made-up texts in {len(SCRIPTS)} scripts", both


@cache
def instructions() -> tuple[str, list[str]]:
    shared = SHARED / "text" / "instruct.jsonl"
    if shared.exists():
        with open(shared, encoding="utf-8") as stream:
            return "text/instruct.jsonl", [json.loads(line)["text"] for line in stream]
    sys.path.insert(0, str(ROOT / "examples"))
    import stdlib_documents

    qa, _ = stdlib_documents.build(Path(sysconfig.get_path("stdlib")))
    form = "### Instruction:\n{prompt}\n\n### Response:\n{completion}"
    texts = [form.format_map(row) for row in qa]
    return "docstrings of the standard library", texts


@cache
def python_sources() -> list[str]:
    """Python sources of 1 kB to 300 kB, each once, in the order of their names."""
    roots = dict.fromkeys(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    found: dict[str, None] = {}
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root)
            if "site-packages" in inside.parts or not 1000 < path.stat().st_size < 300_000:
                continue
            try:
                found[path.read_text(encoding="utf-8")] = None
            except ValueError:
                continue
    return list(found)


def _made_up(rng: random.Random, count: int) -> list[str]:
    """Words of random letters, the common ones common, each text in one script."""
    vocabularies = [
        ["".join(chr(rng.randint(a, b)) for _ in range(rng.randint(2, 8))) for _ in range(3000)]
        for a, b in SCRIPTS.values()
    ]
    texts = []
    for number in range(count):
        words = vocabularies[number % len(vocabularies)]
        length = rng.randint(20, 300)
        texts.append(" ".join(words[int(3000 * rng.random() ** 3)] for _ in range(length)))
    return texts


def tokenizers(folder: Path) -> dict[str, Path]:
    """Folders of tokenizers by name: the shared ones, or two that are trained here."""
    names = ("gpt2", "qwen2.5", "mistral-v3-spm", "bert-base-uncased")
    shared = {name: SHARED / "tokenizers" / name for name in names}
    found = {name: path for name, path in shared.items() if (path / "tokenizer.json").exists()}
    return found or {kind: _trained(kind, folder / kind) for kind in ("bpe", "wordpiece")}


def _trained(kind: str, folder: Path) -> Path:
    if (folder / "tokenizer.json").exists():
        return folder
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if kind == "bpe":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=16384, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
        )
        end = "<|endoftext|>"
    else:
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=16384, special_tokens=["[UNK]", "[PAD]"])
        end = "[PAD]"
    made.train_from_iterator(instructions()[1] + python_sources()[:300], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": end, "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder
