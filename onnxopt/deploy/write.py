"""Findings as files: the kind by the end of the name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onnxopt.deploy.finding import SCHEMA, CheckReport
from onnxopt.deploy.junit import junit
from onnxopt.deploy.markdown import markdown
from onnxopt.deploy.run import CHECKS
from onnxopt.deploy.sarif import sarif
from onnxopt.errors import SpecError
from onnxopt.report.files import write_text
from onnxopt.report.json import write_values

_TEXTS: dict[str, Callable[[CheckReport], str]] = {
    ".xml": junit,
    ".sarif": lambda report: sarif(report, {c.name: c.does for c in CHECKS}),
    ".md": markdown,
}


def check_kind(path: Path) -> None:
    """Raises SpecError for a name from which no kind of report can be told."""
    if path.suffix.lower() not in (".json", *_TEXTS):
        kinds = ".json, .xml (JUnit), .sarif or .md"
        raise SpecError(f"--report {path}: end the name in {kinds}")


def write_check(report: CheckReport, path: Path) -> None:
    """Write a report, all or nothing. Raises SpecError for an unknown kind, OutputError where it cannot be written."""
    check_kind(path)
    if path.suffix.lower() == ".json":
        write_values(SCHEMA, report, path)
    else:
        write_text(_TEXTS[path.suffix.lower()](report), path)
