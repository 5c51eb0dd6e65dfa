"""All checks in their order; no failure of one keeps another from running."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from onnxopt.deploy.external_data import check_external_data
from onnxopt.deploy.finding import CheckReport, Finding, ModelFile
from onnxopt.deploy.operators import check_operators
from onnxopt.deploy.opset import check_opset
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.provenance import check_provenance
from onnxopt.deploy.size import check_size
from onnxopt.deploy.structure import check_structure
from onnxopt.deploy.subject import Subject
from onnxopt.errors import ModelError, OnnxOptError
from onnxopt.graph import io
from onnxopt.report.json import plain
from onnxopt.runtime.machine import machine, versions
from onnxopt.targets.find import require
from onnxopt.targets.spec import parse_targets

Run: TypeAlias = Callable[[Subject, Policy], list[Finding]]


@dataclass(frozen=True)
class Check:
    """``does``: what it holds a model to, in a line. ``whole``: it needs a model whose structure is right."""

    name: str
    does: str
    run: Run
    whole: bool = True


# The order in which they run: what is cheap first, and what others need.
CHECKS: tuple[Check, ...] = (
    Check("structure", "the file is a whole model", check_structure, whole=False),
    Check("external-data", "all data beside the model is there, whole and in its folder", check_external_data),
    Check("opset", "the runtime on the device reads the opset and the IR version", check_opset),
    Check("operators", "there is a kernel for every operator and type", check_operators),
    Check("size", "the model fits onto the device", check_size),
    Check("provenance", "it is the very file that was accepted", check_provenance),
)


def check(subject: Subject, policy: Policy) -> CheckReport:
    """Run the checks that the policy wants.

    Raises ModelError when there is no such file, TargetError when a required target is not available, SpecError for
    targets that do not exist.
    """
    started = time.monotonic()
    if not subject.path.is_file():
        kind = "is a folder; name the .onnx file in it" if subject.path.is_dir() else "is no file that can be read"
        raise ModelError(f"{subject.path} {kind}")
    if policy.targets.require is not None:
        require(parse_targets(policy.targets.require))
    wanted = [c for c in CHECKS if policy.wanted(c.name)]
    findings: list[Finding] = []
    for one in subject.track(wanted, "checks"):
        findings += _findings(one, subject, policy, findings)
    bad = {"failed", "not run"} if policy.checks.not_run == "fail" else {"failed"}
    return CheckReport(
        model=_file(subject),
        verdict="failed" if any(f.status in bad for f in findings) else "passed",
        findings=tuple(findings),
        left_out=tuple(c.name for c in CHECKS if c not in wanted),
        policy=plain(policy),
        versions=versions(),
        machine=machine(),
        seconds=time.monotonic() - started,
    )


def _findings(one: Check, subject: Subject, policy: Policy, before: list[Finding]) -> list[Finding]:
    """What a check says; an error for the user that it ends with is its failure, any other is a bug of ours."""
    if one.whole:
        broken = next((f for f in before if f.check in ("structure", "external-data") and f.status == "failed"), None)
        if broken is not None:
            return [Finding(one.name, "not run", f"{broken.check} failed, which it builds on")]
    try:
        return one.run(subject, policy)
    except OnnxOptError as error:
        return [Finding(one.name, "failed", " ".join(str(error).split()))]


def _file(subject: Subject) -> ModelFile:
    try:
        files = {p.resolve() for p in io.files_of(subject.path)}
    except (OnnxOptError, ValueError, OSError):  # a file that is no model
        files = {subject.path.resolve()}
    size = sum(p.stat().st_size for p in files if p.is_file())
    return ModelFile(str(subject.path), io.sha256(subject.path), size)
