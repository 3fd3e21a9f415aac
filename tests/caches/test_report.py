"""The data report: its figures are those of slow plain Python, and the page shows them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import pytest
from conftest import make_tokenizer
from helpers.datafiles import fails
from helpers.shards import IGNORED, build, entry, naive_windows, tokens, write_shard
from helpers.workflow import Workflow, rows
from tokenizers import Tokenizer

from tokencache.base.json_files import write_json
from tokencache.caches import dataset, report
from tokencache.caches.report.page import page
from tokencache.caches.report.token_texts import TokenTexts

PAD, UNK, BOS, EOS = range(4)
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "a", "b", "c", "d", "e", "f"]
FACTS = {
    "vocab_size": len(WORDS), "prefix": [BOS], "suffix": [EOS], "bos_token": "<s>",
    "eos_token": "</s>", "pad_token": "<pad>",
}  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer's folder of ten words."""
    folder = tmp_path_factory.mktemp("words")
    added = [{"id": n, "content": WORDS[n], "special": True} for n in range(4)]
    model = {"vocab": {word: n for n, word in enumerate(WORDS)}, "unk_token": "<unk>"}
    content = {"model": model, "added_tokens": added, "pre_tokenizer": None, "decoder": None}
    write_json(folder / "tokenizer.json", content)
    return str(folder)


def look(wanted, splits, folder, targets=None, facts=FACTS, vocabulary=None):
    """The report of a cache that is not written."""
    made_of = tokens(splits, 1, 1, {"tokenizer": facts})
    made_of |= {"tokenizer": folder, "vocabulary": vocabulary}
    if targets:
        made_of["targets"] = tokens(targets)["splits"]
    return dataset.look(wanted, made_of)


def flawed(seed, count=60):
    """Documents of which some have two BOS, no EOS, unknown tokens, nothing trained on, or come
    several times; some are empty."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        roll = draw.random()
        if roll < 0.1:
            made.append(([], []))
        elif roll < 0.25 and made:
            made.append(draw.choice(made))
        else:
            content = [draw.choice([UNK, 4, 5, 6, 7, 8, 9]) for _ in range(draw.randrange(30))]
            begin = [BOS, BOS] if draw.random() < 0.2 else [BOS]
            end = draw.choice([[EOS], [EOS, 4], [5], [EOS]])
            ids = begin + content + end
            share = draw.choice([0, 0.5, 1])
            made.append((ids, [draw.random() < share for _ in ids]))
    return made


def shards(folder, documents, masked):
    return [
        write_shard(folder / f"{n}.arrow", documents[at : at + 25], masked, batch=7)
        for n, at in enumerate(range(0, len(documents), 25))
    ]


@pytest.mark.parametrize(
    ("seed", "overflow", "packing", "masked"),
    [
        (0, "truncate", "none", True),
        (1, "split", "best_fit", True),
        (2, "drop", "best_fit", False),
    ],
)
def test_figures_are_those_of_plain_python(tmp_path, words, seed, overflow, packing, masked):
    documents, others = flawed(seed), flawed(seed + 10, 20)
    others[3:5] = documents[7:9]
    if not masked:
        documents = [(ids, [True] * len(ids)) for ids, _ in documents]
        others = [(ids, [True] * len(ids)) for ids, _ in others]
    splits = {
        "train": shards(tmp_path / "train", documents, masked),
        "validation": shards(tmp_path / "validation", others, masked),
    }
    wanted = entry(16, overflow, packing, "given")
    found = look(wanted, splits, words)

    everything = [ids for ids, _ in documents + others if ids]
    about = found["documents"]["all"]
    lengths = sorted(map(len, everything))
    assert about["documents"] == len(everything)
    assert about["empty"] == len(documents) + len(others) - len(everything)
    assert about["tokens"] == sum(lengths)
    assert about["length"] == {
        "shortest": lengths[0], "longest": lengths[-1],
        "mean": round(sum(lengths) / len(lengths), 1),
        **{name: lengths[-(-len(lengths) * share // 100) - 1]
           for name, share in (("median", 50), ("p90", 90), ("p99", 99))},
    }  # fmt: skip
    for one in about["truncation"]:
        rests = [n - one["max_length"] for n in lengths if n > one["max_length"]]
        assert (one["documents"], one["tokens"]) == (len(rests), sum(rests))
    assert 16 in [one["max_length"] for one in about["truncation"]]
    for start, stop, count in about["histogram"]:
        assert count == sum(start <= n <= stop for n in lengths)
    assert sum(bar[2] for bar in about["histogram"]) == len(lengths)
    assert 16 in [bar[1] for bar in about["histogram"]], "one ends at max_length"

    assert about["double_bos"] == sum(ids[:2] == [BOS, BOS] for ids in everything)
    assert about["missing_eos"] == sum(EOS not in ids[-2:] for ids in everything)
    assert about["unknown_tokens"] == sum(ids.count(UNK) for ids in everything)
    assert about["with_unknown"] == sum(UNK in ids for ids in everything)
    ends = Counter(ids[-1] for ids in everything)
    assert {end["id"]: end["documents"] for end in about["ends"]} == dict(ends.most_common(3))

    copies = Counter(map(tuple, everything))
    kept = {
        name: naive_windows(some, wanted, 1, 1)
        for name, some in (("train", documents), ("validation", others))
    }
    train = {tuple(documents[number][0]) for number, _, _ in kept["train"]}
    leaked = {n for n, _, _ in kept["validation"] if tuple(others[n][0]) in train}
    assert found["duplicates"] == {
        "documents": len(everything) - len(copies), "most": max(copies.values()),
        "validation_in_train": len(leaked),
    }  # fmt: skip
    assert leaked
    for name, split in found["splits"].items():
        masks = [mask for _, _, mask in kept[name]]
        if packing != "none":
            masks = [[False, *mask[1:]] for mask in masks]
        assert split["tokens"] == sum(map(len, masks))
        assert split["tokens_trained"] == sum(map(sum, masks))
        assert split["trained_share"] == round(sum(map(sum, masks)) / sum(map(len, masks)), 6)

    names = {one["name"] for one in found["findings"]}
    expected = {"double_bos", "missing_eos", "unknown_tokens", "duplicates", "validation_in_train"}
    expected |= {"cut"} if overflow != "split" else set()
    assert expected <= names and "pad_is_eos" not in names
    assert ("cut_ends" in names) == (overflow == "truncate")
    cut = sum(len(ids) > 16 for ids, _ in documents) if overflow == "truncate" else 0
    assert found["splits"]["train"]["rows_cut"] == cut
    rows_without = [s["rows_without_trained_tokens"] for s in found["splits"].values()]
    assert ("untrained_rows" in names) == any(rows_without)
    check_whys(found, documents, {number for number, _, _ in kept["train"]}, any(rows_without))


def check_whys(found, documents, kept, some_untrained):
    """The first document with a flaw is shown, unless the rows leave it out."""
    shown = {why: one["document"] for one in found["examples"] for why in one["why"]}
    flaws = {
        "double_bos": lambda ids: ids[:2] == [BOS, BOS],
        "missing_eos": lambda ids: ids and EOS not in ids[-2:],
        "with_unknown": lambda ids: UNK in ids,
    }
    for name, has in flaws.items():
        first = next(n for n, (ids, _) in enumerate(documents) if has(ids))
        assert shown.get(name) == (first if first in kept else None)
    assert ("untrained" in shown) == some_untrained
    drawn = [one for one in found["examples"] if not one["why"]]
    assert 0 < len(drawn) <= 4 and all(one["split"] == "train" for one in drawn)


def test_a_report_says_which_rows_have_lost_the_end_that_is_trained_on(tmp_path, words):
    prompt, answer = [BOS, *[4] * 8], [5, EOS]
    long = (prompt + answer, [False] * 9 + [True] * 2)
    short = ([BOS, 4, *answer], [False, False, True, True])
    paths = {"train": shards(tmp_path, [long] * 12 + [short] * 8, masked=True)}
    found = look(entry(6), paths, words)
    train = found["splits"]["train"]
    assert train["rows_cut"] == train["rows_cut_without_trained_tokens"] == 12
    assert train["tokens_trained"] == 8 * 2
    texts = {one["name"]: (one["level"], one["text"]) for one in found["findings"]}
    assert texts["cut_ends"][0] == "warning"
    assert "12 of 20 rows of train (60.0 %) hold a document that is cut" in texts["cut_ends"][1]
    assert "12 of them because a document is cut" in texts["untrained_rows"][1]
    assert "rows with a cut document" in page(found)
    few = look(entry(6), {"train": shards(tmp_path, [long] + [short] * 40, masked=True)}, words)
    assert "cut_ends" not in [one["name"] for one in few["findings"]]


def test_examples_are_what_the_rows_hold(tmp_path, words):
    documents = flawed(4)
    paths = shards(tmp_path / "tokens", documents, masked=True)
    wanted = entry(16, "split", "best_fit")
    found = look(wanted, {"train": paths}, words)
    made, _ = build(tmp_path / "cache", paths, wanted, 1, 1)
    for one in found["examples"]:
        part, row = one["parts"]["all"], made[one["split"]][one["row"]]
        begin = 0
        for length in row["seq_lengths"]:
            ids = row["input_ids"][begin : begin + length]
            labels = row["labels"][begin : begin + length]
            mask = "".join("0" if label == IGNORED else "1" for label in labels)
            begin += length
            if (ids, mask) == (part["ids"], part["mask"]):
                break
        else:
            raise AssertionError(f"{one} is not in {row}")
        assert part["texts"] == [WORDS[n] for n in ids] and part["trained"] == mask.count("1")
        assert part["special"] == [place for place, n in enumerate(ids) if n < 4]
        assert part["document_tokens"] == len(documents[one["document"]][0])


def test_long_examples_are_cut_in_their_middle(tmp_path, words):
    ids = [BOS, *[4, 5, 6] * 200, EOS]
    paths = shards(tmp_path, [(ids, [True] * len(ids))], masked=False)
    [one] = look(entry(1000), {"train": paths}, words)["examples"]
    part = one["parts"]["all"]
    assert part["ids"] == ids[:200] + ids[-50:] and part["left_out"] == len(ids) - 250
    assert "352 more tokens" in page(look(entry(1000), {"train": paths}, words))


def test_copies_are_found_by_all_of_their_ids(tmp_path, words):
    """Of few kinds of tokens, so that many documents seem equal."""
    draw = random.Random(3)
    documents = [[draw.choice([4, 5]) for _ in range(draw.randrange(12))] for _ in range(1500)]
    paths = shards(tmp_path, [(ids, [True] * len(ids)) for ids in documents], masked=False)
    plain = {"prefix": [], "suffix": []}
    made_of = tokens({"train": paths}, provenance={"tokenizer": FACTS | plain})
    found = dataset.look(entry(64), made_of)["duplicates"]
    copies = Counter(tuple(ids) for ids in documents if ids)
    assert found["documents"] == sum(copies.values()) - len(copies)
    assert found["most"] == max(copies.values())


def test_of_pairs_both_sides_are_looked_at(tmp_path, words):
    def side(name, documents):
        found = [(ids, [True] * len(ids)) for ids in documents]
        return {"train": [write_shard(tmp_path / f"{name}.arrow", found)]}

    sources = [[BOS, 4, 5, EOS], [BOS, 4, 5, EOS], [BOS, 4, 5, EOS], [BOS, BOS, 6, 7, EOS]]
    targets = [[BOS, 8, EOS], [BOS, 8, EOS], [BOS, 9, EOS], [BOS, 8, 9, 9, 9, 4]]
    found = look(entry(5), side("source", sources), words, side("target", targets))
    assert found["duplicates"]["documents"] == 1, "the third has another target"
    assert found["documents"]["source"]["double_bos"] == 1
    assert found["documents"]["target"]["missing_eos"] == 1
    assert found["documents"]["target"]["truncation"][0] == {
        "max_length": 5, "documents": 1, "tokens": 1
    }  # fmt: skip
    parts = found["examples"][0]["parts"]
    assert set(parts["source"]["mask"]) == {"0"} and set(parts["target"]["mask"]) == {"1"}
    assert "Length of targets" in page(found)


def test_what_makes_a_cache_useless_is_refused(tmp_path, words):
    paths = shards(tmp_path, [([BOS, 9, EOS], [True] * 3)], masked=False)
    few = {"size": 9, "where": "models.m.weights", "advice": "take others"}
    fails(
        lambda: look(entry(8), {"train": paths}, words, vocabulary=few),
        "there are ids up to 9, and the model knows those below 9 (models.m.weights); take others",
    )
    # The tokenizer has more tokens than the model, and no document has one of those.
    assert look(entry(8), {"train": paths}, words, vocabulary=few | {"size": 9 + 1})
    assert look(entry(8), {"train": paths}, words, facts=FACTS | {"vocab_size": 99},
                vocabulary=few | {"size": 50})  # fmt: skip
    nothing = [write_shard(tmp_path / "n.arrow", [([BOS, 4, EOS], [False] * 3)], masked=True)]
    some = [write_shard(tmp_path / "s.arrow", [([BOS, 4, EOS], [True] * 3)], masked=True)]
    fails(
        lambda: build(tmp_path / "c", {"train": nothing, "validation": some},
                      entry(8, validation="given")),
        "the loss mask leaves no token to train on",
    )  # fmt: skip


def test_a_pad_token_that_is_eos_is_said(tmp_path, words):
    paths = shards(tmp_path, [([BOS, 9, EOS], [True] * 3)], masked=False)
    facts = FACTS | {"pad_token": "</s>"}
    found = look(entry(8), {"train": paths}, words, facts=facts)
    assert "pad_is_eos" in [one["name"] for one in found["findings"]]


@pytest.mark.parametrize("name", ["byte_level", "llama", "unigram", "wordpiece"])
def test_texts_of_tokens_are_those_of_the_tokenizer(tokenizer_folder, name):
    folder = tokenizer_folder(name)
    facts = {"prefix": [], "suffix": [], "bos_token": "<s>", "eos_token": "</s>",
             "pad_token": None}  # fmt: skip
    texts = TokenTexts.of(str(folder), facts)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    sentence = "the 12 of and <|im_end|> don't  be\n日"
    encoded = backend.encode(sentence, add_special_tokens=False)
    made = [texts.text(number) for number in encoded.ids]
    if name == "wordpiece":
        assert made == encoded.tokens
        return
    whole = "".join(made)
    if name == "unigram":
        assert whole.split()[:4] == ["the", "12", "of", "and"]
        assert texts.unknown == backend.token_to_id("<unk>")
        return
    # A character of several bytes may be of several tokens.
    assert (
        whole.removeprefix(" ").removesuffix("\\xe6\\x97\\xa5").removesuffix("日") == sentence[:-1]
    )


HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>&amp;\u202egnirts\x00'


class Tags(HTMLParser):
    """Counts tags and checks that they are closed in order."""

    VOID = ("meta", "br")

    def __init__(self):
        super().__init__()
        self.seen, self.open, self.text = Counter(), [], ""

    def handle_starttag(self, tag, attributes):
        self.seen[tag] += 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen[tag] += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        self.text += data


def hostile(tmp_path):
    """A report of documents, names and tokens that would be markup if they were not escaped."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    vocab = {word: n for n, word in enumerate([*WORDS[:4], HOSTILE])}
    added = [{"id": 3, "content": "</s>", "special": True}]
    model = {"vocab": vocab, "unk_token": "<unk>"}
    content = {"model": model, "added_tokens": added, "pre_tokenizer": None, "decoder": None}
    write_json(folder / "tokenizer.json", content)
    paths = shards(tmp_path, [([BOS, 4, 4], [True] * 3)] * 5, masked=False)
    wanted = entry(8) | {"model": "<b>m</b>", "dataset": '"<i>'}
    return look(wanted, {"train": paths}, str(folder))


def test_what_documents_hold_is_no_markup(tmp_path):
    found = hostile(tmp_path)
    made = page(found)
    tags = Tags()
    tags.feed(made)
    tags.close()
    assert not {"script", "img", "link", "iframe"} & set(tags.seen)
    assert "<script" not in made and "onerror=" in tags.text
    assert "\u202e" not in made and "\\u202e" in tags.text and "\x00" not in made
    assert "http" not in made.replace("http-equiv", "") and "url(" not in made
    assert "<b>m</b>" in tags.text
    assert json.loads(report.as_json(found)) == found


CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome")
                 if (path := shutil.which(name))), None)  # fmt: skip


@pytest.fixture
def browse(tmp_path):
    """What a headless browser does with a page: its messages and what it prints."""

    def run(file, width, *words, dark=False):
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-dev-shm-usage", "--enable-logging=stderr", f"--window-size={width},2600",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", *words, file.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return said, done.stdout

    return run


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt install chromium)")
def test_a_browser_shows_the_page(tmp_path, browse, words):
    from PIL import Image

    paths = shards(tmp_path / "tokens", flawed(4), masked=True)
    found = look(entry(16), {"train": paths}, words)
    for name, made in (("page", page(found)), ("hostile", page(hostile(tmp_path)))):
        (tmp_path / f"{name}.html").write_text(made, encoding="utf-8")
        # Of a page that may run scripts one can ask how wide it is.
        start, _, rest = made.partition('<meta http-equiv="Content-Security-Policy"')
        asks = (
            "<script>document.documentElement.style.width = '390px';"
            "document.title = document.body.scrollWidth</script>"
        )
        told = start + rest.partition(">")[2].replace("</main>", f"</main>{asks}")
        (tmp_path / f"{name}-asked.html").write_text(told, encoding="utf-8")
        _, dumped = browse(tmp_path / f"{name}-asked.html", 500, "--dump-dom")
        title = dumped.partition("<title>")[2].partition("<")[0]
        assert title == "390", "nothing stands out at the side of a phone"
    (tmp_path / "wrong.html").write_text("<script>console.error('told')</script>")
    assert browse(tmp_path / "wrong.html", 390, "--dump-dom")[0], "messages are seen here"

    corners = {}
    for width in (390, 1400):
        for dark in (False, True):
            picture = tmp_path / f"{width}-{dark}.png"
            said, _ = browse(tmp_path / "page.html", width, f"--screenshot={picture}", dark=dark)
            assert not said
            with Image.open(picture) as image:
                assert image.width == width
                corners[width, dark] = sum(image.convert("RGB").getpixel((2, 2))) / 3
                assert len(image.convert("RGB").getcolors(2**20)) > 20
    assert all((brightness < 60) == dark for (_, dark), brightness in corners.items())
    assert all(brightness > 230 for (_, dark), brightness in corners.items() if not dark)


CONFIG = {
    "models": {"one": {"tokenizer": "tokenizer"}},
    "datasets": {"qa": {"files": "data", "document": {"text": "{prompt} {completion}"}}},
    "max_length": [24],
    "format": "view",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with one view that is there, of which a row came twice."""
    folder = tmp_path_factory.mktemp("report")
    make_tokenizer("bos_eos", folder / "tokenizer")
    found = [*rows(80), *rows(1)]
    workflow = Workflow.new(folder, CONFIG, {"data/a.jsonl": found})
    workflow.said = workflow.run("caches")
    return workflow


def test_the_verb_prints_and_writes_it(made, tmp_path):
    [cache] = made.folder.glob("cache/one/qa/24-*")
    printed = made.tokencache("report", "one", "qa", "24")
    assert "are copies of another" in printed and str(cache.relative_to(made.folder)) in printed
    figures = made.tokencache("report", "one", "qa", "24", "--json")
    assert figures == (cache / "report.json").read_text()
    assert json.loads(figures)["format"] == "view"
    made.tokencache("report", "one", "qa", "24", "--output", str(tmp_path / "some/page.html"))
    assert (tmp_path / "some/page.html").read_text() == (cache / "report.html").read_text()


def test_a_cache_without_a_report_is_looked_at_anew(made, tmp_path):
    copy = made.copy(tmp_path / "copy")
    [cache] = copy.folder.glob("cache/one/qa/24-*")
    before = (cache / "report.json").read_text()
    for name in ("report.json", "report.html"):
        (cache / name).unlink()
    # The copied sources are hashed first, which is said.
    assert copy.tokencache("report", "one", "qa", "24", "--json").endswith(before)


def test_the_log_and_the_summary_warn(made):
    [log] = made.folder.glob("logs/pack/one/qa/*.log")
    assert "warning: 1 of 81 documents (1.2 %) are copies of another" in log.read_text()
    assert "Look at the data: report.html in the folder of each cache" in made.said
    assert "one qa 24: warning: 1 of 81 documents (1.2 %) are copies of another" in made.said


def test_ids_that_the_weights_do_not_know_end_the_build(made, tmp_path):
    copy = made.copy(tmp_path / "copy")
    shutil.rmtree(copy.folder / "cache/one")
    write_json(copy.folder / "weights/config.json", {"model_type": "llama", "vocab_size": 100})
    copy.configure(CONFIG | {"models": {"one": {"tokenizer": "tokenizer", "weights": "weights"}}})
    said = copy.run("caches", fails=True)
    assert "and the model knows those below 100 (models.one.weights); give" in said
    assert "Traceback" not in said and not copy.targets()
