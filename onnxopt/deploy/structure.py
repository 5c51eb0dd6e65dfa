"""Is the file a whole model?"""

from __future__ import annotations

import re

import onnx

from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
from onnxopt.errors import ExternalDataError
from onnxopt.graph import verify
from onnxopt.graph.model import Model
from onnxopt.report import words

_NAME = "structure"
_SHOWN = 20
_NODE = re.compile(r"node name: ([^)]+)\)|Node ?\(([^)]+)\)|node '([^']+)'")
_OLDEST_IR = 3


def check_structure(subject: Subject, policy: Policy) -> list[Finding]:
    """It parses, its names are unique, all that is read is made, and ONNX's checker and shape inference agree.

    Raises ModelError for what is no model at all.
    """
    proto = subject.proto
    if proto.ir_version < _OLDEST_IR:
        why = f"the file names the IR version {proto.ir_version}; {_OLDEST_IR} is the first that names opsets"
        return [Finding(_NAME, "failed", why, proto.ir_version, _OLDEST_IR, remedy="export the model again")]
    try:
        model = subject.model
    except ExternalDataError:
        why = "its weights cannot be read: see 'external-data'"
        return [Finding(_NAME, "not run", why, because="external-data")]
    if proto.ir_version > onnx.IR_VERSION:
        why = f"the installed onnx {onnx.__version__} knows no IR version {proto.ir_version}"
        return [Finding(_NAME, "not run", why, proto.ir_version, onnx.IR_VERSION, remedy="install a newer onnx")]
    faults = verify.faults(model) or _inference(model)
    if faults:
        return [_fault(text) for text in faults[:_SHOWN]]
    nodes = sum(len(g.nodes) for g in model.graphs())
    why = f"{words.many(nodes, 'node')}, opset {model.opset}, IR version {proto.ir_version}"
    return [Finding(_NAME, "passed", why)]


def _inference(model: Model) -> list[str]:
    """Where types and shapes contradict each other."""
    try:
        onnx.shape_inference.infer_shapes(model.skeleton(), check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[1:] if len(lines) > 1 else lines
    return []


def _fault(text: str) -> Finding:
    text = " ".join(text.split())
    match = _NODE.search(text)
    places = tuple(filter(None, match.groups())) if match else ()
    return Finding(_NAME, "failed", text, places=places, remedy="export the model again")
