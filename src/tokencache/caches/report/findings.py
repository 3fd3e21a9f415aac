"""What a team should know before it trains: each finding in a sentence, with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LEVELS = ("warning", "note")

# From which share on it is a warning; below, a note.
UNTRAINED_ROWS = 0.01
CUT_ROWS = 0.5
LOST_TOKENS = 0.05
MISSING_EOS = 0.01
UNKNOWN_TOKENS = 0.001
SAME_DOCUMENTS = 0.01
LITTLE_FILLED = 0.5
# Below this share nothing is said.
SOME_CUT_ROWS = 0.05


def of(report: dict[str, Any]) -> list[dict[str, str]]:
    """The findings of a report's figures: name, level and text; warnings first."""
    found = [*_rows(report), *_documents(report), *_tokenizer(report), *_copies(report)]
    return sorted(found, key=lambda one: LEVELS.index(one["level"]))


def _finding(name: str, warn: bool, text: str) -> dict[str, str]:
    return {"name": name, "level": LEVELS[0] if warn else LEVELS[1], "text": text}


def _rows(report: dict[str, Any]) -> Iterator[dict[str, str]]:
    for name, split in report["splits"].items():
        if untrained := split["rows_without_trained_tokens"]:
            yield _finding(
                "untrained_rows",
                untrained >= UNTRAINED_ROWS * split["rows"],
                f"{part(untrained, split['rows'], f'rows of {name}')} have no token that is "
                f"trained on, {split['rows_cut_without_trained_tokens']:,} of them because a "
                "document is cut before what is trained on; look at loss: and at max_length",
            )
    train = report["splits"]["train"]
    if (cut := train["rows_cut"]) and cut >= SOME_CUT_ROWS * train["rows"]:
        yield _finding(
            "cut_ends",
            cut >= CUT_ROWS * train["rows"],
            f"{part(cut, train['rows'], 'rows of train')} hold a document that is cut; an end "
            "token there is not the document's own and is not trained on, so only the other rows "
            "teach where to stop; a longer max_length or overflow: split keeps the true ends",
        )
    filled = report["splits"]["train"]["filled"]
    if filled < LITTLE_FILLED and report["settings"]["packing"] == "none":
        yield _finding(
            "little_filled", False,
            f"rows of train fill {percent(filled)} of max_length; packing: best_fit puts several "
            "documents in a row, or batch rows of like length",
        )  # fmt: skip


def _documents(report: dict[str, Any]) -> Iterator[dict[str, str]]:
    for side, about in report["documents"].items():
        what = "documents" if side == "all" else f"{side}s"
        yield from _cut(report, what, about)
        if about["double_bos"]:
            yield _finding(
                "double_bos", True,
                f"{part(about['double_bos'], about['documents'], what)} begin with two BOS; the "
                "text or its template has one, and the tokenizer puts another there",
            )  # fmt: skip
        if (missing := about["missing_eos"]) and side != "source":
            ends = ", ".join(f"{end['token']!r}" for end in about["ends"])
            yield _finding(
                "missing_eos",
                missing >= MISSING_EOS * about["documents"],
                f"{part(missing, about['documents'], what)} don't end with EOS "
                f"({report['tokenizer']['eos']['token']!r}), so a model does not learn to stop; "
                f"most end with {ends}; end the text under document: with it",
            )
        if unknown := about["unknown_tokens"]:
            yield _finding(
                "unknown_tokens",
                unknown >= UNKNOWN_TOKENS * about["tokens"],
                f"{part(unknown, about['tokens'], 'tokens')} are unknown to the tokenizer, in "
                f"{about['with_unknown']:,} {what}; it was made for other text",
            )


def _cut(report: dict[str, Any], what: str, about: dict[str, Any]) -> Iterator[dict[str, str]]:
    length, overflow = report["max_length"], report["settings"]["overflow"]
    lost = next(one for one in about["truncation"] if one["max_length"] == length)
    if not lost["documents"] or overflow == "split":
        return
    documents = part(lost["documents"], about["documents"], what)
    tokens, does = lost["tokens"], "are cut"
    if overflow == "drop":
        tokens, does = tokens + lost["documents"] * length, "are left out"
    yield _finding(
        "cut", tokens >= LOST_TOKENS * about["tokens"],
        f"{documents} are longer than max_length and {does}: "
        f"{part(tokens, about['tokens'], 'tokens')} are lost; a longer max_length or "
        "overflow: split keeps them",
    )  # fmt: skip


def _tokenizer(report: dict[str, Any]) -> Iterator[dict[str, str]]:
    pad, eos = report["tokenizer"]["pad"], report["tokenizer"]["eos"]
    if pad and pad == eos:
        yield _finding(
            "pad_is_eos", False,
            f"PAD is EOS ({eos['token']!r}): a collator that masks padding by its id would leave "
            "every EOS out of the loss; tokencache and DataCollatorForSeq2Seq mask by length",
        )  # fmt: skip


def _copies(report: dict[str, Any]) -> Iterator[dict[str, str]]:
    what = "pairs" if report["pairs"] else "documents"
    total = max(about["documents"] for about in report["documents"].values())
    same = report["duplicates"]
    if leaked := same["validation_in_train"]:
        yield _finding(
            "validation_in_train", True,
            f"{leaked:,} {what} of the validation are in train as well: its loss will look too "
            "good; take them out of one of the two",
        )  # fmt: skip
    if same["documents"]:
        yield _finding(
            "duplicates",
            same["documents"] >= SAME_DOCUMENTS * total,
            f"{part(same['documents'], total, what)} are copies of another, of one there are "
            f"{same['most']:,} in all; take them out of the source",
        )


def part(count: int, total: int, what: str) -> str:
    """'12 of 7,556 rows (0.2 %)'"""
    return f"{count:,} of {total:,} {what} ({percent(count / max(1, total))})"


def percent(share: float) -> str:
    """One decimal, and never 0.0 % of something nor 100.0 % of less than all."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{min(share, 0.999) if share < 1 else share:.1%}".replace("%", " %")
