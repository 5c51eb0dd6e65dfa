"""A report as rows of text: what every form of it shows, whatever it is drawn with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from onnxopt.report import words
from onnxopt.report.report import FileInfo, Report, TargetResult, Validation

Row = tuple[str, str, str, str]
# Columns of ``targets``; those that end in a space to the left.
TARGETS = ("target", "samples", "noise", "agrees", "accuracy", "parity", "speed", "verdict ")
Skips = Sequence[tuple[str, str]]


class Records(NamedTuple):
    """A figure that is a list of records: its name, columns, and rows."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def singles(figures: Mapping[str, object]) -> dict[str, str]:
    """Figures that are a single value."""
    found = {k: v for k, v in figures.items() if isinstance(v, int | float | str) and v != ""}
    return {k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in found.items()}


def records(figures: Mapping[str, object]) -> Iterator[Records]:
    """Figures that are a list of records, such as what was tried."""
    for name, value in figures.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            columns = tuple(dict.fromkeys(key for row in value for key in row))
            rows = tuple(tuple(_cell(row.get(key, "")) for key in columns) for row in value)
            yield Records(name.replace("_", " "), tuple(str(c).replace("_", " ") for c in columns), rows)


def notes(report: Report) -> list[str]:
    """Lines for the reader, each once: of the run, of its passes (their figure ``notes``), of the validation."""
    found = list(report.notes)
    for step in report.passes:
        said = step.figures.get("notes")
        found += map(str, said) if isinstance(said, list) else []
    return list(dict.fromkeys([*found, *(n for v in report.validation for n in v.notes)]))


def by_reason(skips: Skips) -> list[tuple[str, list[str]]]:
    """Places by the reason that they were left alone for, the most common first."""
    reasons: dict[str, list[str]] = {}
    for node, why in skips:
        reasons.setdefault(why, []).append(node)
    return sorted(reasons.items(), key=lambda item: -len(item[1]))


def unrepaired(skips: Skips) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Places that were left alone, and those that were cut but not repaired."""
    kinds: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    for node, why in skips:
        kinds[why.startswith("not repaired")].append((node, why))
    return kinds


def comparison(
    before: FileInfo, after: FileInfo | None, validations: Sequence[Validation], *, outputs: bool
) -> list[Row]:
    """(what, original, result, how they differ); ``outputs``: each output even where there is only one."""
    rows: list[Row] = [("file", Path(before.path).name, Path(after.path if after is not None else "").name, "")]
    if after is not None:
        rows.append(("size", words.size(before.bytes), words.size(after.bytes), ratio(before.bytes, after.bytes)))
        for what, a, b in (
            ("parameters", before.parameters, after.parameters),
            ("MACs", before.macs, after.macs),
        ):
            rows.append((what, words.count(a), words.count(b), ratio(a, b)))
    else:
        rows.append(("size", words.size(before.bytes), "", ""))
    for validation in validations:
        rows += _validation(validation, outputs)
    return rows


def targets(report: Report) -> list[tuple[str, ...]]:
    """Cells of ``TARGETS`` for each target, this machine first; none where no other was wanted.

    ``noise`` (signal to noise) and ``agrees`` (equal top answers) are against the original, ``parity`` says the same
    two against the candidate here.
    """
    return [*map(_here, report.validation), *map(_target, report.targets)] if report.targets else []


def target_notes(report: Report) -> list[tuple[str, str]]:
    """(what, line) on targets that failed, were not checked, or need a word: why, layer, causes; then instructions."""
    said: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for t in report.targets:
        if t.status == "failed" or t.why:
            said.setdefault(tuple(_said(t)), []).append(t.target)
    found = []
    for lines, names in said.items():
        found += [(", ".join(names), lines[0][1]), *lines[1:]]
    counted = [(t, t.instructions) for t in report.targets if t.instructions is not None]
    return found + [(t.target, _counted(t, instructions)) for t, instructions in counted]


def _counted(t: TargetResult, instructions: int) -> str:
    original = t.instructions_reference
    beside = "" if not original else f", {instructions / original:.2f} of the original's {words.count(original)}"
    return f"a run takes {words.count(instructions)} instructions{beside}"


def _said(t: TargetResult) -> Iterator[tuple[str, str]]:
    yield "", f"not checked: {t.why}" if t.status == "not checked" else t.why
    if t.status == "failed":
        if t.departure is not None:
            yield "  departs", f"first in {t.departure}"
        for cause in t.causes:
            yield f"  {cause.name}", cause.why
            yield from (("  remedy", f"{r.what} ({r.price})" if r.price else r.what) for r in cause.remedies)


def _here(v: Validation) -> tuple[str, ...]:
    quality = words.decibels(v.sqnr_db), _some(v.agreement), _some(v.accuracy)
    return (v.target, str(v.samples), *quality, "", f"{v.speedup:.2f} x", "")


def _target(t: TargetResult) -> tuple[str, ...]:
    if t.sqnr_db is None:
        return (t.target, *[""] * (len(TARGETS) - 2), t.status)
    return (
        t.target,
        str(t.samples),
        words.decibels(t.sqnr_db),
        _some(t.agreement),
        _some(t.accuracy),
        _parity(t),
        f"{t.speedup:.2f} x" if t.speedup is not None else "",
        t.status,
    )


def _parity(t: TargetResult) -> str:
    if t.parity_db is None:
        return ""
    return words.decibels(t.parity_db) + (f" {100 * (t.parity_agreement or 0.0):.3g} %" if _differs(t) else "")


def _differs(t: TargetResult) -> bool:
    return t.parity_db != math.inf and t.parity_agreement is not None


def _some(share: float | None) -> str:
    return "" if share is None else words.share(share)


def verdict(report: Report) -> str:
    """One line: what became of it, and why."""
    fails, unjudged = (", ".join(g.name for g in report.gates if g.holds is holds) for holds in (False, None))
    fails = f"{fails} fail" if ", " in fails else f"{fails or 'a gate'} fails"
    saved = f"every gate that was judged holds; not judged: {unjudged}" if unjudged else "every gate holds"
    if report.output is not None and report.passes:
        saved = f"saved as {report.output.path}"
    if report.output is not None and report.passes and not any(step.changed for step in report.passes):
        saved += ", which is the original: no pass changed anything"
    return {
        "accepted": f"accepted: {saved}",
        "forced": f"forced: {saved}, although {fails}",
        "rejected": f"rejected: {fails}" + ("; nothing was saved" if report.passes else ""),
        "not validated": f"not validated: {saved if report.output is not None else 'nothing was judged'}",
        "not judged": "not judged",
    }[report.verdict]


def ratio(a: float | None, b: float | None) -> str:
    """What is left of ``a``: ``75 %``; empty where that cannot be told."""
    return f"{100 * b / a:.0f} %" if a and b is not None else ""


def others(figures: Mapping[str, object]) -> dict[str, object]:
    """Figures that are neither a single value, nor records, nor notes, and that hold something."""
    shown = {"notes", *singles(figures), *(k for k, v in figures.items() if any(records({k: v})))}
    return {k: v for k, v in figures.items() if k not in shown and v not in ("", None, [], {})}


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _validation(v: Validation, outputs: bool) -> list[Row]:
    """Rows of one target: what is measured on both, then how near they are."""
    rows = [(f"on {v.target}, {words.many(v.samples, 'sample')}", "", "", "")]
    for what, a, b in (
        ("accuracy", v.accuracy_reference, v.accuracy),
        ("accuracy, top 5", v.accuracy_top5_reference, v.accuracy_top5),
    ):
        if a is not None and b is not None:
            rows.append((what, words.share(a), words.share(b), f"{100 * (b - a):+.1f} points"))
    speed = f"{v.speedup:.2f} x ({v.speedup_low:.2f} to {v.speedup_high:.2f})"
    latency = f"latency, batch {v.batch}, {words.many(v.threads, 'thread')}"
    rows.append((latency, _spread(v, True), _spread(v, False), speed))
    a, b = v.peak_memory_reference_bytes, v.peak_memory_bytes
    if a is not None and b is not None:
        rows.append(("peak memory", words.size(a), words.size(b), ratio(a, b)))
    if v.islands is not None and v.conversions is not None:
        left = f"{words.many(v.islands, 'product')} float, {words.many(v.conversions, 'conversion')} left"
        rows.append(("MACs in integer kernels", "", words.share(v.integer_share), left))
    if v.agreement is not None:
        rows.append(("same top answer", "", words.share(v.agreement), ""))
    rows.append(("signal to noise", "", words.decibels(v.sqnr_db), f"cosine {v.cosine:.5f}"))
    if len(v.outputs) > 1 or outputs:
        for output in v.outputs:
            last = (
                f"largest error {output.max_error:.3g}"
                if output.equal is None
                else f"{words.share(output.equal)} equal"
            )
            rows.append((f"  {output.name}", "", words.decibels(output.sqnr_db), last))
    return rows


def _spread(v: Validation, reference: bool) -> str:
    latency = v.latency_reference if reference else v.latency
    return f"{words.milliseconds(latency.median_ms)} ({latency.low_ms:.3g} to {latency.high_ms:.3g})"
