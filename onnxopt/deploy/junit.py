"""Findings as JUnit XML, which build servers show as tests."""

from __future__ import annotations

from collections import Counter
from xml.etree import ElementTree

from onnxopt.deploy.finding import CheckReport, Finding
from onnxopt.deploy.printable import figure, shown


def junit(report: CheckReport) -> str:
    """A suite with a case for each finding; what was not run is a skipped case."""
    report = shown(report)
    suite = {
        "name": f"onnxopt check {report.model.path}",
        "tests": str(len(report.findings)),
        "failures": str(report.count("failed")),
        "errors": "0",
        "skipped": str(report.count("not run")),
        "time": f"{report.seconds:.3f}",
    }
    root = ElementTree.Element("testsuites", {k: v for k, v in suite.items() if k != "skipped"})
    element = ElementTree.SubElement(root, "testsuite", suite)
    seen: Counter[str] = Counter()
    for found in report.findings:
        seen[found.check] += 1
        number = f" {seen[found.check]}" if seen[found.check] > 1 else ""
        _case(element, found, f"{found.check}{number}")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, f: Finding, name: str) -> None:
    case = ElementTree.SubElement(suite, "testcase", {"classname": f"onnxopt.check.{f.check}", "name": name})
    if f.status == "passed":
        ElementTree.SubElement(case, "system-out").text = f.why
        return
    detail = {
        "measured": figure(f.measured), "limit": figure(f.limit), "where": ", ".join(f.places), "what to do": f.remedy,
    }  # fmt: skip
    kind = "failure" if f.status == "failed" else "skipped"
    element = ElementTree.SubElement(case, kind, {"message": f.why})
    if f.status == "failed":
        element.set("type", f.check)
    element.text = "\n".join(f"{what}: {value}" for what, value in detail.items() if value) or None
