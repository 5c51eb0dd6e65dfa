"""All checks in their order; no failure of one keeps another from running."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeAlias

from onnxopt.deploy.accuracy import check_accuracy
from onnxopt.deploy.audit import check_audit
from onnxopt.deploy.determinism import check_determinism
from onnxopt.deploy.edges import check_edges
from onnxopt.deploy.external_data import check_external_data
from onnxopt.deploy.finding import CheckReport, CheckVerdict, Finding, ModelFile
from onnxopt.deploy.latency import check_latency
from onnxopt.deploy.memory import check_memory
from onnxopt.deploy.operators import check_operators
from onnxopt.deploy.opset import check_opset
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.provenance import check_provenance
from onnxopt.deploy.saturation import check_saturation
from onnxopt.deploy.size import check_size
from onnxopt.deploy.structure import check_structure
from onnxopt.deploy.subject import Subject
from onnxopt.deploy.targets import check_targets
from onnxopt.errors import ModelError, OnnxOptError, SpecError
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
    Check("saturation", "no sum overflows 16 bits on some x86 processors", check_saturation),
    Check("audit", "what is quantized executes in integers", check_audit),
    Check("edges", "no NaN or infinity at the edge of the data, and all free sizes work", check_edges),
    Check("determinism", "equal answers each time, whatever the number of threads", check_determinism),
    Check("memory", "running it takes no more memory than allowed", check_memory),
    Check("latency", "running it takes no longer than allowed, or than its reference", check_latency),
    Check("accuracy", "its answers are as good as demanded", check_accuracy),
    Check("targets", "its answers are as good on other processors", check_targets),
)


def check(subject: Subject, policy: Policy) -> CheckReport:
    """Run the checks that the policy wants.

    Raises ModelError when there is no such file, DataError for data that cannot be read, SpecError for a policy that
    leaves no check, TargetError when a required target is not available. What is wrong with the model itself is in the
    report.
    """
    started = time.monotonic()
    _can_start(subject, policy)
    wanted = [c for c in CHECKS if policy.wanted(c.name)]
    findings: list[Finding] = []
    for one in subject.track(wanted, "checks"):
        findings += _findings(one, subject, policy, findings)
    findings = _accounted(findings, subject, policy)
    return CheckReport(
        model=_file(subject),
        verdict=_verdict(findings, policy),
        findings=tuple(findings),
        left_out=tuple(c.name for c in CHECKS if all(f.check != c.name for f in findings)),
        policy=plain(policy),
        versions=versions(),
        machine=machine(),
        seconds=time.monotonic() - started,
    )


def _can_start(subject: Subject, policy: Policy) -> None:
    """Is what was asked for possible? What is wrong here is no fault of the model."""
    for path in (subject.path, policy.accuracy.reference, policy.provenance.accepted):
        if path is not None and not path.is_file():
            raise ModelError(f"{path} is {'a folder: name a file in it' if path.is_dir() else 'no file that is there'}")
    if not any(policy.wanted(c.name) for c in CHECKS):
        raise SpecError("no check is left: what 'only' names, 'skip' leaves out")
    if policy.targets.require is not None:
        require(parse_targets(policy.targets.require))
    if subject.data is not None:
        with suppress(ModelError):  # which the checks tell
            _ = subject.dataset


def _findings(one: Check, subject: Subject, policy: Policy, before: list[Finding]) -> list[Finding]:
    """What a check says; an error for the user that it ends with is its failure, any other is a bug of ours."""
    if one.whole:
        broken = next((f for f in before if f.check in ("structure", "external-data") and f.status == "failed"), None)
        if broken is not None:
            return [Finding(one.name, "not run", f"{broken.check} failed, which it builds on", because=broken.check)]
    try:
        return one.run(subject, policy)
    except OnnxOptError as error:
        return [Finding(one.name, "failed", " ".join(str(error).split()))]


def _accounted(findings: list[Finding], subject: Subject, policy: Policy) -> list[Finding]:
    """With those of checks that nobody wanted, but that others point to: a model that does not run fails, whatever was
    chosen. What points to a check that has nothing against the model fails itself."""
    found = list(findings)
    for f in found:  # grows
        if f.because and all(other.check != f.because for other in found):
            one = next(c for c in CHECKS if c.name == f.because)
            found += _findings(one, subject, policy, found)
    told = {f.check for f in found if f.status == "failed" or f.because}
    return [replace(f, status="failed") if f.because and f.because not in told else f for f in found]


def _verdict(findings: list[Finding], policy: Policy) -> CheckVerdict:
    bad = {"failed", "not run"} if policy.checks.not_run == "fail" else {"failed"}
    checked = any(f.status == "passed" for f in findings)
    return "passed" if checked and not any(f.status in bad for f in findings) else "failed"


def _file(subject: Subject) -> ModelFile:
    size = sum(p.stat().st_size for p in subject.files)
    return ModelFile(str(subject.path), io.sha256(subject.path), size)
