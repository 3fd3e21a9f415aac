"""The benchmarks' own parts: corpora, the comparison of ids, the report."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import corpora  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import training_report  # noqa: E402

TINY = 60_000


@pytest.fixture
def few_sources(monkeypatch):
    monkeypatch.setattr(corpora, "python_sources", lambda: ["import os\n", "print('é')\n" * 99])
    monkeypatch.setitem(corpora.SIZES, "test", 0.0)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", corpora.MEGABYTES)
@pytest.mark.parametrize("shared", [True, False])
def test_corpora_are_the_same_each_time(name, shared, tmp_path, monkeypatch, few_sources):
    if not shared:
        monkeypatch.setattr(corpora, "SHARED", tmp_path)
    corpora.instructions.cache_clear()
    monkeypatch.setitem(corpora.SIZES, "test", TINY / 1e6 / corpora.MEGABYTES[name])
    first = corpora.corpus(name, "test", tmp_path / "a")
    again = corpora.corpus(name, "test", tmp_path / "b")
    corpora.instructions.cache_clear()
    assert content(first) == content(again)
    parts = [Path(file).read_text(encoding="utf-8") for file in corpora.files(first)]
    lines = "".join(parts).split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    about = json.loads((first / "corpus.json").read_text())
    assert about["documents"] == len(rows)
    assert about["bytes"] == sum(Path(file).stat().st_size for file in corpora.files(first)) >= TINY
    assert len({row["text"] for row in rows}) == len(rows)
    assert [row["id"] for row in rows] == [str(number) for number in range(len(rows))]
    assert all(row["text"] == row["text"].strip() for row in rows)
    assert all(Path(file).stat().st_size for file in corpora.files(first))


def test_a_corpus_that_is_there_stays(tmp_path, monkeypatch, few_sources):
    monkeypatch.setitem(corpora.SIZES, "test", 0.0002)
    made = corpora.corpus("code", "test", tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    assert corpora.corpus("code", "test", tmp_path) == made
    assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == stamps


def test_ids_are_compared_as_truncation_leaves_them():
    whole = np.array([1, 10, 11, 12, 2, 1, 13, 2], np.int32)
    cut = np.array([1, 10, 2, 1, 13, 2], np.uint16)
    lengths, short = np.array([5, 3]), np.array([3, 3])
    assert peers.digest(whole, lengths, 3, [2]) == peers.digest(cut, short, 3, [2])
    assert peers.digest(whole, lengths, 5, [2]) != peers.digest(cut, short, 5, [2])
    # The same ids in other documents are other ids.
    other = np.array([2, 4])
    assert peers.digest(cut, short, 9, []) != peers.digest(cut, other, 9, [])


def run(seconds):
    return {"seconds": seconds, "cpu_seconds": 2 * seconds, "all_seconds": [seconds],
            "peak_bytes": 3e8, "bytes": 12_300_000}  # fmt: skip


RESULTS = {
    "machine": {"processor": "a processor", "cores": 2, "memory_gb": 24, "system": "Linux",
                "python": "3.11", "versions": {"tokenizers": "1.0"}, "commit": "abc", "busy": 0.0,
                "date": "2026-01-01", "command": "make bench --size small"},
    "rounds": 3,
    "compare": [{
        "corpus": {"name": "code", "documents": 1200, "bytes": 50e6, "made_from": "sources"},
        "tokenizer": "gpt2", "max_length": 2048, "tokens": 9_000_000,
        "found": {"tokencache jobs": run(2.0), "datasets.map, all cores": run(50.0)},
        "left_out": {"dolma": "it failed\nother ids: 12 tokens"},
    }],
    "tenfold": [],
    "where": [{"corpus": "code", "tokenizer": "gpt2", "bytes": 5e6, "seconds": {"import": 0.25}}],
    "growth": [{"corpus": {"bytes": 5e6 * times}, "tokens": 1_000_000 * times, "seconds": 1.5,
                "hash_bytes_per_second": 1e9, "tokenize_peak_bytes": 4e8, "pack_peak_bytes": 3e8,
                "first_batch_seconds": 0.0123, "plan_seconds": 0.5, "second_plan_seconds": 0.1,
                "new_length_seconds": 0.8, "new_length_bytes_tokenized": 0, "view_seconds": 1.2}
               for times in (1, 10)],
    "append": {"bytes": 5e6, "appended": 5e4, "tokenized_again": 1e5, "shard_size": 32768},
    "graphs": [{"shards": 100, "caches": 10,
                "seconds": {"tokencache": 2.0, "bare, 10 jobs": 1.0, "bare, 110 jobs": 2.0}}],
}  # fmt: skip


def test_the_table_says_what_was_measured():
    text = report.markdown(RESULTS)
    for row in (
        "gpt2 (byte-level BPE), against datasets.map, all cores | 40 × | 25.0 × | no |",
        "| another max_length over 10 million tokens, as a dataset | < 10 s | 0.80 s | yes |",
        "| another max_length over 10 million tokens, as a view | < 1 s | 1.20 s | no |",
        "also of ten times the data | < 1,500 MB | 400 MB, 400 MB | yes |",
        "| `snakemake -n`, 100 shards and 10 caches | < 5.0 s (2 × bare + 1 s) | 2.0 s | yes |",
        "| import | 0.25 |",
        "| datasets.map, all cores | 1 | 50.00 | 100.00 | 25.0 | 1.0 | 300 | 12.3 |",
        "- dolma: other ids: 12 tokens",
        "| warm cache to first batch, imports aside, ms | 12.3 | 12.3 |",
        "| 100 shards, 10 caches | 2.00 | 1.00 | 2.00 | 0.50 |",
    ):
        assert row in text
    assert "2.0% of the bytes" in text
    assert "1,200 documents, 50.0 MB" in text
    assert "Preliminary" not in text


def test_figures_of_a_busy_machine_are_marked():
    busy = RESULTS | {"machine": RESULTS["machine"] | {"busy": 0.7}}
    assert "**Preliminary:** others used 70% of the cores" in report.markdown(busy)


def test_the_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    report.write(RESULTS, tmp_path)
    assert (tmp_path / "results.svg").read_text().count("<svg") == 1
    assert (tmp_path / "RESULTS.md").read_text() == report.markdown(RESULTS)


def arm(rate, share=0.9, **more):
    return {"useful_tokens_per_second": rate, "useful_share": share, "mfu": None,
            "peak_bytes": 5e8, "useful_tokens": 16_384, "loss": 7.5} | more  # fmt: skip


TRAINED = {
    "machine": RESULTS["machine"] | {"command": "make bench-training"},
    "device": "no GPU",
    "given": {"rounds": 3, "steps": 3, "useful": 4096, "rows": 4},
    "model": {"hidden_size": 128, "num_hidden_layers": 2},
    "parameters": 1_000_000, "rows": 3000, "mean_length": 382.0, "max_length": 2048,
    "made_from": "instructions",
    "planning": {"max_length": 2048, "max_tokens": 16384, "bins": 190_000, "plan_seconds": 0.25,
                 "packed_waste": 0.0006, "grouped_waste": 0.05, "random_waste": 0.6,
                 "padded_waste": 0.8},
    "first_steps": [{"kind": "packed", "tokens": 200_000_000, "rows": 98_000,
                     "seconds": {"imports": 5.0, "model": 0.1, "all but these two": 0.75}}],
    "arms": {
        "slow set-up": [arm(100, 0.2), arm(120, 0.2), arm(90, 0.2)],
        "rows from the cache": [arm(500)],
        "packed": [arm(1010)],
        "tokencache train, rows": [arm(800), arm(900), arm(1000)],
        "tokencache train, packed": [arm(1000)],
    },
    "not_run": {"TF32": "a GPU"},
}  # fmt: skip


def test_the_part_on_training_says_what_was_measured_and_what_was_not():
    text = training_report.markdown(TRAINED)
    for row in (
        "| ours against the slow set-up | 5 × | 10.00 × | yes |",
        "| ours against the best arm (packed) | 1 × | 0.99 × | yes |",
        "| padding, packed at 2,048 | < 0.3% | 0.06% | yes |",
        "| padding, grouped at 2,048 | < 4.0% | 5.00% | no |",
        "| the packing plan of a million documents | < 1 s | 0.25 s | yes |",
        "| start to first step, packed, 200 million tokens | < 2 s | 0.75 s | yes |",
        "| slow set-up | 100 | 90 to 120 | 1.0 | 0.20 | 20.0% | - | 500 | 16,384 | 7.500 |",
        "- TF32: it needs a GPU",
    ):
        assert row in text
    measured = TRAINED["arms"] | {
        "TRL, packed, SDPA": [arm(980)],
        "TRL, packed, FlexAttention": [arm(800)],
    }
    gpu = training_report.markdown(TRAINED | {"device": "a GPU", "arms": measured})
    assert "| ours against the slow set-up | 12 × | 10.00 × | no |" in gpu
    assert "| ours against a fair set-up (rows from the cache) | 1.5 × | 2.00 × | yes |" in gpu
    assert "| ours against TRL (TRL, packed, SDPA) | 0.95 × | 1.02 × | yes |" in gpu


def test_each_command_leaves_the_other_parts_of_the_results_alone(tmp_path):
    pytest.importorskip("matplotlib")
    results = tmp_path / "RESULTS.md"
    on_gpu = TRAINED | {"device": "a GPU"}
    training_report.write(TRAINED, tmp_path, "cpu")
    assert training_report.markdown(TRAINED) in results.read_text()
    assert (tmp_path / "training.svg").read_text().count("<svg") == 1
    for _ in range(2):
        training_report.write(on_gpu, tmp_path, "gpu")
        report.write(RESULTS, tmp_path)
        training_report.write(TRAINED, tmp_path, "cpu")
        text = results.read_text()
        assert text.startswith(report.markdown(RESULTS))
        assert training_report.markdown(TRAINED) in text
        assert text.endswith(training_report.markdown(on_gpu))
        assert text.count("# Training\n") == text.count("# Measured side by side") == 1
    assert (tmp_path / "training-gpu.svg").exists()
