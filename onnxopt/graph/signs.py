"""Which tensors are never negative, as far as the operators that make them tell."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxopt.graph.ir import Tensor, is_constant

_NEVER = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Exp", "Sqrt")
# What they make is what they read, or lies between, or is zero; of some the other inputs are of no matter.
_KEEP = (
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "Dropout", "Identity"),
    *("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Expand", "Tile"),
)
_ALL = ("Concat", "Add", "Mul", "Max", "Sum", "Mean")


def never_negative(tensor: Tensor) -> bool:
    """False where it is not known."""
    waiting, seen = [tensor], {id(tensor)}
    for now in waiting:
        node = next(iter(now.inputs), None)
        if node is None or not node.is_standard:
            return False
        if node.op in _NEVER or (node.op == "Clip" and _least(node.attrs, node.inputs) >= 0):
            continue
        if node.op not in _KEEP + _ALL:
            return False
        more = node.inputs if node.op in _ALL else node.inputs[:1]
        waiting += [t for t in more if id(t) not in seen]
        seen |= set(map(id, more))
    return True


def _least(attrs: dict[str, Any], inputs: list[Tensor]) -> float:
    """Where a Clip begins."""
    given = attrs.get("min") if len(inputs) < 2 else inputs[1].values if is_constant(inputs[1]) else None
    return float("-inf") if given is None or not np.size(given) else float(np.min(given))
