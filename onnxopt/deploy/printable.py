"""Text from a model as it can be shown: names in it may hold anything."""

from __future__ import annotations

from dataclasses import replace

from onnxopt.deploy.finding import CheckReport, Finding, Value

_LONGEST = 600


def printable(text: str) -> str:
    """Control characters, marks that turn the direction of writing, and lone surrogates as escapes; not too long."""
    short = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in short)


def shown(report: CheckReport) -> CheckReport:
    """The report with all text made printable."""
    model = replace(report.model, path=printable(report.model.path))
    return replace(report, model=model, findings=tuple(map(_shown, report.findings)))


def figure(value: Value) -> str:
    """A measured value or a limit in a few characters."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value))


def _shown(f: Finding) -> Finding:
    return replace(
        f, why=printable(f.why), remedy=printable(f.remedy), places=tuple(printable(place) for place in f.places)
    )
