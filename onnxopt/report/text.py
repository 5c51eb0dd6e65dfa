"""A report for reading: tables on a terminal or in a log file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Group, RenderableType
from rich.text import Text

from onnxopt.graph.cost import OperatorCost
from onnxopt.report import words
from onnxopt.report.cut import cut
from onnxopt.report.cut_text import render_coupling, render_cut
from onnxopt.report.execution import Execution, Product
from onnxopt.report.inspection import Inspection
from onnxopt.report.report import GateResult, Report, StepReport
from onnxopt.report.rows import TARGETS, comparison, notes, records, singles, target_notes, targets, unrepaired, verdict
from onnxopt.report.tables import Cells, limited, skips_table, table

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
        found = cut(step.figures)
        parts += render_cut(found, step.spec, verbose=verbose)
        for listed in records({k: v for k, v in step.figures.items() if k not in found.names}):
            parts.append(table(f"{listed.name} by {step.spec}", listed.columns, limited(listed.rows, verbose)))
        left, cut_only = unrepaired(step.skips)
        if left:
            parts.append(skips_table(left, f"left alone by {step.spec}", verbose))
        if cut_only:
            parts.append(skips_table(cut_only, f"cut, but not repaired, by {step.spec}", verbose))
    if report.input is not None:
        compared = comparison(report.input, report.output, report.validation, outputs=verbose)
        parts.append(table("", ("", "original", "result", " "), compared))
    if report.targets:
        parts.append(_targets(report))
    if report.gates:
        parts.append(_gates(report.gates))
    parts += [Text.assemble(("note: ", "yellow"), note) for note in notes(report)]
    parts.append(Text(verdict(report), style=_STYLE.get(report.verdict, "bold")))
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
    """A model at a glance, and what each pass could do to it, or which channels go together.

    ``verbose`` names every place that is left alone, and every layer of a group.
    """
    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    head = [("model", found.path), ("made by", found.producer), ("opset", opsets)]
    head += [("input" if i == 0 else "", text) for i, text in enumerate(found.inputs)]
    head += [("output" if i == 0 else "", text) for i, text in enumerate(found.outputs)]
    tied = found.coupling
    operators = [_operator(o, found.total) for o in (*found.operators, found.total)]
    prospects = [
        (p.spec, "exact" if p.exact else "lossy", str(p.changed), str(len(p.skips)), p.failed) for p in found.passes
    ]
    return Group(
        *(Text.assemble((f"{name:8}", "bold"), text) for name, text in head if text),
        table("Operators", ("operator", "count", "parameters", "weights", "MACs", ""), operators),
        *([table("Passes", ("pass", " ", "could change", "would leave alone", " "), prospects)] if prospects else []),
        *(skips_table(p.skips, f"left alone by {p.spec}", verbose) for p in found.passes if p.skips),
        *(render_coupling(tied.groups, tied.frozen, verbose=verbose) if tied is not None else []),
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
    left = f"{words.many(found.quantizations, 'quantization')}, {words.many(found.dequantizations, 'dequantization')}"
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
        (
            step.spec,
            str(step.changed),
            str(len(unrepaired(step.skips)[0])),
            f"{step.seconds:.1f} s",
            ", ".join(f"{k} {v}" for k, v in singles(step.figures).items()),
        )
        for step in steps
    ]
    return table("Passes", ("pass", "changed", "left alone", "time", "figures "), rows)


def _gates(gates: Iterable[GateResult]) -> RenderableType:
    marks = {True: Text("holds", "green"), False: Text("fails", "red"), None: Text("not judged", "yellow")}
    return table("Gates", ("gate", " ", "why "), [(g.name, marks[g.holds], g.why) for g in gates])


def _targets(report: Report) -> RenderableType:
    """How the candidate does on each target, and what there is to say of those where it does not."""
    styles = {"passed": "green", "failed": "red", "not checked": "yellow"}
    rows: list[Cells] = [(*cells, Text(last, styles.get(last, ""))) for *cells, last in targets(report)]
    lines = [Text.assemble((f"{what}: ", "bold"), line) for what, line in target_notes(report)]
    return Group(table("Targets", TARGETS, rows), *lines, *([Text("")] if lines else []))


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
