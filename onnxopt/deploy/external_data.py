"""Is all that lies beside the model there, whole, and where it may be?"""

from __future__ import annotations

from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
from onnxopt.graph import external
from onnxopt.report import words

_NAME = "external-data"
_SHOWN = 20


def check_external_data(subject: Subject, policy: Policy) -> list[Finding]:
    """Each file that a tensor names exists, holds it all, and lies in the model's folder: links are followed."""
    found = list(external.places(subject.proto, subject.path.parent))
    if not found:
        return [Finding(_NAME, "passed", "all weights are in the file itself")]
    bad = [(name, error) for name, error in found if isinstance(error, Exception)]
    if not bad:
        files = {place for _, place in found}
        where = f"{words.many(len(found), 'tensor')} in {words.many(len(files), 'file')}"
        return [Finding(_NAME, "passed", f"{where} beside the model", len(found))]
    # Of a file that is missing, every tensor says the same.
    reasons: dict[str, list[str]] = {}
    for name, error in bad:
        reasons.setdefault(str(error).replace(f"tensor '{name}'", "a tensor", 1), []).append(name)
    remedy = "ship the file that was exported with the model, in the model's own folder"
    return [
        Finding(_NAME, "failed", _without_option(why), len(names), 0, tuple(names[:_SHOWN]), remedy)
        for why, names in list(reasons.items())[:_SHOWN]
    ]


def _without_option(why: str) -> str:
    """A model that ships has its data in its folder: there is no option to look elsewhere."""
    return why.removesuffix(": move it there, or name its folder: --allow-external-root")
