"""Findings as Markdown, for pull requests."""

from __future__ import annotations

import html
import re

from onnxopt.deploy.finding import CheckReport, Finding
from onnxopt.deploy.printable import shown
from onnxopt.deploy.text import summary
from onnxopt.report import words

_MARK = {"passed": "✅ passed", "failed": "❌ failed", "not run": "⚠️ not run"}
_ACTIVE = re.compile(r"([\\`*_\[\]|~])")
_NAMED = 8


def markdown(report: CheckReport) -> str:
    """The verdict, a table with a row for each finding, and by what it was judged."""
    report = shown(report)
    model = report.model
    lines = [f"### onnxopt check: {_MARK[report.verdict]}", "", escape(summary(report)), ""]
    lines += ["| check | | why | what to do |", "|---|---|---|---|"]
    lines += [f"| {f.check} | {_MARK[f.status]} | {_why(f)} | {escape(f.remedy)} |" for f in report.findings]
    if report.left_out:
        lines += ["", f"Left out: {', '.join(report.left_out)}."]
    made = ", ".join(f"{name} {report.versions.get(name, '?')}" for name in ("onnxopt", "onnxruntime"))
    lines += ["", f"{words.size(model.bytes)}, SHA-256 {model.sha256}; {made}, {report.seconds:.1f} s"]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text that stays text: no markup, no HTML, no mentions, no links."""
    plain = _ACTIVE.sub(r"\\\1", html.escape(text, quote=False))
    # A word joiner, which nobody sees, keeps names from being notified, numbers and addresses from becoming links.
    return re.sub(r"(@|#|://|www\.)", "\\1\u2060", plain)


def _why(f: Finding) -> str:
    if not f.places or f.status == "passed":
        return escape(f.why)
    more = f", and {len(f.places) - _NAMED} more" if len(f.places) > _NAMED else ""
    return f"{escape(f.why)}: {', '.join(map(escape, f.places[:_NAMED]))}{more}"
