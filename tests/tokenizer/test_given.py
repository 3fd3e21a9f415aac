"""Tokenizers: their files, keys, facts, and the folders they are laid down in."""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from conftest import PUBLISHED, TOYS, make_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Tokenizer

from tokencache.config.references import Reference
from tokencache.errors import UserError
from tokencache.plan.plan import Plan
from tokencache.tokenizer import files as tokenizer_files
from tokencache.tokenizer import given as tokenizers
from tokencache.tokenizer import unigram
from tokencache.tokens import engines


def at(path: Path) -> Reference:
    return Reference(path=str(path))


@pytest.fixture
def copied(tokenizer_folder, tmp_path):
    """A copy of a toy tokenizer's folder, and a function that edits a JSON file in it."""
    folder = tmp_path / "copied"
    shutil.copytree(tokenizer_folder("bos_eos"), folder)

    def edit(name: str, **changes) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return folder, edit


def key_and_parts(folder: Path) -> tuple[str, dict[str, str]]:
    found = tokenizers.describe(at(folder))
    return found.key, found.parts


@pytest.mark.parametrize("name", [*TOYS, PUBLISHED[0], PUBLISHED[3]])
def test_materialized_folder_gives_the_same_ids_everywhere(name, tokenizer_folder, tmp_path):
    source = tokenizer_folder(name)
    found = tokenizers.describe(at(source))
    folder = tmp_path / "made"
    tokenizers.materialize(at(source), folder, found.key)
    files = ["facts.json", "manifest.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(file.name for file in folder.iterdir()) == files
    assert tokenizers.facts(folder) == found.shared
    texts = make_texts(300, seed=3)
    reference = AutoTokenizer.from_pretrained(source)
    wanted = reference(texts)["input_ids"]
    for loader in (AutoTokenizer, PreTrainedTokenizerFast):
        made = loader.from_pretrained(folder)
        assert made(texts)["input_ids"] == wanted
        assert made.padding_side == made.truncation_side == "right"
        assert made.pad_token == found.pad_token
        assert reference.special_tokens_map.items() <= made.special_tokens_map.items()
    assert max(map(max, filter(None, wanted))) < found.vocab_size
    for text, ids in zip(texts, wanted, strict=True):
        bare = reference(text, add_special_tokens=False)["input_ids"]
        assert ids == found.prefix + bare + found.suffix


def test_a_damaged_folder_is_named(tokenizer_folder, tmp_path):
    reference = at(tokenizer_folder("bos_eos"))
    found = tokenizers.describe(reference)
    tokenizers.materialize(reference, tmp_path / "made", found.key)
    for name, change in (
        ("tokenizer.json", lambda data: data[:-1]),
        ("facts.json", lambda data: b"#" + data[1:]),  # of the same length
        ("tokenizer.json", lambda data: data.replace(b'"id":1,', b'"id":2,', 1)),
        ("manifest.json", lambda data: b"{}x"),
    ):
        folder = shutil.copytree(tmp_path / "made", tmp_path / "copy")
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        with pytest.raises(UserError, match=r"is damaged .*verify --repair"):
            tokenizers.facts(folder)
        shutil.rmtree(folder)


def test_facts(tokenizer_folder):
    found = tokenizers.describe(at(tokenizer_folder("bos_eos")))
    assert (found.prefix, found.suffix) == ([0], [1])
    assert found.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert found.pad_token == "</s>"
    assert found.notes == [
        "no pad token: eos '</s>' is used; rows are masked by length, so a real eos stays in "
        "the loss"
    ]
    assert len(found.key) == 32
    assert json.loads(json.dumps(asdict(found))) == asdict(found)
    assert tokenizers.describe(at(tokenizer_folder("wordpiece"))).notes == []


def test_key_is_of_content_alone(copied, tmp_path):
    folder, edit = copied
    before = key_and_parts(folder)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    content = json.loads((moved / "tokenizer.json").read_text())
    text = json.dumps(dict(reversed(content.items())), indent=7)
    (moved / "tokenizer.json").write_text(text)
    assert key_and_parts(moved) == before
    truncation = {
        "direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    edit("tokenizer.json", truncation=truncation)
    edit("tokenizer_config.json", chat_template="{{ messages }}", model_max_length=7)
    assert key_and_parts(folder) == before
    assert tokenizers.describe(at(folder)).chat_template == "{{ messages }}"


def test_templates_with_names(copied):
    folder, edit = copied
    named = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}", "rag": "{{ 3 }}"}
    edit(
        "tokenizer_config.json",
        chat_template=[{"name": name, "template": text} for name, text in named.items()],
    )
    found = tokenizers.describe(at(folder))
    assert (found.chat_template, found.tool_template) == ("{{ 1 }}", "{{ 2 }}")
    assert "of several chat templates these are not used: rag" in found.notes
    tokenizers.materialize(at(folder), folder.parent / "made", found.key)
    saved = tokenizers.facts(folder.parent / "made")
    assert saved.chat_template is None and saved.tool_template is None


def test_key_says_what_changed(copied):
    folder, edit = copied
    key, parts = key_and_parts(folder)
    edit("tokenizer_config.json", pad_token="<s>")
    changed, now = key_and_parts(folder)
    assert changed != key
    assert {name for name in parts if parts[name] != now[name]} == {"special tokens"}
    edit("tokenizer.json", pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True,
                                          "trim_offsets": True, "use_regex": True})  # fmt: skip
    _, last = key_and_parts(folder)
    assert {n for n in parts if now[n] != last[n]} == {"tokenizer.json", "probe ids"}


def test_class_that_builds_other_ids_is_right(copied, tmp_path):
    """AutoTokenizer may build a class that heeds more than tokenizer.json: that is what counts."""
    folder, edit = copied
    edit("tokenizer_config.json", tokenizer_class="GPT2Tokenizer", add_prefix_space=True)
    reference = AutoTokenizer.from_pretrained(folder)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert reference("a b")["input_ids"] != own.encode("a b").ids
    found = tokenizers.describe(at(folder))
    assert any("GPT2Tokenizer" in note for note in found.notes)
    tokenizers.materialize(at(folder), tmp_path / "made", found.key)
    made = AutoTokenizer.from_pretrained(tmp_path / "made")
    texts = make_texts(50, seed=4)
    assert made(texts)["input_ids"] == reference(texts)["input_ids"]


def test_files_of_a_folder_leave_weights_out(copied):
    folder, _ = copied
    for name in ("model.safetensors", "config.json", "chat_template.jinja", "notes.md"):
        (folder / name).write_text("{}")
    found = {file.name for file in tokenizer_files.files_of(at(folder))}
    assert found == {
        "tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja",
    }  # fmt: skip
    assert tokenizer_files.files_of(at(folder / "tokenizer.json")) == [folder / "tokenizer.json"]


def test_changed_since_the_plan(copied, tmp_path):
    folder, _ = copied
    with pytest.raises(UserError, match="changed since the plan was made; run snakemake again"):
        tokenizers.materialize(at(folder), tmp_path / "made", "0" * 32)
    assert not (tmp_path / "made").exists()
    with pytest.raises(UserError, match="run snakemake again"):
        tokenizers.facts(tmp_path / "made")


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        tokenizers.describe(at(folder))
    said = str(error.value)
    assert "\n" not in said
    return said


def test_what_is_no_tokenizer_is_refused(copied, tmp_path):
    folder, edit = copied
    assert "there is no file or folder" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    assert "holds no tokenizer" in refused(tmp_path / "empty")
    content = json.loads((folder / "tokenizer.json").read_text())
    edit("tokenizer.json", model=content["model"] | {"dropout": 0.1})
    assert "dropout" in refused(folder)
    (folder / "tokenizer.json").write_text("{ broken")
    assert "can't be loaded" in refused(folder)


def test_slow_tokenizer_that_cannot_be_converted_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"<unk>": 0, "a</w>": 1, "b</w>": 2}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    config = {"tokenizer_class": "CTRLTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    said = refused(tmp_path)
    assert "slow tokenizer (CTRLTokenizer) that can't be converted" in said
    assert "tokenizer.json" in said


def test_a_sentencepiece_model_is_converted(tmp_path):
    import sentencepiece

    text = tmp_path / "text"
    text.write_text("\n".join(make_texts(300, seed=5)))
    folder = tmp_path / "slow"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=500,
        model_type="bpe", byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    config |= {"unk_token": "<unk>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    found = tokenizers.describe(at(folder))
    assert len(found.prefix) == 1
    out = tmp_path / "made"
    tokenizers.materialize(at(folder), out, found.key)
    given = AutoTokenizer.from_pretrained(str(folder))
    made = AutoTokenizer.from_pretrained(str(out))
    texts = make_texts(200, seed=6)
    assert made(texts)["input_ids"] == given(texts)["input_ids"]


def test_a_vocabulary_file_is_the_same_tokenizer_as_the_json_made_of_it(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##a", "##b", "!"]
    config = json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    slow, fast = tmp_path / "slow", tmp_path / "fast"
    for folder in (slow, fast):
        folder.mkdir()
        (folder / "tokenizer_config.json").write_text(config)
    (slow / "vocab.txt").write_text("\n".join(words) + "\n")
    AutoTokenizer.from_pretrained(str(slow)).backend_tokenizer.save(str(fast / "tokenizer.json"))
    assert tokenizers.describe(at(slow)).key == tokenizers.describe(at(fast)).key


def test_one_file_names_no_special_tokens(copied):
    folder, _ = copied
    found = tokenizers.describe(at(folder / "tokenizer.json"))
    assert found.special_tokens == {}
    assert found.notes == ["neither a pad nor an eos token"]


def test_characters_of_unsettled_kind_go_to_the_reference(tokenizer_folder, tmp_path):
    """Two versions of Unicode split or compose these in two ways."""
    texts = ["\U00032fc7<r", "\u0301\u1abf", "\U000326f5\\n", "a\u0301\u0897", "plain", "", "🙂 é"]
    for name in ("bos_eos", "qwen2.5"):
        source = tokenizer_folder(name)
        folder = tmp_path / name
        tokenizers.materialize(at(source), folder, tokenizers.describe(at(source)).key)
        found = engines.Engines(folder, "gigatoken")
        for chosen in (texts, texts[::-1], texts[4:], texts[:4], []):
            array = pa.array(["sliced off", *chosen], pa.large_string()).slice(1)
            encoded = found.encode(array)
            wanted = found.reference.encode(array)
            assert encoded.offsets.tolist() == wanted.offsets.tolist()
            assert encoded.ids.tolist() == wanted.ids.tolist()


def unigram_vocabulary(seed=0):
    """Pieces of runs of few characters, whose scores tie on many texts but for their last bits."""
    draw = random.Random(seed)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.5)]
    for character in "-=_.ae":
        score = -draw.uniform(3, 9)
        # n characters cost about n times as much as one, whichever pieces they are cut into.
        pieces += [
            (character * n, score * n * (1 + draw.choice((0, 0, 2e-16)))) for n in range(1, 9)
        ]
    return pieces


RUNS = [c * n + s + c * m for c in "-=_.ae" for n in range(1, 41) for m, s in ((0, ""), (n, " "))]


@pytest.mark.parametrize("kind", ["T5Tokenizer", "PreTrainedTokenizerFast"])
def test_a_unigram_model_breaks_ties_as_auto_tokenizer_does(kind, tmp_path):
    """T5's class builds the model from Python's floats, the other takes what tokenizers reads."""
    source = tmp_path / "source"
    T5Tokenizer(vocab=unigram_vocabulary(), extra_ids=3).save_pretrained(source)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = kind
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    reference = AutoTokenizer.from_pretrained(source)
    key = tokenizers.describe(at(source)).key
    tokenizers.materialize(at(source), tmp_path / "made", key)
    wanted = reference(RUNS, add_special_tokens=False)["input_ids"]
    made = json.loads((tmp_path / "made/tokenizer_config.json").read_text())
    assert made["tokenizer_class"] == kind
    again = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert again(RUNS, add_special_tokens=False)["input_ids"] == wanted
    opened = tokenizers.opened(tmp_path / "made")
    assert [e.ids for e in opened.encode_batch(RUNS, add_special_tokens=False)] == wanted
    found = engines.Engines(tmp_path / "made").encode(pa.array(RUNS, pa.large_string()))
    assert found.ids.tolist() == [number for ids in wanted for number in ids]


def test_a_unigram_class_of_the_user_s_own_needs_no_code_once_it_is_saved(tmp_path):
    source = tmp_path / "source"
    T5Tokenizer(vocab=unigram_vocabulary(), extra_ids=3).save_pretrained(source)
    (source / "tokenization_x.py").write_text(
        "from transformers import T5Tokenizer\n\n\nclass XTokenizer(T5Tokenizer):\n"
        "    def __init__(self, *given, **more):\n        super().__init__(*given, **more)\n"
    )
    config = json.loads((source / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "XTokenizer",
               "auto_map": {"AutoTokenizer": [None, "tokenization_x.XTokenizer"]}}  # fmt: skip
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    key = tokenizers.describe(at(source), trust_remote_code=True).key
    tokenizers.materialize(at(source), tmp_path / "made", key, trust_remote_code=True)
    reference = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
    made = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert made(RUNS)["input_ids"] == reference(RUNS)["input_ids"]


@settings(max_examples=200, deadline=None)
@given(st.floats(-200, -1e-9))
def test_scores_that_tokenizers_has_read_are_written_so_that_it_reads_them_again(score):
    def read(text):
        return json.loads(Tokenizer.from_str(text).to_str())["model"]["vocab"][1][1]

    model = models.Unigram([("<unk>", 0.0), ("a", score)], 0, False)
    once = Tokenizer.from_str(Tokenizer(model).to_str())
    held = json.loads(once.to_str())["model"]["vocab"][1][1]
    assert read(unigram.to_json(once)) == held


def test_settings_that_change_no_id_are_each_model_s_own(copied, tmp_path):
    folder, edit = copied
    plain = tokenizers.describe(at(folder))
    edit("tokenizer_config.json", model_max_length=7, clean_up_tokenization_spaces=True)
    other = tokenizers.describe(at(folder))
    assert other.key == plain.key and other.shared == plain.shared
    assert other.settings == {
        "model_max_length": 7,
        "clean_up_tokenization_spaces": True,
        "truncation_side": "right",
    }
    tokenizers.materialize(at(folder), tmp_path / "made", other.key)
    shared = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert shared.model_max_length > 10**9 and not shared.clean_up_tokenization_spaces


def test_saved_files_are_compared_on_documents_too(tokenizer_folder, tmp_path, monkeypatch):
    reference = at(tokenizer_folder("bos_eos"))
    key = tokenizers.describe(reference).key
    text = "a text of the data"
    real = tokenizers.probe_ids

    def other_after_saving(tokenizer, texts):
        ids = real(tokenizer, texts)
        if tokenizer.name_or_path.endswith("made") and text in texts:
            ids[0][texts.index(text)].append(5)
        return ids

    monkeypatch.setattr(tokenizers, "probe_ids", other_after_saving)
    tokenizers.materialize(reference, tmp_path / "a/made", key)
    with pytest.raises(UserError, match=r"gives other ids after it is saved.*a text of the data"):
        tokenizers.materialize(reference, tmp_path / "b/made", key, texts=[text])
    assert not (tmp_path / "b/made").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([{"content": "zq", "single_word": True}], "ignores single_word, which .* 'zq'"),
        ([{"content": "zq", "rstrip": True}, {"content": " zw"}], "'zq' takes the space after it"),
        ([{"content": f"z{n}q", "single_word": n == 799} for n in range(800)], "'z799q'"),
    ],
)
def test_added_tokens_that_gigatoken_reads_otherwise_go_to_the_next_engine(
    changes, reason, tokenizer_folder, tmp_path
):
    folder = shutil.copytree(tokenizer_folder("bos_eos"), tmp_path / "t")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens([AddedToken(**change) for change in changes])
    backend.save(str(folder / "tokenizer.json"))
    made = tmp_path / "made"
    tokenizers.materialize(at(folder), made, tokenizers.describe(at(folder)).key)
    chosen = engines.Engines(made)
    assert chosen.current.name == "tokenizers" and re.search(reason, chosen.why)
    with pytest.raises(UserError, match=reason):
        engines.Engines(made, "gigatoken")


def test_every_added_token_is_probed_by_an_engine(tokenizer_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(tokenizer_folder("bos_eos"), tmp_path / "t")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens([f"z{n}q" for n in range(800)])
    backend.save(str(folder / "tokenizer.json"))
    made = tmp_path / "made"
    tokenizers.materialize(at(folder), made, tokenizers.describe(at(folder)).key)
    last, real = backend.token_to_id("z799q"), engines.Gigatoken.encode

    def without_the_last(self, texts):
        found = real(self, texts)
        return engines.Encoded(np.where(found.ids == last, 0, found.ids), found.offsets)

    monkeypatch.setattr(engines.Gigatoken, "encode", without_the_last)
    assert "z799q" in engines.Engines(made).why


def test_a_file_that_tokenizers_cannot_read_alone_is_what_auto_tokenizer_makes_of_it(tmp_path):
    folder = tmp_path / "t"
    words = [*"abcdefghij", "</s>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({w: n for n, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    added = [{"id": 10, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True}]  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": added}))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>", "unk_token": "</s>",
              "bos_token": "</s>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        reference = AutoTokenizer.from_pretrained(folder)
    except Exception:
        with pytest.raises(UserError, match="can't be loaded"):
            tokenizers.describe(at(folder))
        return
    found = tokenizers.describe(at(folder))
    tokenizers.materialize(at(folder), tmp_path / "made", found.key)
    made = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert made("abc</s>")["input_ids"] == reference("abc</s>")["input_ids"]


@pytest.mark.parametrize("file", ["tokenizer.json", "added_tokens.json", "tokenizer_config.json"])
def test_ids_that_would_end_the_process_are_refused(file, copied):
    folder, edit = copied
    huge = 3_000_000_000
    token = {"content": "zq", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}  # fmt: skip
    if file == "tokenizer.json":
        edit(file, added_tokens=[{"id": huge, **token}])
    elif file == "added_tokens.json":
        (folder / file).write_text(json.dumps({"zq": huge}))
    else:
        edit(file, added_tokens_decoder={str(huge): token})
    with pytest.raises(UserError, match=rf"{file}: the token 'zq' has the id 3,000,000,000"):
        tokenizers.describe(at(folder))


def test_a_pattern_over_the_engine_s_limit_is_one_message(copied, capfd):
    folder, edit = copied
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$|x"}, "behavior": "Isolated",
             "invert": False}  # fmt: skip
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
              "use_regex": False}  # fmt: skip
    edit("tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [split, bytes_]})
    with pytest.raises(UserError, match=r"can't encode the texts .* retry-limit-in-match"):
        tokenizers.describe(at(folder))


def test_saved_files_are_compared_on_shards_from_all_of_the_data():
    batches = {
        str(n): {"tokenizer": "mine" if n % 2 else "other", "tokens": [f"{n}a", f"{n}b"]}
        for n in range(40)
    }
    plan = SimpleNamespace(batches=batches)
    assert Plan.compared_tokens(plan, "mine") == ["1a", "11a", "21a", "31a"]
    assert Plan.compared_tokens(plan, "none") == []
