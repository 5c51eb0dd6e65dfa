"""Findings for reading, on a terminal or in a log."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from onnxopt.deploy.finding import CheckReport, Finding
from onnxopt.deploy.printable import shown
from onnxopt.report.tables import table

_STYLE = {"passed": "green", "failed": "bold red", "not run": "yellow"}
_NAMED = 3


def render(report: CheckReport, *, verbose: bool = False) -> RenderableType:
    """A row per finding, then the verdict. ``verbose`` names every place."""
    report = shown(report)
    rows = [(f.check, Text(f.status, _STYLE[f.status]), _why(f, verbose), f.remedy) for f in report.findings]
    parts: list[RenderableType] = [table("", ("check", " ", "why ", "what to do "), rows)]
    if report.left_out:
        parts.append(Text.assemble(("left out: ", "yellow"), ", ".join(report.left_out)))
    parts.append(Text(summary(report), _STYLE[report.verdict]))
    return Group(*parts)


def summary(report: CheckReport) -> str:
    """The verdict in a line."""
    counts = ", ".join(f"{report.count(s)} {s}" for s in ("passed", "failed", "not run") if report.count(s))
    nothing = "" if report.count("passed") or report.count("failed") else "; nothing was checked"
    return f"{report.verdict}: {report.model.path} ({counts}{nothing})"


def _why(f: Finding, verbose: bool) -> str:
    if not f.places or f.status == "passed":
        return f.why
    named = f.places if verbose else f.places[:_NAMED]
    more = f", and {len(f.places) - len(named)} more" if len(f.places) > len(named) else ""
    return f"{f.why} [{', '.join(named)}{more}]"
