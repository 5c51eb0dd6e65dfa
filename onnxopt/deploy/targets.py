"""The model on other processors: are its answers as good there as here?"""

from __future__ import annotations

import math

from onnxopt.check.gates import Gates
from onnxopt.check.targets import default_targets, on_targets
from onnxopt.deploy.accuracy import check_accuracy
from onnxopt.deploy.finding import CheckReport, Finding, Status
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
from onnxopt.report import words
from onnxopt.report.report import TargetResult
from onnxopt.runtime.target import NATIVE
from onnxopt.targets.spec import Wanted, parse_targets

_NAME = "targets"
_SET_UP = 'onnxopt targets setup arm64, or name a device: [targets] run = "ssh://..."'
_STATUS: dict[str, Status] = {"passed": "passed", "failed": "failed", "not checked": "not run"}


def check_targets(subject: Subject, policy: Policy) -> list[Finding]:
    """One finding for each target: by the gates against the reference, or, without one, near what it answers here.

    Raises SpecError for targets that do not exist, ExecutionError when a model cannot be run here.
    """
    wanted = _wanted(policy)
    if subject.trial.answer is None:
        return subject.trial.instead(_NAME)
    reference = None if subject.dataset.synthetic else policy.accuracy.reference
    if reference is not None and any(f.status == "failed" for f in check_accuracy(subject, policy)):
        why = "its answers are not good enough on this machine: see 'accuracy'"
        return [Finding(_NAME, "not run", why, because="accuracy")]
    gates = Gates(
        max_drop=policy.accuracy.max_drop if reference else None,
        min_agreement=policy.accuracy.min_agreement if reference else None,
        min_sqnr=policy.accuracy.min_sqnr if reference else None,
    )
    if not wanted:
        return [Finding(_NAME, "not run", "no other processor can be shown from here", remedy=_SET_UP)]
    results = on_targets(
        reference or subject.path, subject.path, subject.dataset, wanted, gates, clock=False, track=subject.track
    )
    return [_finding(result, reference is not None) for result in results]


def unmet(found: CheckReport, policy: Policy) -> Finding | None:
    """What says of a target that must be available that it was not run after all, as of a device that is away."""
    required = {w.name for w in parse_targets(policy.targets.require)} if policy.targets.require is not None else set()
    ours = (f for f in found.findings if f.check == _NAME and f.status == "not run")
    return next((f for f in ours if required & set(f.places)), None)


def _wanted(policy: Policy) -> tuple[Wanted, ...]:
    """The targets that the policy names, or those that can be run from here: but for this machine, which the other
    checks run on."""
    named = [text for text in (policy.targets.run, policy.targets.require) if text is not None]
    return parse_targets(",".join(named)) if named else tuple(w for w in default_targets() if w.name != NATIVE.name)


def _finding(result: TargetResult, against_reference: bool) -> Finding:
    agreement, noise = result.agreement, result.sqnr_db
    parts = [result.why] if result.why else []
    if result.status == "passed":
        other = "the reference's" if against_reference else "those of this machine"
        near = f"{words.share(agreement)} of the top answers are" if agreement is not None else _near(noise)
        parts.insert(0, f"{near} {other}")
    parts += [f"it departs at {result.departure}"] if result.departure else []
    parts += [cause.why for cause in result.causes]
    remedies = dict.fromkeys(f"{r.what} ({r.price})" for cause in result.causes for r in cause.remedies)
    return Finding(
        _NAME,
        _STATUS[result.status],
        f"{result.target}{f' ({result.how})' if result.how else ''}: {'; '.join(parts)}",
        agreement if agreement is not None else noise,
        places=(result.target,),
        remedy="; or ".join(remedies),
    )


def _near(noise: float | None) -> str:
    if noise is None:
        return "not compared with"
    return "its answers are" if noise == math.inf else f"{words.decibels(noise)} signal to noise against"
