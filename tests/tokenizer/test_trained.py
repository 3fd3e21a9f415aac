import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import tokenizers as huggingface

from tokencache.config.schema import TokenizerTraining
from tokencache.errors import UserError
from tokencache.tokenizer import trained as train_tokenizer
from tokencache.tokenizer import trainer_progress

ALGORITHMS = ["bpe", "wordpiece", "unigram"]
SAMPLES = [
    "",
    "Hello, world! It's 12345 o'clock.",
    "two\n\nlines\tand  spaces ",
    "été Ωmega 日本語 🙂 никогда <0x0A>",
    "a <|im_start|>special<|endoftext|> token inside [UNK] <unk>",
]


def settings(**changes):
    given = {"dataset": ["docs"], "vocab_size": 1000, "bos_token": "<s>"}
    return TokenizerTraining.model_validate(given | changes).model_dump()


def corpus(count=60):
    words = [f"{a}{b}" for a in ("re", "un", "co", "in") for b in ("turn", "do", "verse", "fold")]
    for number in range(count):
        rotated = words[number % 16 :] + words[: number % 7]
        yield (f"Row {number}: " + " ".join(rotated) + f".\nÉté <|im_start|> 日本 {number * 7919}")


def batches(texts):
    texts = list(texts)
    for start in range(0, len(texts), 16):
        yield pa.array(texts[start : start + 16], pa.large_string())


def trained(folder, texts=None, **changes):
    texts = list(corpus()) if texts is None else texts
    made = settings(**changes)
    total = sum(len(text.encode()) for text in texts)
    train_tokenizer.train_tokenizer(made, batches(texts), total, folder, "key")
    return made


@pytest.fixture(scope="module", params=ALGORITHMS)
def result(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "tokenizer"
    made = trained(folder, algorithm=request.param, special_tokens=["<|im_start|>"])
    return made, folder


def test_what_was_planned_holds(result):
    made, folder = result
    planned = train_tokenizer.planned_facts(made)
    facts = json.loads((folder / "facts.json").read_text())
    backend = huggingface.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert backend.encode("").ids == planned["prefix"] + planned["suffix"] == [2, 1]
    assert facts["vocab_size"] == backend.get_vocab_size() <= planned["vocab_size"]
    assert facts["key"] == "key"
    same = set(planned) - {"key", "vocab_size", "notes"}
    assert {name: facts[name] for name in same} == {name: planned[name] for name in same}
    said = facts["vocab_size"] < planned["vocab_size"]
    assert any("vocab_size" in note for note in facts["notes"]) == said


def test_transformers_gives_the_same_ids(result):
    from transformers import AutoTokenizer

    _, folder = result
    loaded = AutoTokenizer.from_pretrained(str(folder))
    backend = huggingface.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in SAMPLES:
        assert loaded(text)["input_ids"] == backend.encode(text).ids
    assert loaded.pad_token == "<|pad|>"
    assert loaded.padding_side == "right"


def test_texts_come_back_whole_from_bpe_and_unigram(result):
    made, folder = result
    if made["algorithm"] == "wordpiece":
        pytest.skip("WordPiece loses spaces by its nature")
    backend = huggingface.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in SAMPLES[:4]:
        assert backend.decode(backend.encode(text).ids) == text


def test_special_tokens_in_texts_are_one_token_and_none_is_made_of_them(result):
    _, folder = result
    backend = huggingface.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = backend.encode("x <|im_start|> y", add_special_tokens=False).ids
    assert backend.token_to_id("<|im_start|>") in ids
    assert [token for token in backend.get_vocab() if "im_start" in token] == ["<|im_start|>"]


TWICE = """
import argparse, json.decoder, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import test_trained as here
texts = [Path(m.__file__).read_text() for m in (argparse, json.decoder)]
for algorithm in here.ALGORITHMS:
    made = dict(algorithm=algorithm, lowercase=True, vocab_size=1500)
    here.trained(Path(sys.argv[1], algorithm), [*here.corpus(), *texts], **made)
"""


def test_the_same_bytes_in_each_process_with_any_number_of_threads(tmp_path):
    paths = [str(Path(__file__).parent), str(Path(train_tokenizer.__file__).parents[1])]
    running = []
    for threads in ("1", "2"):
        folder = tmp_path / f"{len(running)}"
        environment = os.environ | {"RAYON_NUM_THREADS": threads}
        command = [sys.executable, "-c", TWICE.format(paths=paths), str(folder)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    for process in running:
        assert process.wait(120) == 0, process.stderr.read().decode()
        process.stderr.close()
    for algorithm in ALGORITHMS:
        for name in ("tokenizer.json", "tokenizer_config.json", "facts.json"):
            made = {(tmp_path / f"{n}" / algorithm / name).read_bytes() for n in range(2)}
            assert len(made) == 1, (algorithm, name)


@pytest.mark.parametrize("terminal", ["xterm-256color", "dumb", None])
def test_progress_of_reading_and_of_the_stages_is_said(tmp_path, capfd, monkeypatch, terminal):
    if terminal is None:
        monkeypatch.delenv("TERM", raising=False)
    else:
        monkeypatch.setenv("TERM", terminal)
    trained(tmp_path / "t", vocab_size=400)
    said = capfd.readouterr()
    stages_said = [line.split(": ")[1] for line in said.err.splitlines()]
    assert stages_said == ["read", "tokenize words", "count pairs", "compute merges"]
    assert said.err.count("100.0 %") == 4
    assert said.out == ""


def test_training_goes_on_without_a_pty(tmp_path, capfd, monkeypatch):
    import pty

    def broken():
        raise OSError("out of pty devices")

    monkeypatch.setattr(pty, "openpty", broken)
    trained(tmp_path / "t", vocab_size=400)
    assert (tmp_path / "t" / "tokenizer.json").is_file()
    assert "train tokenizer: read" in capfd.readouterr().err


def test_what_is_no_bar_is_passed_on(capfd):
    with trainer_progress.shown("x"):
        os.write(1, b"from stdout\n")
        os.write(2, b"a warning\nand no end")
    said = capfd.readouterr()
    assert said.err == "from stdout\na warning\nand no end\n"
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_bars_are_read():
    log = io.StringIO()
    bars = trainer_progress.Bars("train tokenizer", log)
    for line in (
        "[00:00:00] Pre-processing sequences       ███ 12       /        0",
        "[00:00:00] Tokenize words                 ███ 500      /      500",
        "[00:00:00] Compute merges                 ███ 500      /      500",
        "[00:00:00] Compute merges                 ███ 500      /     8000",
        "\x1b[2K[00:00:01] Compute merges                 █░░ 300      /     8000",
        "[00:00:02] Compute merges                 ███ 7900     /     7900",
    ):
        bars.line(line)
    bars.close()
    words, merges = log.getvalue().splitlines()
    assert words.startswith("train tokenizer: tokenize words: 500/500 words 100.0 %")
    assert merges.startswith("train tokenizer: compute merges: 7,900/7,900 merges 100.0 %")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("texts", [[], [""], [" \n", "\t"]])
def test_no_text_is_the_users_to_mend(tmp_path, algorithm, texts):
    with pytest.raises(UserError, match="dataset: there is no text"):
        trained(tmp_path / "t", texts, algorithm=algorithm)
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_that_holds_no_characters_is_too_small(tmp_path):
    for algorithm in ("bpe", "unigram"):
        with pytest.raises(UserError, match=r"vocab_size: 100 is too small for .* at least 2[56]"):
            train_tokenizer.planned_facts(settings(algorithm=algorithm, vocab_size=100))
    few, many = (" ".join(f"a{chr(code)}" for code in range(0x400, end)) for end in (0x500, 0x600))
    for algorithm, text in (("wordpiece", few), ("unigram", few), ("unigram", many)):
        with pytest.raises(UserError, match="vocab_size: 300 is too small"):
            trained(tmp_path / "t", [text], algorithm=algorithm, vocab_size=300)


def test_an_error_while_reading_comes_through(tmp_path):
    def texts():
        yield pa.array(["some text"], pa.large_string())
        raise UserError("docs.jsonl:2: broken")

    for algorithm in ALGORITHMS:
        made = settings(algorithm=algorithm)
        with pytest.raises(UserError, match=r"docs\.jsonl:2: broken"):
            train_tokenizer.train_tokenizer(made, texts(), 9, tmp_path / "t", "key")


def test_the_chat_template_is_text_or_a_file(tmp_path):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    file = tmp_path / "chat.jinja"
    file.write_text(template)
    by_text, by_file = settings(chat_template=template), settings(chat_template=str(file))
    assert train_tokenizer.planned_facts(by_file)["chat_template"] == template
    # Models choose their template: it is in the recipes and the runs, not in the tokenizer.
    assert train_tokenizer.made_of(by_text) == train_tokenizer.made_of(settings())
    with pytest.raises(UserError, match="chat_template: nowhere"):
        train_tokenizer.planned_facts(settings(chat_template="nowhere.jinja"))


def test_the_key_is_made_of_what_decides_the_bytes():
    plain = train_tokenizer.made_of(settings())
    assert plain == train_tokenizer.made_of(settings(dataset=["renamed"]))
    for change in ({"vocab_size": 999}, {"lowercase": True}, {"special_tokens": ["<a>"]}):
        assert plain != train_tokenizer.made_of(settings(**change))
    swapped = {"eos_token": "<s>", "bos_token": "<|endoftext|>"}
    assert plain != train_tokenizer.made_of(settings(**swapped))


def test_pad_may_be_eos():
    facts = train_tokenizer.planned_facts(
        settings(pad_token="<eos>", eos_token="<eos>", bos_token=None)
    )
    assert (facts["prefix"], facts["suffix"]) == ([], [0])


@pytest.mark.parametrize("changes", [{"eos_token": "a b"}, {"bos_token": "$A"}, {"eos_token": ""}])
def test_special_tokens_that_cannot_be(changes):
    with pytest.raises(UserError, match="token"):
        train_tokenizer.planned_facts(settings(**changes))
