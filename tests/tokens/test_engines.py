"""Token runs by bytes are those by offsets, and ids those of the reference, for odd texts too.

TOKENCACHE_FUZZ sets how many texts are generated for each tokenizer.
"""

from __future__ import annotations

import os
import random
import unicodedata
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from conftest import PIECES, PUBLISHED, SPECIALS, TOYS, make_text, make_texts

from tokencache.base import limits
from tokencache.base.arrays import as_arrow, as_texts
from tokencache.config.references import Reference
from tokencache.documents.spans import Spans
from tokencache.tokenizer import given
from tokencache.tokens import engines, loss_mask, token_bytes

COUNT = int(os.environ.get("TOKENCACHE_FUZZ", "1000"))
SLICE = 5000
BY_BYTES = ("byte_level", "bos_eos", "llama", "gpt2", "qwen2.5", "mistral-v3-spm")


@pytest.fixture(scope="module")
def folder(tokenizer_folder, tmp_path_factory):
    """By name: a materialized tokenizer."""
    made = {}

    def find(name: str):
        if name not in made:
            reference = Reference(path=str(tokenizer_folder(name)))
            made[name] = tmp_path_factory.mktemp("materialized") / name
            given.materialize(reference, made[name], given.describe(reference).key)
        return made[name]

    return find


def odd_text(draw: random.Random) -> str:
    """Signs of all planes, or of few kinds so that they meet often, or words; and long runs."""
    if draw.random() < 0.01:
        run = draw.choice((*" \n\ta0.é日\u0301\u200d", *PIECES)) * draw.randrange(50, 500)
        return draw.choice(("", "a ")) + run + draw.choice(("", " b"))
    kind = draw.randrange(5)
    size = draw.choice((0, 1, 2, 5, 20, 60))
    if kind == 0:
        signs = (draw.randrange(0x110000) for _ in range(size))
        return "".join(chr(s) for s in signs if not 0xD800 <= s < 0xE000)
    if kind == 1:
        return "".join(draw.choice(" \n\ta▁.\u3000\u00a0é\u0301\u0130") for _ in range(size))
    if kind == 2:
        return "".join(draw.choice((*SPECIALS, " ", "  ", "\n", "a", "日")) for _ in range(size))
    if kind == 3:
        return "".join(draw.choice(PIECES) for _ in range(size // 2))
    return make_text(draw, size)


def odd_spans(draw: random.Random, text: str) -> list[tuple[int, int]]:
    """Ranges in order, some of which touch, none of them empty."""
    edges = sorted({draw.randint(0, len(text)) for _ in range(draw.choice((0, 1, 2, 2, 4, 8)))})
    if draw.random() < 0.2:
        edges = sorted({0, len(text), *edges})
    pairs = list(pairwise(edges))
    return pairs if draw.random() < 0.4 else pairs[::2]


def generated(count: int, seed: int) -> tuple[pa.LargeStringArray, Spans]:
    draw = random.Random(seed)
    texts = [odd_text(draw) for _ in range(count)]
    return as_texts(texts), Spans.of([odd_spans(draw, text) for text in texts])


def parts(name: str):
    for start in range(0, COUNT, SLICE):
        yield generated(min(SLICE, COUNT - start), start + sum(name.encode()))


@pytest.mark.parametrize("as_transformers", [False, True], ids=["held", "as_transformers"])
@pytest.mark.parametrize("name", TOYS + PUBLISHED)
def test_runs_by_bytes_are_those_by_offsets(name, as_transformers, folder):
    tools = engines.Engines(folder(name))
    finder = loss_mask.Finder(folder(name), tools, as_transformers)
    assert finder.by_bytes == (name in BY_BYTES), finder.why
    fit = total = 0
    for texts, spans in parts(name):
        found, runs = finder.find(texts, spans)
        wanted = loss_mask.by_offsets(tools.reference, texts, spans, as_transformers)
        assert np.array_equal(found.ids, wanted[0].ids)
        assert np.array_equal(found.offsets, wanted[0].offsets)
        for column in ("document", "start", "stop"):
            assert np.array_equal(getattr(runs, column), getattr(wanted[1], column)), column
        if finder.by_bytes:
            fit += finder._bytes.runs(texts, found, spans)[0].sum()
            total += len(texts)
    if finder.by_bytes:
        assert fit > total / 3


@pytest.mark.parametrize("name", TOYS + PUBLISHED)
def test_ids_are_those_of_the_reference(name, folder):
    tools = engines.Engines(folder(name))
    for texts, _ in parts(name):
        found, wanted = tools.encode(texts), tools.reference.encode(texts)
        assert np.array_equal(found.ids, wanted.ids)
        assert np.array_equal(found.offsets, wanted.offsets)


def test_merged_runs_are_in_order_and_apart():
    offsets = np.array([0, 5, 9, 9, 12])
    runs = token_bytes.Runs(
        np.array([0, 0, 0, 1, 3, 3, 3]),
        np.array([3, 0, 1, 0, 2, 0, 1]),
        np.array([5, 2, 2, 4, 2, 1, 2]),
    )
    found = loss_mask.merged([runs], offsets)
    assert found.lists() == [[(0, 2), (3, 5)], [(0, 4)], [], [(0, 2)]]
    nothing = token_bytes.Runs(*np.zeros((3, 0), np.int64))
    assert loss_mask.merged([nothing], np.array([0])).lists() == []
    assert loss_mask.merged([nothing], offsets).lists() == [[], [], [], []]


def test_spans_and_lists():
    lists = [[(0, 1), (3, 4)], [], [(2, 9)]]
    spans = Spans.of(lists)
    assert len(spans) == 3 and spans.lists() == lists
    assert spans.take(np.array([2, 0])).lists() == [lists[2], lists[0]]
    assert Spans.of([]).lists() == [] and Spans.of([[]]).take(np.array([0])).lists() == [[]]


def test_runs_that_differ_on_a_sample_are_refused(folder, monkeypatch):
    tools = engines.Engines(folder("bos_eos"))
    finder = loss_mask.Finder(folder("bos_eos"), tools, False)
    runs = token_bytes.TokenBytes.runs

    def wrong(self, texts, encoded, spans):
        fit, found = runs(self, texts, encoded, spans)
        return fit, token_bytes.Runs(found.document, found.start, found.stop + 1)

    monkeypatch.setattr(token_bytes.TokenBytes, "runs", wrong)
    texts, spans = as_texts(["one two"]), Spans.of([[(0, 3)]])
    with pytest.raises(loss_mask.OtherRuns, match="which characters"):
        finder.find(texts, spans)
    left = loss_mask.Finder(folder("bos_eos"), tools, False)
    assert not left.by_bytes and "which characters" in left.why
    assert len(finder.find(texts, spans)[1].start) == 1


def test_groups_of_rows_hold_at_most_so_much():
    offsets = np.array([0, 3, 3, 10, 11, 12])
    assert list(engines.groups(offsets, 4)) == [(0, 2), (2, 3), (3, 5)]
    assert list(engines.groups(offsets[:1], 4)) == []


def test_arrays_made_without_pandas_are_those_of_pyarrow():
    texts = ["", "a", "é\x00日", *make_texts(20)]
    assert as_texts(texts).equals(pa.array(texts, pa.large_string()))
    assert as_texts([]).equals(pa.array([], pa.large_string()))
    for dtype in (np.uint16, np.int32, np.int64, np.uint32):
        values = np.arange(9, dtype=dtype)[::2]
        assert as_arrow(values).equals(pa.array(values))


def test_blocks_that_are_settled_were_whole_in_unicode_3_2():
    known = unicodedata.ucd_3_2_0.category
    blocks = [range(first, last + 1) for first, last in engines.SETTLED_BLOCKS]
    assert all(known(chr(number)) != "Cn" for block in blocks for number in block)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_texts_in_parts_give_the_ids_of_all(folder, monkeypatch, name):
    """Each thread encodes a part of a batch where caches are forgotten."""
    monkeypatch.setattr(engines, "PART_BYTES", 1)
    monkeypatch.setenv(limits.RAYON, "3")
    monkeypatch.setattr(limits, "_chosen", None)
    found = engines.Engines(folder(name), "gigatoken")
    assert found.current._forgets == (name == "llama")
    for texts in (make_texts(200, seed=3), ["", "", "a b", "c", ""], ["one", ""]):
        array = pa.array(["sliced off", *texts], pa.large_string()).slice(1)
        encoded, wanted = found.encode(array), found.reference.encode(array)
        assert encoded.offsets.tolist() == wanted.offsets.tolist()
        assert encoded.ids.tolist() == wanted.ids.tolist()
