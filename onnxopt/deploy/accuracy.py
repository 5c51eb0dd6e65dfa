"""How good the answers are: against labels, and against the float model."""

from __future__ import annotations

from onnxopt.check.gates import Gates, answers
from onnxopt.check.quality import Comparison, Quality
from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
from onnxopt.errors import ModelError
from onnxopt.report import words
from onnxopt.report.report import GateResult
from onnxopt.runtime.session import Session

_NAME = "accuracy"
_BATCH = 32
_REMEDIES = {
    "max-drop": "quantize fewer layers, or calibrate on more data",
    "min-agreement": "quantize fewer layers, or calibrate on more data; with labels, judge by max-drop",
    "min-sqnr": "quantize fewer layers, or calibrate on more data",
}


def check_accuracy(subject: Subject, policy: Policy) -> list[Finding]:
    """Gates against the reference, and the least accuracy; on real data only.

    Raises ExecutionError when a model does not run, ModelError when the reference has other outputs.
    """
    if subject.trial.answer is None:
        return subject.trial.instead(_NAME)
    if subject.dataset.synthetic:
        return [Finding(_NAME, "not run", "made-up data tells nothing of it; give --data")]
    reference, labels = policy.accuracy.reference, subject.dataset.labels
    if reference is None and labels is None:
        return [Finding(_NAME, "not run", "there is nothing to hold it against; give a reference, or data with labels")]
    quality = _quality(subject, policy)
    found = [] if labels is None else [_labelled(quality, policy)]
    if reference is None:
        return found
    gates = Gates(
        max_drop=policy.accuracy.max_drop,
        min_agreement=policy.accuracy.min_agreement,
        min_sqnr=policy.accuracy.min_sqnr,
    )
    return [*found, *map(_judged, answers(gates, quality, subject.dataset.count))]


def _quality(subject: Subject, policy: Policy) -> Quality:
    """The model's answers beside the reference's, or its own where there is none."""
    dataset = subject.dataset
    other = Session(subject.path)
    original = other if policy.accuracy.reference is None else Session(policy.accuracy.reference)
    if missing := sorted(set(original.outputs) - set(other.outputs)):
        raise ModelError(f"it has no output '{missing[0]}', which the reference has: export it with the same outputs")
    comparison = Comparison(dataset.labels)
    size = 1 if dataset.batching.whole else dataset.batching.fixed or _BATCH
    for feed in subject.track(dataset.batches(size), "accuracy", -(-dataset.count // size)):
        answer = other.run(feed)
        comparison.add(feed, answer if original is other else original.run(feed), answer)
    return comparison.result(dataset.count)


def _labelled(quality: Quality, policy: Policy) -> Finding:
    accuracy, least = quality.accuracy, policy.accuracy.min_accuracy
    if accuracy is None:
        why = f"accuracy cannot be measured: {'; '.join(quality.notes)}"
        return Finding(_NAME, "not run" if least is None else "failed", why, limit=least)
    why = f"{words.share(accuracy)} of the answers are right"
    if least is None:
        return Finding(_NAME, "passed", f"{why}; no limit is given", accuracy)
    why += f", {words.share(least)} wanted"
    if accuracy >= least - 1e-9:
        return Finding(_NAME, "passed", why, accuracy, least)
    return Finding(_NAME, "failed", why, accuracy, least, remedy="train it further, or quantize and prune it less")


def _judged(gate: GateResult) -> Finding:
    if gate.holds:
        return Finding(_NAME, "passed", gate.why, gate.measured, gate.limit)
    return Finding(_NAME, "failed", gate.why, gate.measured, gate.limit, remedy=_REMEDIES[gate.name])
