"""Is this the very file that was accepted, and what does it say of where it comes from?"""

from __future__ import annotations

from pathlib import Path

from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
from onnxopt.graph import io
from onnxopt.report.json import read_json

_NAME = "provenance"
_ACCEPTED = ("accepted", "forced")


def check_provenance(subject: Subject, policy: Policy) -> list[Finding]:
    """The report that accepted it, if one is named, otherwise the remarks in its metadata: a claim, not a proof.

    Raises DataError for a report that cannot be read.
    """
    if policy.provenance.accepted is not None:
        return [_by_report(subject, policy.provenance.accepted)]
    remarks = {
        p.key.removeprefix(io.REMARK): p.value for p in subject.proto.metadata_props if p.key.startswith(io.REMARK)
    }
    verdict = remarks.get("verdict")
    if verdict in _ACCEPTED:
        why = f"it says that onnxopt {remarks.get('version', '?')} made it by '{remarks.get('recipe', '?')}': {verdict}"
        return [Finding(_NAME, "passed", why, verdict)]
    why = f"it says that it was {verdict}" if verdict else "it does not say who made it, from what and how"
    remedy = "name the report that accepted it: --accepted report.json"
    return [Finding(_NAME, "failed" if policy.provenance.required else "not run", why, verdict, remedy=remedy)]


def _by_report(subject: Subject, file: Path) -> Finding:
    report = read_json(file)
    actual = io.sha256(subject.path)
    expected = report.output.sha256 if report.output is not None else None
    if expected != actual:
        what = "is of no result" if expected is None else f"is about another file, of SHA-256 {expected[:16]}..."
        remedy = "ship the file that was accepted, or have this one judged"
        return Finding(_NAME, "failed", f"the report {file.name} {what}", actual, expected, (), remedy)
    if report.verdict not in _ACCEPTED:
        return Finding(_NAME, "failed", f"the report {file.name} says '{report.verdict}'", report.verdict, "accepted")
    return Finding(
        _NAME, "passed", f"the report {file.name} is about this file and says '{report.verdict}'", actual, expected
    )
