"""Does a quantized model really compute in integers?"""

from __future__ import annotations

from typing import cast

from onnxopt.check.audit import look
from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
from onnxopt.report import words
from onnxopt.runtime.audit import Audit, Executed, is_quantized
from onnxopt.runtime.islands import QUANTIZE, Rules

_NAME = "audit"
_MOST_PLACES = 20


def check_audit(subject: Subject, policy: Policy) -> list[Finding]:
    """Share of the work in integer kernels, the products that stay float, and integer kernels whose numbers are wrong.

    Raises ExecutionError when ONNX Runtime cannot load the model.
    """
    if subject.trial.answer is None:
        return subject.trial.instead(_NAME)
    least = policy.audit.min_integer_share
    if not is_quantized(subject.model):
        if least:
            remedy = "quantize it, or take min-integer-share out of the policy"
            return [Finding(_NAME, "failed", "nothing in it is quantized", 0.0, least, remedy=remedy)]
        return [Finding(_NAME, "passed", "nothing in it is quantized")]
    found = look(subject.model, subject.dataset, cast(Rules, policy.audit.rules))
    return [_share(found, least), *_wrong(found)]


def _share(found: Audit, least: float | None) -> Finding:
    share, islands = found.integer_share, _named(found.islands)
    rest = f"; {len(found.islands)} of {len(found.islands) + len(found.integer)} products are float" if islands else ""
    why = f"integer kernels do {words.share(share)} of the multiplications{rest}"
    if found.islands:
        why += f", '{islands[0]}' because {found.islands[0].why}"
    remedy = found.islands[0].mend if found.islands else ""
    if least is not None and (share or 0.0) < least:
        return Finding(_NAME, "failed", f"{why}; {words.share(least)} wanted", share or 0.0, least, islands, remedy)
    if found.islands and not found.integer and _quantizes(found):
        why = f"quantized, but nothing runs in integers: every product is float between conversions{_because(found)}"
        return Finding(_NAME, "failed", why, share, None, islands, remedy or "deploy the float model: it is faster")
    return Finding(_NAME, "passed", why, share, least, islands)


def _because(found: Audit) -> str:
    return f", '{found.islands[0].node}' because {found.islands[0].why}"


def _quantizes(found: Audit) -> bool:
    """Are values quantized when it runs? Weights alone may be stored in integers to be small."""
    return any(step.op in QUANTIZE and step.kernel for step in found.steps)


def _wrong(found: Audit) -> list[Finding]:
    """Integer kernels that give other numbers than the file says."""
    wrong = [n for n in found.integer if n.why.startswith("WRONG")]
    return [Finding(_NAME, "failed", f"'{n.node}': {n.why}", places=(n.node,), remedy=n.mend) for n in wrong]


def _named(nodes: tuple[Executed, ...]) -> tuple[str, ...]:
    return tuple(n.node for n in nodes[:_MOST_PLACES])
