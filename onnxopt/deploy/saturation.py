"""Layers whose sums overflow 16 bits on x86 processors without VNNI, told from the file alone."""

from __future__ import annotations

from onnxopt.check.overflow import overflow_risk
from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
from onnxopt.report import words
from onnxopt.runtime.probe import saturates
from onnxopt.runtime.target import ANY, find_target

_NAME = "saturation"
_MOST_PLACES = 20
_REMEDY = (
    "quantize again with weights that cannot overflow (onnxopt optimize --target any, or reduce_range: up to a bit of "
    "precision), with unsigned weights (slower where there is VNNI), or set session.x64quantprecision=1 on the device "
    "(slower); if it never runs on such processors, say so: [saturation] target"
)


def check_saturation(subject: Subject, policy: Policy) -> list[Finding]:
    """No layer can overflow on the processor that the policy names, or on any if it names none. Raises SpecError."""
    target = ANY if policy.saturation.target is None else find_target(policy.saturation.target)
    if not saturates(target):
        return [Finding(_NAME, "passed", f"the integer kernels of {target.name} do not overflow", limit=0)]
    risks = overflow_risk(subject.model)
    if not risks:
        return [Finding(_NAME, "passed", "no layer can overflow 16 bits", 0, 0)]
    worst = max(risks, key=lambda r: r.worst)
    layers = words.many(len(risks), "layer")
    why = (
        f"{layers} can overflow 16 bits on x86 processors without VNNI (AVX2, AVX-512): in {worst.op} '{worst.node}' "
        f"weights of a pair add up to {worst.worst}, 128 is safe"
    )
    places = tuple(r.node for r in risks[:_MOST_PLACES])
    return [Finding(_NAME, "failed", why, len(risks), 0, places, _REMEDY)]
