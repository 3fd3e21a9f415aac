"""report.json as one page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from .examples import HEAD
from .findings import percent

STYLE = Path(__file__).with_name("style.css")
SHARES = ("trained_share", "filled")
LABELS = 6  # below a histogram, on a phone too
ROOM_FOR_TICKS = 0.86  # of its width: what begins later would stand out at the right

# Nothing is loaded, even if something in a document got past the escapes.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

WHY = {
    "double_bos": "two BOS",
    "missing_eos": "no EOS",
    "with_unknown": "unknown tokens",
    "untrained": "nothing trained on",
    "duplicate": "the one with the most copies",
}


def page(report: dict[str, Any]) -> str:
    name = " · ".join(str(report[key]) for key in ("model", "dataset", "max_length"))
    parts = [
        _head(report), _findings(report), _rows(report),
        *(_lengths(report, side, about) for side, about in report["documents"].items()),
        _checks(report), _examples(report),
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(name)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n"
        f"<main>\n{''.join(parts)}</main>\n</html>\n"
    )


# The top


def _head(report: dict[str, Any]) -> str:
    settings = report["settings"]
    about = (
        f"max_length {report['max_length']:,} · overflow {settings['overflow']} · "
        f"packing {settings['packing']} · {report['format']}"
    )
    return (
        f"<header>\n<p class=over>Data report</p>\n<h1>{escape(report['model'])} <i>on</i> "
        f"{escape(report['dataset'])}</h1>\n<p class=about>{escape(about)}</p>\n"
        f"<p class=about>key <code>{escape(report['key'])}</code></p>\n</header>\n{_tiles(report)}"
    )


def _tiles(report: dict[str, Any]) -> str:
    train, documents = report["splits"]["train"], next(iter(report["documents"].values()))
    every = list(report["splits"].values())
    tokens, trained = (sum(s[name] for s in every) for name in ("tokens", "tokens_trained"))
    untrained = sum(split["rows_without_trained_tokens"] for split in every)
    what = "pairs" if report["pairs"] else "documents"
    median = documents["length"]["median"]
    length = report["max_length"]
    lost, whole = 0, 0
    for about in report["documents"].values():
        whole += about["tokens"]
        if report["settings"]["overflow"] != "split":
            cut = next(one for one in about["truncation"] if one["max_length"] == length)
            dropped = report["settings"]["overflow"] == "drop"
            lost += cut["tokens"] + (cut["documents"] * length if dropped else 0)
    tiles = [
        (what, _short(documents["documents"]), f"median {median:,} tokens"),
        ("tokens in rows", _short(tokens), f"{_short(whole)} before cutting"),
        ("trained on", percent(trained / max(1, tokens)), f"{_short(trained)} tokens"),
        ("rows filled", percent(train["filled"]), f"of max_length, {train['rows']:,} rows"),
        ("lost to length", percent(lost / max(1, whole)), f"{_short(lost)} tokens"),
        ("rows untrained", f"{untrained:,}", "without a trained token"),
    ]
    made = "".join(
        f"<div><dt>{name}</dt><dd><b>{value}</b><small>{more}</small></dd></div>\n"
        for name, value, more in tiles
    )
    return f"<dl class=tiles>\n{made}</dl>\n"


def _findings(report: dict[str, Any]) -> str:
    found = report["findings"]
    if not found:
        return "<section><h2>Findings</h2><p>Nothing to say: all checks passed.</p></section>\n"
    items = "".join(
        f"<li class={one['level']}><b>{one['level'].capitalize()}</b> "
        f"{_unbroken(one['text'][0].upper() + one['text'][1:])}.</li>\n"
        for one in found
    )
    return f"<section>\n<h2>Findings</h2>\n<ul class=findings>\n{items}</ul>\n</section>\n"


# Rows


def _rows(report: dict[str, Any]) -> str:
    sides, splits = 2 if report["pairs"] else 1, report["splits"]
    bars = ""
    for name, split in splits.items():
        room = max(1, split["rows"] * report["max_length"] * sides)
        trained, kept = split["tokens_trained"] / room, split["tokens"] / room
        said = f"{percent(trained)} of the room trained on, {percent(kept - trained)} not"
        bars += (
            f"<div class=share><span>{escape(name)}</span><svg viewBox='0 0 100 1' "
            f"preserveAspectRatio=none role=img aria-label='{said}'>"
            "<rect class=room width=100 height=1 />"
            f"<rect class=kept width={100 * kept:.3f} height=1 />"
            f"<rect class=trained width={100 * trained:.3f} height=1 /></svg></div>\n"
        )
    key = (
        "<p class=key><span class=trained>trained on</span><span class=kept>not trained on</span>"
        "<span class=room>room that is left; rows are stored without padding</span></p>\n"
    )
    measures = {
        "rows": "rows", "documents or pieces": "windows", "tokens": "tokens",
        "trained on": "tokens_trained", "share trained on": "trained_share",
        "rows untrained": "rows_without_trained_tokens",
        "rows with a cut document": "rows_cut",
        "of these untrained": "rows_cut_without_trained_tokens",
        "room filled": "filled",
    }  # fmt: skip
    lines = [
        [what, *(_number(split[name], name in SHARES) for split in splits.values())]
        for what, name in measures.items()
    ]
    return f"<section>\n<h2>Rows</h2>\n{bars}{key}{_table(['', *splits], lines)}</section>\n"


# Lengths


def _lengths(report: dict[str, Any], side: str, about: dict[str, Any]) -> str:
    title = "Length of documents" if side == "all" else f"Length of {side}s"
    if not about["histogram"]:
        return ""
    spread = about["length"]
    order = ("shortest", "median", "mean", "p90", "p99", "longest")
    said = " · ".join(f"{name} <b>{_number(spread[name])}</b>" for name in order)
    empty = f" {about['empty']:,} empty ones are left out." if about["empty"] else ""
    return (
        f"<section>\n<h2>{title}</h2>\n<p>Whole, in tokens, special tokens included: {said}."
        f"{empty}</p>\n{_histogram(about['histogram'], report['max_length'])}"
        f"<h3>{_cut_title(report)}</h3>\n"
        f"{_truncation(about, report['max_length'])}</section>\n"
    )


def _cut_title(report: dict[str, Any]) -> str:
    if report["settings"]["overflow"] == "truncate":
        return "What another max_length would cut off"
    return "What overflow: truncate would cut off"


def _histogram(bars: list[list[int]], max_length: int) -> str:
    """Bars of equal width; what is longer than max_length is behind a line, and paler."""
    most, count = max(bar[2] for bar in bars), len(bars)
    drawn, limit = "", next((n + 1 for n, bar in enumerate(bars) if bar[1] == max_length), None)
    for number, (start, stop, documents) in enumerate(bars):
        height = 100 * documents / most
        kind = "beyond" if start > max_length else "within"
        drawn += (
            f"<rect class={kind} x={number + 0.06:.2f} width=.88 y={100 - height:.2f} "
            f"height={height:.2f}><title>{start:,} to {stop:,} tokens: {documents:,}"
            "</title></rect>\n"
        )
    mark = label = ""
    if limit is not None:
        mark = f"<line x1={limit} x2={limit} y1=0 y2=100 />"
        place = 100 * limit / count
        side = "right" if place > 50 else "left"
        distance = 100 - place if side == "right" else place
        label = f"<span class=limit style='{side}:{distance:.2f}%'>max_length {max_length:,}</span>"
    step = -(-count // LABELS)
    ticks = "".join(
        f"<span style='left:{100 * n / count:.2f}%'>{bars[n][0]:,}</span>"
        for n in range(0, count, step)
        if n < ROOM_FOR_TICKS * count
    )
    lines = [[f"{a:,} to {b:,}", f"{n:,}"] for a, b, n in bars]
    return (
        f"<figure class=histogram>\n<p class=most>{label}</p>\n"
        f"<svg viewBox='0 0 {count} 100' preserveAspectRatio=none role=img "
        f"aria-label='documents by length'>\n{drawn}{mark}</svg>\n<p class=ticks>{ticks}</p>\n"
        f"<figcaption>The highest bar is {most:,} documents; lengths double every two bars."
        "</figcaption>\n<details><summary>As a table</summary>\n"
        f"{_table(['tokens', 'documents'], lines)}</details>\n</figure>\n"
    )


def _truncation(about: dict[str, Any], max_length: int) -> str:
    lines, marked = [], None
    for number, one in enumerate(about["truncation"]):
        if one["max_length"] == max_length:
            marked = number
        share = one["tokens"] / max(1, about["tokens"])
        bar = (
            "<svg class=bar viewBox='0 0 100 1' preserveAspectRatio=none aria-hidden=true>"
            f"<rect class=room width=100 height=1 /><rect class=cut width={100 * share:.3f} "
            "height=1 /></svg>"
        )
        lines.append([
            f"{one['max_length']:,}", f"{one['documents']:,}",
            percent(one["documents"] / max(1, about["documents"])), f"{one['tokens']:,}",
            percent(share), bar,
        ])  # fmt: skip
    head = ["max_length", "longer", "share", "tokens cut", "share", ""]
    return _table(head, lines, marked)


# Checks


def _checks(report: dict[str, Any]) -> str:
    lines = []
    tokenizer, several = report["tokenizer"], report["pairs"]
    for side, about in report["documents"].items():
        what = f" of {side}s" if several else ""
        checks = [
            ("two BOS at the beginning", "bos", "double_bos", "documents"),
            ("no EOS at the end", "eos", "missing_eos", "documents"),
            ("unknown tokens", "unknown", "unknown_tokens", "tokens"),
        ]
        for name, role, count, total in checks:
            there = tokenizer[role] is not None
            found = _counted(about[count], about[total]) if there else ["-", ""]
            lines.append([name + what, *found])
    total = max(about["documents"] for about in report["documents"].values())
    same = report["duplicates"]
    lines.append(["copies of another", *_counted(same["documents"], total)])
    if "validation" in report["splits"]:
        windows = report["splits"]["validation"]["windows"] // (2 if several else 1)
        lines.append(["validation also in train", *_counted(same["validation_in_train"], windows)])
    pad = tokenizer["pad"]
    lines.append(["PAD is EOS", "yes" if pad and pad == tokenizer["eos"] else "no", ""])
    table = _table(["check", "found", "share"], lines)
    roles = {"bos": "BOS", "eos": "EOS", "pad": "PAD", "unknown": "unknown"}
    tokens = " · ".join(f"{role} {_token(tokenizer[name])}" for name, role in roles.items())
    return (
        f"<section>\n<h2>Checks</h2>\n{table}{_ends(report)}<p class=about>{tokens}</p>\n"
        "</section>\n"
    )


def _ends(report: dict[str, Any]) -> str:
    made = ""
    for side, about in report["documents"].items():
        ends = ", ".join(
            f"{_mark(end['token'])} {_unbroken(percent(end['documents'] / about['documents']))}"
            for end in about["ends"]
        )
        made += f"<p class=about>{'Documents' if side == 'all' else side.capitalize() + 's'} end "
        made += f"with {ends or 'nothing'}.</p>\n"
    return made


def _counted(count: int, total: int) -> list[str]:
    return [f"{count:,}", percent(count / max(1, total))]


def _token(token: dict[str, Any] | None) -> str:
    return "none" if token is None else f"{_mark(token['token'])} {token['id']}"


# Documents


def _examples(report: dict[str, Any]) -> str:
    made = "".join(_example(one) for one in report["examples"])
    key = (
        "<p class='key tokens'><b>trained on</b><i>not trained on</i><i class=s>special</i>"
        "<i><u>·</u></i> space <i><u>↵</u></i> line break <i><u>→</u></i> tab</p>\n"
    )
    return (
        "<section>\n<h2>Documents</h2>\n<p>As the rows hold them, token by token: some of train, "
        "and one for each flaw.</p>\n"
        f"{key}{made}</section>\n"
    )


def _example(one: dict[str, Any]) -> str:
    made = ""
    for side, part in one["parts"].items():
        name = "" if side == "all" else f"{side}, "
        said = f"{name}{part['tokens']:,} tokens, {part['trained']:,} trained on"
        if part["document_tokens"] > part["tokens"]:
            said += f", of a document of {part['document_tokens']:,}"
        if part["start"]:
            said += f", from token {part['start']:,} on"
        made += f"<p class=about>{escape(said)}</p>\n<p class=tokens>{_tokens(part)}</p>\n"
    title = f"{one['split']}, row {one['row']:,}, document {one['document']:,}"
    why = "".join(f" <span class=why>{WHY[name]}</span>" for name in one["why"])
    return f"<article>\n<h3>{escape(title)}{why}</h3>\n{made}</article>\n"


def _tokens(part: dict[str, Any]) -> str:
    made, special = [], set(part["special"])
    for number, (token, text) in enumerate(zip(part["ids"], part["texts"], strict=True)):
        if number == HEAD and part["left_out"]:
            made.append(f"<span class=gap>{part['left_out']:,} more tokens</span>")
        tag = "b" if part["mask"][number] == "1" else "i"
        kind = " class=s" if number in special else ""
        made.append(f"<{tag}{kind} title={token}>{_visible(text)}</{tag}>")
        if text.endswith("\n"):
            made.append("<br>")
    return "".join(made)


# Small things


def _unbroken(text: str) -> str:
    """Escaped; a number stays with its percent sign."""
    return escape(text).replace(" %", "&nbsp;%")


_SIGNS = {" ": "<u>·</u>", "\n": "<u>↵</u>", "\t": "<u>→</u>"}


def _visible(text: str) -> str:
    """Escaped, with signs for white space and escapes for what can't be seen."""
    return "".join(_SIGNS.get(sign) or _sign(sign) for sign in text) or "<u>∅</u>"


def _sign(sign: str) -> str:
    if sign.isprintable():
        return escape(sign)
    return f"<u>{sign.encode('unicode_escape').decode()}</u>"


def _mark(token: str) -> str:
    return f"<code>{_visible(token)}</code>"


def _table(head: list[str], lines: list[list[str]], marked: int | None = None) -> str:
    """The first column is text, the others are numbers, as HTML."""
    rows = ""
    for number, (first, *rest) in enumerate(lines):
        cells = "".join(f"<td>{value}</td>" for value in rest)
        row = " class=marked" if number == marked else ""
        rows += f"<tr{row}><th scope=row>{escape(first)}</th>{cells}</tr>\n"
    top = "".join(f"<th scope=col>{escape(name)}</th>" for name in head)
    return (
        f"<div class=scroll tabindex=0><table>\n<thead><tr>{top}</tr></thead>\n"
        f"<tbody>\n{rows}</tbody></table></div>\n"
    )


def _number(value: float, share: bool = False) -> str:
    if share:
        return percent(value)
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _short(value: int) -> str:
    """Four digits at most, as 12.3 M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= 10 * size or (value >= size and size > 10**3):
            return (
                f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value // size:,} {unit}"
            )
    return f"{value:,}"
