"""The results as Markdown: for each budget what each tool loses on each model, and the best of each in detail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from texts import percent, table, versions

Row = Mapping[str, Any]
# A candidate takes part if it saves this much of what was asked: whole channels are coarse steps in narrow layers.
ENOUGH = 0.85
_OURS = "onnxopt"


def document(results: Mapping[str, Any]) -> str:
    """All of docs/pruning-benchmark.md."""
    rows, machine = results["rows"], results["machine"]
    parts = [
        _INTRODUCTION,
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {', '.join(machine['instructions'])}. "
        f"Scored with onnxruntime {results['versions']['onnxruntime']}, one thread, timed at batch 1.",
    ]
    for budget in sorted({r["budget"] for r in rows}):
        asked = [r for r in rows if r["budget"] == budget]
        parts += [f"## {budget} % fewer MACs", one_budget(asked), "The best of each tool:", best(asked)]
    return "\n\n".join([*parts, "## What failed", failures(rows), "## Versions", versions(rows)]) + "\n"


_INTRODUCTION = f"""# Channel pruning without training, side by side

Made by `python benchmarks/prune/run.py`: every tool gets the same classifiers, the same unlabelled calibration samples
and one thread, and is judged by one scorer on other samples. Nothing is trained. A tool that knows no budget gets the
setting that leaves as few MACs more than asked as it can: never fewer.

A cell is the accuracy lost, in points, and the time of the whole model over that of the pruned one. In brackets: saves
less than {ENOUGH:.0%} of what was asked, and takes no part. Empty cells were not run, those without a speed not timed.
Speeds below 1.1 apart, and seconds, are rough."""


def one_budget(rows: Sequence[Row]) -> str:
    """One line for each tool, one column for each model."""
    models = list(dict.fromkeys(r["model"] for r in rows))
    found = {(r["tool"], r["model"]): r for r in rows}
    lines = [[tool, *(_cell(found.get((tool, m))) for m in models)] for tool in dict.fromkeys(r["tool"] for r in rows)]
    exact = {r["model"]: r["accuracy_float"] for r in rows if r.get("accuracy_float") is not None}
    return table(("tool", *(f"{m} ({percent(exact.get(m))})" for m in models)), lines)


def best(rows: Sequence[Row]) -> str:
    """For each model the most accurate row of each tool, in full."""
    lines = []
    for model in dict.fromkeys(r["model"] for r in rows):
        for row in leaders([r for r in rows if r["model"] == model]):
            lines.append(
                [
                    model,
                    row["tool"],
                    percent(row["accuracy"]),
                    f"{_lost(row):.1f}",
                    percent(row["agreement"]),
                    percent(row["macs_share"]),
                    percent(row["parameters_share"]),
                    _speed(row),
                    f"{row['seconds']:.2f}",
                ]
            )
    head = ("model", "tool", "accuracy", "points lost", "agreement", "MACs left", "parameters left", "speed", "s")
    return table(head, lines)


def leaders(rows: Iterable[Row]) -> list[Row]:
    """The most accurate row of each tool (the first word of its name) that takes part, the best first."""
    found: dict[str, Row] = {}
    for row in filter(takes_part, rows):
        tool = row["tool"].split()[0]
        if tool not in found or row["accuracy"] > found[tool]["accuracy"]:
            found[tool] = row
    return sorted(found.values(), key=lambda r: -r["accuracy"])


def takes_part(row: Row) -> bool:
    """Whether it runs and saves enough."""
    return row.get("accuracy") is not None and 1 - row["macs_share"] >= ENOUGH * row["budget"] / 100


def failures(rows: Iterable[Row]) -> str:
    """Tool, model and reason of all that made no file that runs, budgets of one reason together."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if "error" in row:
            key = row["tool"], row["model"], str(row["error"]).replace("|", "/")
            found.setdefault(key, []).append(f"{row['budget']} %")
    if not found:
        return "Nothing."
    return table(("tool", "model", "budget", "why"), [[t, m, ", ".join(b), why] for (t, m, why), b in found.items()])


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row.get("accuracy") is None:
        return "fails"
    text = f"{_lost(row):.1f}" + (f", {_speed(row)}" if "speed" in row else "")
    if not takes_part(row):
        return f"({text} at {percent(1 - row['macs_share'], 0)})"
    return f"**{text}**" if row["tool"] == _OURS else text


def _lost(row: Row) -> float:
    return 100 * float(row["accuracy_float"] - row["accuracy"])


def _speed(row: Row) -> str:
    return f"{row['speed']:.2f} x" if "speed" in row else ""
