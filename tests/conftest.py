"""What several tests share: texts of many kinds, and small tokenizers of every family."""

from __future__ import annotations

import json
import os
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
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

from tokencache.base import limits

os.environ.setdefault("HF_HUB_OFFLINE", "1")

pytest_plugins = ["trust.counts"]

SHARED = Path(__file__).parents[2] / "shared" / "data"

SPECIALS = (
    "<s>",
    "</s>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "[CLS]",
    "[SEP]",
    "<mask>",
)
TOYS = ("byte_level", "bos_eos", "wordpiece", "unigram", "llama")
PUBLISHED = ("gpt2", "qwen2.5", "mistral-v3-spm", "bert-base-uncased")

WORDS = (
    "the of and to in is that for it was on are as with his they at be this from have or by "
    "don't we'll THEY'RE Größe naïve Ångström İstanbul ẞ cafe\u0301 \ufb01ne Ελληνικά Русский "
    "日本語のテキスト 中文文本，没有空格。 한국어 שלום مرحبا नमस्ते สวัสดีชาวโลก ሰላም "
    "🙂 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f937\U0001f3fd\u200d\u2642\ufe0f 🇩🇪 "
    "0 12 345 6789 3.14159 1,000 ½ ٣٤٥ -> != ::= {} snake_case camelCase ▁meta <0x0A> ##piece "
    "https://a.example/b?c=d#e \\n &amp;"
)
PIECES = (
    *WORDS.split(), "\x00", "\x07\x1b[0m", "\u200b", "\ufeff", "\u2028", "\x85", "\u00a0",
    "\u3000", "\ufffd", "\U0010ffff", "\n", "\r\n", "\n\n\n", "\t", "    ", " " * 30, "a" * 40,
    "=" * 25, "def f(x):\n    return x\n",
)  # fmt: skip


def make_text(draw: random.Random, words: int) -> str:
    """Words of several scripts, marks, whitespace runs and special tokens, in any order."""
    picked = []
    for _ in range(words):
        roll = draw.random()
        piece = draw.choice(SPECIALS) if roll < 0.03 else draw.choice(PIECES)
        picked.append(piece if roll > 0.9 else piece + " ")
    return "".join(picked)


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Documents of 0 to 60 words; some are empty or blank, some are one special token."""
    draw = random.Random(seed)
    fixed = ["", " ", "\n", "\x00", *SPECIALS, *(f" {s} x" for s in SPECIALS)]
    return fixed + [make_text(draw, draw.choice((0, 1, 2, 5, 20, 60))) for _ in range(count)]


def make_tokenizer(name: str, folder: Path) -> Path:
    """Train a small tokenizer of one family into a folder that AutoTokenizer loads."""
    texts = make_texts(150, seed=1)
    tokenizer, trainer = globals()[f"_{name}"]()
    tokenizer.train_from_iterator(texts, trainer)
    special = {"eos_token": "</s>", "bos_token": "<s>"}
    around = {"bos_eos": ("<s>", "</s>"), "llama": ("<s>", None), "wordpiece": ("[CLS]", "[SEP]")}
    if name in around:
        first, last = around[name]
        single = f"{first} $A" + (f" {last}" if last else "")
        ids = [(t, tokenizer.token_to_id(t)) for t in (first, last) if t]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    if name == "wordpiece":
        special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
        special |= {"pad_token": "[PAD]"}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _byte_level() -> tuple:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    mask = AddedToken("<mask>", lstrip=True, special=True)
    specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", mask]
    return tokenizer, trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )


def _bos_eos() -> tuple:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )


def _wordpiece() -> tuple:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    return tokenizer, trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=specials, show_progress=False
    )


def _unigram() -> tuple:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip


def _llama() -> tuple:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return tokenizer, trainers.BpeTrainer(
        vocab_size=700, special_tokens=specials, max_token_length=8, show_progress=False
    )


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one more than there are cores, for the one with the cluster mostly waits."""
    return len(os.sched_getaffinity(0)) + 1


def batches_of(size: int, rows: int = limits.BATCH_ROWS) -> limits.Settings:
    """Settings with so many bytes or rows of documents in hand at once."""
    chosen = limits.choose(limits.here(), {limits.ROWS: rows})
    return replace(chosen, mode=replace(chosen.mode, batch_bytes=size))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """By name, a folder with a published tokenizer (skips where absent) or a trained one."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name in PUBLISHED:
            path = SHARED / "tokenizers" / name
            if not path.is_dir():
                pytest.skip(f"there is no tokenizer {name} beside the checkout")
            return path
        if name not in made:
            made[name] = make_tokenizer(name, tmp_path_factory.mktemp("toys") / name)
        return made[name]

    return folder


@pytest.fixture(scope="module")
def cluster(request):
    """A cluster that runs, and Apptainer on PATH, from the scripts that users have for it."""
    from helpers.slurm_cluster import script

    if os.geteuid() != 0 or 'VERSION_ID="12"' not in Path("/etc/os-release").read_text():
        pytest.skip("SLURM is installed and started by root of a Debian 12")
    # These tests are the longest one after the other: what runs beside them makes room.
    os.setpriority(os.PRIO_PROCESS, 0, -10)
    script("install-apptainer.sh")
    script("install-slurm.sh")
    before = subprocess.run(["sinfo"], capture_output=True).returncode == 0
    script("start.sh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join(["/opt/apptainer/usr/bin", os.environ["PATH"]]))
        # They take minutes, in which tests go on that need none.
        request.getfixturevalue("images_begun")
        yield
    if not before:
        script("stop.sh")


@pytest.fixture(scope="session")
def images_begun(tmp_path_factory):
    from helpers.slurm_cluster import build_images

    return build_images(tmp_path_factory.mktemp("images") / "w")


@pytest.fixture(scope="session")
def images(images_begun):
    """The images of this checkout are there; asked for after `cluster`, which begins with them."""
    from helpers.slurm_cluster import PATIENCE, said

    assert images_begun.process.wait(4 * PATIENCE) == 0, said(images_begun)


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A file that gets the words of each call of sbatch."""
    wrapper = tmp_path / "bin/sbatch"
    wrapper.parent.mkdir()
    log = tmp_path / "calls"
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True).stdout.strip()
    wrapper.write_text(f'#!/bin/sh\necho "$*" | head -n 1 >>{log}\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(wrapper.parent), os.environ["PATH"]]))
    return log


# For tests of training, which import torch: so this file does not.


@pytest.fixture(scope="module")
def one_thread():
    """Threads cost such small models more than they give, and may change the last digits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    from helpers.training import make_tokenizer

    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    from helpers.training import make_cache

    return make_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def operated(tmp_path_factory):
    """A workflow's folder with caches and a run, for the verbs; tests that change it copy it."""
    from helpers.operated import made_in

    return made_in(tmp_path_factory.mktemp("operated") / "w")
