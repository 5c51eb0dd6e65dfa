"""A report for reading: tables on a terminal or in a log file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Group, RenderableType
from rich.text import Text

from onnxopt.graph.cost import OperatorCost
from onnxopt.report import words
from onnxopt.report.execution import Execution, Product
from onnxopt.report.inspection import Inspection
from onnxopt.report.report import FileInfo, GateResult, Report, StepReport, Validation
from onnxopt.report.tables import skips_table, table

# Records of a list; more with --verbose.
_SHOWN = 8
_STYLE = {"accepted": "bold green", "rejected": "bold red", "forced": "bold yellow"}


class OptionLine(Protocol):
    """An option as text: its name, type, default and meaning."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def default(self) -> str: ...
    @property
    def meaning(self) -> str: ...


@dataclass(frozen=True)
class PassLine:
    """A pass as text: its name, one line on what it does, whether it keeps results, its options."""

    name: str
    does: str
    exact: bool
    options: Sequence[OptionLine]


def render(report: Report, *, verbose: bool = False) -> RenderableType:
    """The whole report. ``verbose`` names every place that was left alone, and every output."""
    parts: list[RenderableType] = []
    if report.passes:
        parts.append(_passes(report.passes))
    for step in report.passes:
        parts += _listed(step, verbose)
        if step.skips:
            parts.append(skips_table(step.skips, f"left alone by {step.spec}", verbose))
    if report.input is not None:
        parts.append(_comparison(report.input, report.output, report.validation, verbose))
    if report.gates:
        parts.append(_gates(report.gates))
    notes = [*report.notes, *(n for step in report.passes for n in _notes(step.figures))]
    notes += [n for v in report.validation for n in v.notes]
    parts += [Text.assemble(("note: ", "yellow"), note) for note in dict.fromkeys(notes)]
    parts.append(Text(_verdict(report), style=_STYLE.get(report.verdict, "bold")))
    return Group(*parts)


def render_passes(passes: Iterable[PassLine]) -> RenderableType:
    """Each pass with its options."""
    parts: list[RenderableType] = []
    for entry in passes:
        kind = "exact" if entry.exact else "lossy"
        parts.append(Text.assemble((entry.name, "bold"), f" ({kind})  {entry.does}"))
        rows = [(f"  {o.name}", o.type, o.default, o.meaning) for o in entry.options]
        parts.append(table("", ("  option", "type ", "default ", "meaning "), rows) if rows else Text(""))
    return Group(*parts)


def render_inspection(found: Inspection, *, verbose: bool = False) -> RenderableType:
    """A model at a glance, and what each pass could do to it. ``verbose`` names every place that is left alone."""
    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    head = [("model", found.path), ("made by", found.producer), ("opset", opsets)]
    head += [("input" if i == 0 else "", text) for i, text in enumerate(found.inputs)]
    head += [("output" if i == 0 else "", text) for i, text in enumerate(found.outputs)]
    operators = [_operator(o, found.total) for o in (*found.operators, found.total)]
    prospects = [
        (p.spec, "exact" if p.exact else "lossy", str(p.changed), str(len(p.skips)), p.failed) for p in found.passes
    ]
    return Group(
        *(Text.assemble((f"{name:8}", "bold"), text) for name, text in head if text),
        table("Operators", ("operator", "count", "parameters", "weights", "MACs", ""), operators),
        table("Passes", ("pass", " ", "could change", "would leave alone", " "), prospects),
        *(skips_table(p.skips, f"left alone by {p.spec}", verbose) for p in found.passes if p.skips),
        *(Text.assemble(("note: ", "yellow"), note) for note in found.notes),
    )


def render_execution(found: Execution, *, min_integer: float | None = None, verbose: bool = False) -> RenderableType:
    """What each product executes as, then the figures. ``verbose`` adds every operator that is executed."""
    columns = ("product", "operator ", "kernel ", "MACs", "why ", "mend ")
    parts: list[RenderableType] = [table("", columns, map(_product, found.products))] if found.products else []
    if verbose:
        rows = sorted(found.operators.items(), key=lambda item: (-item[1], item[0]))
        parts.append(table("Executed", ("operator", "count"), [(op, str(n)) for op, n in rows]))
    unknown = f", {found.uncounted} of unknown MACs" if found.uncounted else ""
    products = f"{found.integer} integer, {found.islands} float, {found.folded} folded into constants{unknown}"
    left = f"{found.quantizations} quantizations, {found.dequantizations} dequantizations"
    figures = [("rules", found.rules), ("MACs in integer kernels", words.share(found.integer_share))]
    figures += [("products", products), ("left as conversions", left)]
    parts.append(table("", ("model", f"{Path(found.path).name} "), figures))
    if min_integer is not None:
        holds = found.integer_share is not None and found.integer_share >= min_integer
        line = f"{'holds' if holds else 'fails'}: {words.share(min_integer)} of the MACs in integer kernels wanted"
        parts.append(Text(line, "bold green" if holds else "bold red"))
    return Group(*parts)


def _product(p: Product) -> tuple[str, ...]:
    share = "" if p.runs == "folded" else "?" if p.share is None else words.share(p.share)
    return p.node, p.op, p.kernel if p.runs == "integer" else p.runs, share, p.why, p.mend


def _passes(steps: Iterable[StepReport]) -> RenderableType:
    rows = [
        (step.spec, str(step.changed), str(len(step.skips)), f"{step.seconds:.1f} s", _figures(step.figures))
        for step in steps
    ]
    return table("Passes", ("pass", "changed", "left alone", "time", "figures "), rows)


def _figures(figures: Mapping[str, object]) -> str:
    """Those that are a single value; mappings are in the JSON report only."""
    single = {k: v for k, v in figures.items() if isinstance(v, int | float | str) and v != ""}
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in single.items())


def _listed(step: StepReport, verbose: bool) -> Iterator[RenderableType]:
    """Figures that are a list of records, such as what was tried, each as a table."""
    for name, value in step.figures.items():
        if not isinstance(value, list) or not value or not all(isinstance(row, dict) for row in value):
            continue
        shown = value if verbose else value[:_SHOWN]
        columns = list(dict.fromkeys(key for row in value for key in row))
        rows = [tuple(_cell(row.get(key, "")) for key in columns) for row in shown]
        if len(shown) < len(value):
            rows.append((f"and {len(value) - len(shown)} more", *[""] * (len(columns) - 1)))
        title = f"{name.replace('_', ' ')} by {step.spec}"
        yield table(title, [c.replace("_", " ") for c in columns], rows)


def _notes(figures: Mapping[str, object]) -> list[str]:
    """The figure that is lines for the reader."""
    notes = figures.get("notes")
    return [str(note) for note in notes] if isinstance(notes, list) else []


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _comparison(
    before: FileInfo, after: FileInfo | None, validations: Sequence[Validation], verbose: bool
) -> RenderableType:
    rows: list[tuple[str, str, str, str]] = []
    if after is not None:
        rows.append(("size", words.size(before.bytes), words.size(after.bytes), _ratio(before.bytes, after.bytes)))
        for what, a, b in (
            ("parameters", before.parameters, after.parameters),
            ("MACs", before.macs, after.macs),
        ):
            rows.append((what, words.count(a), words.count(b), _ratio(a, b)))
    else:
        rows.append(("size", words.size(before.bytes), "", ""))
    for validation in validations:
        rows += _validation(validation, verbose)
    name = after.path if after is not None else ""
    return table("", ("", "original", "result", " "), [("file", Path(before.path).name, Path(name).name, ""), *rows])


def _validation(v: Validation, verbose: bool) -> list[tuple[str, str, str, str]]:
    """Rows of one target: what is measured on both, then how near they are."""
    rows = [(f"on {v.target}, {v.samples} samples", "", "", "")]
    for what, a, b in (
        ("accuracy", v.accuracy_reference, v.accuracy),
        ("accuracy, top 5", v.accuracy_top5_reference, v.accuracy_top5),
    ):
        if a is not None and b is not None:
            rows.append((what, words.share(a), words.share(b), f"{100 * (b - a):+.1f} points"))
    speed = f"{v.speedup:.2f} x ({v.speedup_low:.2f} to {v.speedup_high:.2f})"
    rows.append((f"latency, batch {v.batch}, {_threads(v.threads)}", _spread(v, True), _spread(v, False), speed))
    a, b = v.peak_memory_reference_bytes, v.peak_memory_bytes
    if a is not None and b is not None:
        rows.append(("peak memory", words.size(a), words.size(b), _ratio(a, b)))
    if v.islands is not None and v.conversions is not None:
        left = f"{v.islands} products float, {v.conversions} conversions left"
        rows.append(("MACs in integer kernels", "", words.share(v.integer_share), left))
    if v.agreement is not None:
        rows.append(("same top answer", "", words.share(v.agreement), ""))
    rows.append(("signal to noise", "", words.decibels(v.sqnr_db), f"cosine {v.cosine:.5f}"))
    if len(v.outputs) > 1 or verbose:
        for output in v.outputs:
            last = (
                f"largest error {output.max_error:.3g}"
                if output.equal is None
                else f"{words.share(output.equal)} equal"
            )
            rows.append((f"  {output.name}", "", words.decibels(output.sqnr_db), last))
    return rows


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


def _spread(v: Validation, reference: bool) -> str:
    latency = v.latency_reference if reference else v.latency
    return f"{words.milliseconds(latency.median_ms)} ({latency.low_ms:.3g} to {latency.high_ms:.3g})"


def _ratio(a: float | None, b: float | None) -> str:
    return f"{100 * b / a:.0f} %" if a and b is not None else ""


def _gates(gates: Iterable[GateResult]) -> RenderableType:
    marks = {True: Text("holds", "green"), False: Text("fails", "red"), None: Text("not judged", "yellow")}
    return table("Gates", ("gate", " ", "why "), [(g.name, marks[g.holds], g.why) for g in gates])


def _verdict(report: Report) -> str:
    """One line: what became of it, and why."""
    failed = ", ".join(g.name for g in report.gates if g.holds is False)
    saved = f"saved as {report.output.path}" if report.output is not None and report.passes else "every gate holds"
    if report.output is not None and report.passes and not any(step.changed for step in report.passes):
        saved += ", which is the original: no pass changed anything"
    return {
        "accepted": f"accepted: {saved}",
        "forced": f"forced: {saved}, although {failed or 'a gate'} fails",
        "rejected": f"rejected: {failed or 'a gate'} fails" + ("; nothing was saved" if report.passes else ""),
        "not validated": f"not validated: {saved if report.output is not None else 'nothing was judged'}",
        "not judged": "not judged",
    }[report.verdict]


def _operator(o: OperatorCost, total: OperatorCost) -> tuple[str, ...]:
    share = f"{100 * o.macs / total.macs:.0f} %" if o.macs and total.macs else ""
    size = words.size(o.weight_bytes) if o.weight_bytes else ""
    return (
        o.op,
        str(o.count),
        words.count(o.parameters) if o.parameters else "",
        size,
        words.count(o.macs) if o.macs != 0 else "",
        share,
    )
