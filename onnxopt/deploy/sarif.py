"""Findings as SARIF 2.1.0 (OASIS, 2020), which code hosts show beside the files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from onnxopt.deploy.finding import CheckReport, Finding
from onnxopt.deploy.printable import shown

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(report: CheckReport, rules: Mapping[str, str]) -> str:
    """Failures are results at the model's file, their places logical locations; what was not run is a notification.

    ``rules``: what each check does, by name.
    """
    uri, readable = _uri(Path(report.model.path)), shown(report)
    failed = [f for f in readable.findings if f.status == "failed"]
    missing = [f for f in readable.findings if f.status == "not run"]
    names = list(rules)
    driver = {
        "name": "onnxopt",
        "version": report.versions.get("onnxopt", "unknown"),
        "rules": [{"id": name, "shortDescription": {"text": does}} for name, does in rules.items()],
    }
    artifact = {"location": {"uri": uri}, "length": report.model.bytes, "hashes": {"sha-256": report.model.sha256}}
    notices = [{"level": "note", "message": {"text": _message(f)}, "associatedRule": {"id": f.check}} for f in missing]
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": notices}],
        "artifacts": [artifact],
        "results": [_result(f, names.index(f.check), uri) for f in failed],
        # Of runs with one name, a code host keeps only the last.
        "automationDetails": {"id": f"onnxopt/{uri}/"},
        "columnKind": "utf16CodeUnits",
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _result(f: Finding, rule: int, uri: str) -> dict[str, Any]:
    # A model has no lines, but those who show results ask for one.
    physical = {"artifactLocation": {"uri": uri, "index": 0}, "region": {"startLine": 1}}
    location: dict[str, Any] = {"physicalLocation": physical}
    if f.places:
        # Each once, as the format demands: nodes may have one name, or none.
        location["logicalLocations"] = [{"name": place, "kind": "member"} for place in dict.fromkeys(f.places)]
    same = hashlib.sha256("\0".join((f.check, *f.places, f.why if not f.places else "")).encode()).hexdigest()
    return {
        "ruleId": f.check,
        "ruleIndex": rule,
        "level": "error",
        "message": {"text": _message(f)},
        "locations": [location],
        "partialFingerprints": {"onnxopt/v1": same},
    }


def _message(f: Finding) -> str:
    return f"{f.why}. {f.remedy[:1].upper()}{f.remedy[1:]}." if f.remedy else f.why


def _uri(path: Path) -> str:
    """Relative to where we are, if it is below: what a code host knows the file by."""
    full, here = Path(os.path.abspath(path)), Path.cwd()
    inside = full.is_relative_to(here)
    text = quote(os.fsencode((full.relative_to(here) if inside else full).as_posix()))
    return text if inside else f"file://{text}"
