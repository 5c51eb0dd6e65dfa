"""Does the model fit onto the device?"""

from __future__ import annotations

from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
from onnxopt.report import words

_NAME = "size"


def check_size(subject: Subject, policy: Policy) -> list[Finding]:
    """The file with all its external data against the most that is allowed."""
    size, most = sum(p.stat().st_size for p in subject.files), policy.size.max
    if most is None:
        return [Finding(_NAME, "not run", f"{words.size(size)}; no limit is given", size, remedy="give [size] max")]
    why = f"{words.size(size)}, {words.size(most)} allowed"
    if size <= most:
        return [Finding(_NAME, "passed", why, size, most)]
    return [Finding(_NAME, "failed", why, size, most, remedy="onnxopt optimize makes it smaller: quant, prune, svd")]
