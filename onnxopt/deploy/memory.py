"""How much memory loading and running the model takes."""

from __future__ import annotations

from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
from onnxopt.report import words

_NAME = "memory"


def check_memory(subject: Subject, policy: Policy) -> list[Finding]:
    """The peak of a process of its own, beyond what Python and ONNX Runtime take by themselves."""
    trial = subject.trial
    if trial.answer is None:
        return trial.instead(_NAME)
    peak, most = trial.answer.memory_bytes, policy.memory.max
    if peak is None:
        return [Finding(_NAME, "not run", "this system does not tell what a process takes", limit=most)]
    took = f"loading and running one sample takes {words.size(peak)} beside ONNX Runtime itself"
    if most is None:
        return [Finding(_NAME, "not run", f"{took}; no limit is given", peak, remedy="give [memory] max")]
    why = f"{took}, {words.size(most)} allowed"
    if peak <= most:
        return [Finding(_NAME, "passed", why, peak, most)]
    return [Finding(_NAME, "failed", why, peak, most, remedy="quantize it, prune it, or run fewer samples at once")]
