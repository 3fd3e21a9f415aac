"""From what training.py measured to its part of RESULTS.md and training.svg."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import sections
from tables import table
from training_arm import ENOUGH_SECONDS, WARM_UP

SLOW, FAIR = "slow set-up", "rows from the cache"
OURS = (
    "tokencache train, rows",
    "tokencache train, packed",
    "tokencache train, packed and compiled",
)
# By name, the attention of transformers that TRL trains with.
TRL = {"TRL, packed, SDPA": "sdpa", "TRL, packed, FlexAttention": "flex_attention"}
MB = 1e6


def write(results: dict[str, Any], folder: Path, device: str) -> None:
    """Put what was measured on a `device`, cpu or gpu, into its part of RESULTS.md and its plot."""
    sections.write(folder / "RESULTS.md", device, markdown(results))
    plot(results, folder / ("training.svg" if device == "cpu" else f"training-{device}.svg"))


def markdown(results: dict[str, Any]) -> str:
    parts = [_head(results), _aims(results), _ladder(results)]
    if results["not_run"]:
        said = (f"- {name}: it needs {why}" for name, why in results["not_run"].items())
        parts.append("Not run, because this machine lacks it:\n\n" + "\n".join(said))
    parts += [_planning(results["planning"]), _first_steps(results["first_steps"])]
    return "\n\n".join(parts) + "\n"


def rate(results: dict[str, Any], arm: str) -> float | None:
    """Useful tokens a second: the median of the rounds."""
    runs = results["arms"].get(arm)
    return median(run["useful_tokens_per_second"] for run in runs) if runs else None


def _head(results: dict[str, Any]) -> str:
    machine, given = results["machine"], results["given"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    busy = ""
    if machine["busy"] > 0.1:
        busy = f"\n\n**Preliminary:** others used {machine['busy']:.0%} of the cores at the start."
    return f"""# Training{"" if results["device"] == "no GPU" else " on a GPU"}

Made by `{machine["command"].strip()}` on {machine["date"]}, commit {machine["commit"]}: \
{machine["processor"]}, {machine["cores"]} cores, {machine["memory_gb"]} GB, {results["device"]}, \
{machine["system"]}, Python {machine["python"]}; {versions}.{busy}

A Llama from scratch with {results["parameters"]:,} parameters \
(hidden size {results["model"]["hidden_size"]}, {results["model"]["num_hidden_layers"]} layers) \
on {results["rows"]:,} instructions with their answers ({results["made_from"]}), \
{results["mean_length"]:.0f} tokens on average, max_length {results["max_length"]:,}. Each arm has \
what the arms above it have and one change more; arms that could not be run here are left out of \
that. A step has about {given["useful"]:,} useful tokens (those that are predicted) in each arm. \
Figures are medians of {given["rounds"]} rounds, in which the arms took turns, of {given["steps"]} \
steps after {WARM_UP} that are not timed (fewer of an arm whose steps take over {ENOUGH_SECONDS} \
s), without imports. The validation loss is that after these steps. "TRL" is its SFTTrainer with \
packing, without padding and with the same precision and optimizer; it is made for the package \
flash-attn, which is not installed, and other kernels get a mask over the whole batch. "tokencache \
train" is the workflow's own job. All other arms are a bare loop."""


def _aims(results: dict[str, Any]) -> str:
    gpu = results["device"] != "no GPU"
    slow, fair = rate(results, SLOW), rate(results, FAIR)
    ours = max((rate(results, name) or 0.0 for name in OURS), default=0.0)
    others = {name: rate(results, name) for name in results["arms"] if name not in (*OURS, *TRL)}
    rows = []
    if slow and ours:
        rows.append(_aim(f"ours against the {SLOW}", 12 if gpu else 5, ours / slow))
    if fair and ours and gpu:
        rows.append(_aim(f"ours against a fair set-up ({FAIR})", 1.5, ours / fair))
    trl = {found: name for name in TRL if (found := rate(results, name))}
    if trl and ours and gpu:
        best = max(trl)
        rows.append(_aim(f"ours against TRL ({trl[best]})", 0.95, ours / best))
    if others and ours and not gpu:
        best = max(others, key=others.get)
        # Rounds of the same arm differ by some hundredths.
        rows.append(_aim(f"ours against the best arm ({best})", 1.0, ours / others[best], 0.03))
    planning = results["planning"]
    for name, aim in (("packed", 0.003), ("grouped", 0.04)):
        waste = planning[f"{name}_waste"]
        what = f"padding, {name} at {planning['max_length']:,}"
        rows.append([what, f"< {aim:.1%}", f"{waste:.2%}", "yes" if waste < aim else "no"])
    seconds = planning["plan_seconds"]
    what = "the packing plan of a million documents"
    rows.append([what, "< 1 s", f"{seconds:.2f} s", "yes" if seconds < 1 else "no"])
    for entry in results["first_steps"]:
        took = entry["seconds"]["all but these two"]
        what = f"start to first step, {entry['kind']}, {entry['tokens'] / 1e6:,.0f} million tokens"
        rows.append([what, "< 2 s", f"{took:.2f} s", "yes" if took < 2 else "no"])
    return "## What it is to show\n\n" + table(["work", "aim", "measured", "met"], rows)


def _aim(what: str, aim: float, found: float, slack: float = 0.0) -> list[str]:
    return [what, f"{aim:g} ×", f"{found:.2f} ×", "yes" if found >= aim - slack else "no"]


def _ladder(results: dict[str, Any]) -> str:
    head = ["arm", "useful tokens/s", "range", "× slow", "× fair", "useful share", "MFU",
            "peak MB", "useful tokens", "validation loss"]  # fmt: skip
    slow, fair = rate(results, SLOW), rate(results, FAIR)
    rows = []
    for name, runs in results["arms"].items():
        rates, last = sorted(run["useful_tokens_per_second"] for run in runs), runs[-1]
        middle = median(rates)
        rows.append([
            name, f"{middle:,.0f}", f"{rates[0]:,.0f} to {rates[-1]:,.0f}",
            f"{middle / slow:.1f}" if slow else "-", f"{middle / fair:.2f}" if fair else "-",
            f"{last['useful_share']:.1%}", "-" if last["mfu"] is None else f"{last['mfu']:.1%}",
            f"{max(run['peak_bytes'] for run in runs) / MB:,.0f}", f"{last['useful_tokens']:,}",
            f"{last['loss']:.3f}",
        ])  # fmt: skip
    return "## The ladder\n\n" + table(head, rows) + f'\n\n"Fair" is the arm "{FAIR}".'


def _planning(found: dict[str, Any]) -> str:
    return (
        f"## Padding\n\nLengths drawn from those of the instructions, cut to "
        f"{found['max_length']:,}. A million documents are packed into {found['bins']:,} rows in "
        f"{found['plan_seconds']:.2f} s (best-fit decreasing, median of three), and "
        f"{found['packed_waste']:.2%} of these rows is padding. Batches of up to "
        f"{found['max_tokens']:,} tokens of rows of like length are {found['grouped_waste']:.2%} "
        f"padding, those of rows in random order {found['random_waste']:.1%}, and rows padded to "
        f"max_length {found['padded_waste']:.1%}."
    )


def _first_steps(entries: list[dict[str, Any]]) -> str:
    if not entries:
        return "## From the start to the first step\n\nNot run."
    steps = dict.fromkeys(step for entry in entries for step in entry["seconds"])
    rows = [[step, *(f"{e['seconds'].get(step, 0):.2f}" for e in entries)] for step in steps]
    head = ["seconds"] + [f"{e['kind']}, {e['tokens'] / 1e6:,.0f} M tokens" for e in entries]
    return "\n\n".join([
        "## From the start to the first step",
        "Without a validation split, on caches of made-up tokens. The last line is all but imports "
        "and the making of the model.",
        table(head, rows),
    ])  # fmt: skip


def plot(results: dict[str, Any], path: Path) -> None:
    """A bar for each arm, with its range."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tokencache"
    import matplotlib.pyplot as plt

    names = list(results["arms"])[::-1]
    rates = [[r["useful_tokens_per_second"] for r in results["arms"][name]] for name in names]
    middle = [median(found) for found in rates]
    errors = [[m - min(r) for m, r in zip(middle, rates, strict=True)],
              [max(r) - m for m, r in zip(middle, rates, strict=True)]]  # fmt: skip
    colours = ["#1b6ca8" if name in OURS else "#b8b8b8" for name in names]
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.4 * len(names)))
    bars = axes.barh(names, middle, xerr=errors, color=colours, ecolor="#555555", capsize=2)
    axes.bar_label(bars, fmt="{:,.0f}", padding=6, fontsize=8)
    axes.margins(x=0.15)
    axes.set_xlabel("useful tokens per second", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    machine = results["machine"]
    axes.set_title(
        f"Training: {machine['processor']}, {machine['cores']} cores, {results['device']}, "
        f"{machine['date']}, commit {machine['commit']}",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
