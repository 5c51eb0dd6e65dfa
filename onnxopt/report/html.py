"""A report as one page that needs nothing beside it: no scripts, nothing from the net, drawings inside.

Names in models are not to be trusted: all text is escaped, and what neither HTML nor XML can hold is replaced.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from onnxopt.report import cut, plot, rows, trials, words
from onnxopt.report.files import write_text
from onnxopt.report.json import to_json, write_json
from onnxopt.report.layer_errors import layer_errors, noise_by_layer
from onnxopt.report.report import Cause, Report, StepReport

_TEMPLATE = "templates/report.html.jinja2"
# Control characters, halves of a pair, and the two numbers that are no characters.
_UNSPEAKABLE = re.compile("[^\\t\\n\\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_html(report: Report) -> str:
    """The report as a page, which is well-formed XML as well."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(few=cut.few, by_reason=rows.by_reason, share=words.share, count=words.count)
    template = environment.from_string((files("onnxopt.report") / _TEMPLATE).read_text(encoding="utf-8"))
    before, after = report.input, report.output
    page = template.render(
        report=report,
        verdict=rows.verdict(report),
        tiles=list(_tiles(report)),
        pairs=list(_pairs(report)),
        target_columns=rows.TARGETS,
        targets=rows.targets(report),
        troubles=_troubles(report),
        comparison=rows.comparison(before, after, report.validation, outputs=True) if before is not None else [],
        steps=[_step(step) for step in report.passes],
        layers=noise_by_layer(report.layers),
        notes=rows.notes(report),
        machine=dict(_said(name, value) for name, value in report.machine.items() if value is not None),
        canvas=(plot.WIDTH, plot.HEIGHT),
    )
    return _UNSPEAKABLE.sub("�", page)


def write_html(report: Report, path: str | Path) -> None:
    """Write a report as a page, all or nothing. Raises OutputError where that cannot be done."""
    write_text(to_html(report), Path(path))


def write_report(report: Report, path: str | Path) -> None:
    """Write a report: a page where the name ends in .html, else JSON. Raises OutputError where that cannot be done."""
    (write_html if Path(path).suffix.lower() == ".html" else write_json)(report, path)


def _tiles(report: Report) -> Iterator[tuple[str, str, str]]:
    """The figures that matter most: (name, value, what it comes from)."""
    before, after = report.input, report.output
    if before is not None and after is not None:
        yield "size", rows.ratio(before.bytes, after.bytes), f"{words.size(before.bytes)} → {words.size(after.bytes)}"
        if before.macs and after.macs is not None:
            yield "MACs", rows.ratio(before.macs, after.macs), f"{words.count(before.macs)} → {words.count(after.macs)}"
    for v in report.validation:
        yield "speed", f"{v.speedup:.2f} x", f"on {v.target}, {v.speedup_low:.2f} to {v.speedup_high:.2f}"
        if v.accuracy is not None and v.accuracy_reference is not None:
            change = f"{words.share(v.accuracy_reference)} → {words.share(v.accuracy)}"
            yield "accuracy", f"{100 * (v.accuracy - v.accuracy_reference):+.1f} points", change
        elif v.agreement is not None:
            yield "same top answer", words.share(v.agreement), f"of {words.many(v.samples, 'sample')}"
        yield "signal to noise", words.decibels(v.sqnr_db), f"cosine {v.cosine:.5f}"


def _pairs(report: Report) -> Iterator[tuple[str, str, str, float, float]]:
    """What is drawn as two bars: (what, original, result, and both as shares of the longer one)."""
    before, after = report.input, report.output
    if before is not None and after is not None:
        yield from _pair("size", before.bytes, after.bytes, words.size)
        yield from _pair("parameters", before.parameters, after.parameters, words.count)
        yield from _pair("MACs", before.macs, after.macs, words.count)
    for v in report.validation:
        yield from _pair(f"latency on {v.target}", v.latency_reference_ms, v.latency_ms, words.milliseconds)
        yield from _pair("peak memory", v.peak_memory_reference_bytes, v.peak_memory_bytes, words.size)
    for t in report.targets:
        yield from _pair(f"latency on {t.target}", t.latency_reference_ms, t.latency_ms, words.milliseconds)
        yield from _pair(f"instructions on {t.target}", t.instructions_reference, t.instructions, words.count)


def _pair(
    what: str, before: float | None, after: float | None, say: Callable[[float], str]
) -> Iterator[tuple[str, str, str, float, float]]:
    if before is not None and after is not None and 0 < max(before, after) < math.inf:
        most = max(before, after)
        yield what, say(before), say(after), before / most, after / most


def _troubles(report: Report) -> dict[str, Any]:
    """Why targets failed or were not checked, and each cause once, with the targets that it explains."""
    causes: dict[Cause, list[str]] = {}
    for t in report.targets:
        for cause in t.causes:
            causes.setdefault(cause, []).append(t.target)
    told = [t for t in report.targets if t.why or t.departure is not None]
    return {"told": told, "causes": list(causes.items())}


def _said(name: str, value: Any) -> tuple[str, str]:
    """A remark on the machine as people read it."""
    if name.endswith("_bytes") and isinstance(value, int):
        return name.removesuffix("_bytes").replace("_", " "), words.size(value)
    return name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _step(step: StepReport) -> dict[str, Any]:
    """One pass: its figures, each in the form that suits it."""
    found = cut.cut(step.figures)
    tried = trials.trials(step.figures)
    drawn = found.names | ({"trials"} if tried is not None else set())
    rest = {name: value for name, value in step.figures.items() if name not in drawn}
    plain = to_json(Report({}, {}, passes=(StepReport("", 0, 0, figures=rows.others(rest)),)))["passes"][0]["figures"]
    left, cut_only = rows.unrepaired(step.skips)
    return {
        "report": step,
        "left": left,
        "unrepaired": cut_only,
        "singles": rows.singles(rest),
        "cut": found,
        "errors": layer_errors(step.figures),
        "trials": tried,
        "plot": plot.plot(found.curve) if len(found.curve) > 1 else None,
        "records": list(rows.records(rest)),
        "others": {name: json.dumps(value, indent=2, ensure_ascii=False) for name, value in plain.items()},
    }
