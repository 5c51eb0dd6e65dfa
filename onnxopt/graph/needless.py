"""Nodes whose output equals their input, for certain: from attributes, constants and inferred shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from onnxopt.graph.ir import Node, Scope, Tensor, is_constant

Rule = Callable[[Node, Scope], bool]

# Ends of slices from here on mean "to the end": exporters write the largest int32 or int64.
_TO_THE_END = 2**31 - 1


def is_needless(node: Node, scope: Scope) -> bool:
    """Is the first output always the same tensor as the first input, and the only one that is read?"""
    rule = _RULES.get(node.op) if node.is_standard else None
    return rule is not None and rule(node, scope)


def known_dtype(tensor: Tensor, scope: Scope) -> np.dtype[Any] | None:
    """The tensor's element type; None if it is not known, or text."""
    dtype = scope.spec(tensor).dtype
    return None if dtype.hasobject else dtype


def permutation(transpose: Node, scope: Scope) -> list[int] | None:
    """Which input axis becomes each output axis of a Transpose; None where the rank is not known."""
    if "perm" in transpose.attrs:
        return list(transpose.attrs["perm"])
    shape = scope.spec(transpose.inputs[0]).shape
    return None if shape is None else list(range(len(shape)))[::-1]


def integers(node: Node, name: str, index: int) -> list[int] | None:
    """What an operator takes as a constant input, or took as an attribute in older opsets."""
    if name in node.attrs:
        return list(node.attrs[name])
    if _is_given(node, index) and is_constant(node.inputs[index]):
        return [int(v) for v in np.asarray(node.inputs[index].values).reshape(-1)]
    return None


def _is_given(node: Node, index: int) -> bool:
    return len(node.inputs) > index and not node.inputs[index].is_empty()


def _always(node: Node, scope: Scope) -> bool:
    return True


def _alone(node: Node, scope: Scope) -> bool:
    return len(node.inputs) == 1


def _dropout(node: Node, scope: Scope) -> bool:
    if len(node.outputs) > 1 and (node.outputs[1].outputs or scope.is_output(node.outputs[1])):
        return False
    training = node.inputs[2] if _is_given(node, 2) else None
    return training is None or (is_constant(training) and not training.values.any())


def _cast(node: Node, scope: Scope) -> bool:
    dtype = known_dtype(node.inputs[0], scope)
    return dtype is not None and onnx.helper.np_dtype_to_tensor_dtype(dtype) == node.attrs["to"]


def _transpose(node: Node, scope: Scope) -> bool:
    perm = permutation(node, scope)
    return perm is not None and perm == sorted(perm)


def _same_shape(node: Node, scope: Scope) -> bool:
    """Of operators that only lay the same elements out anew: is the layout the same?

    All sizes but one must be known and equal; the last is equal then, because the number of elements is.
    """
    before, after = scope.spec(node.inputs[0]).shape, scope.spec(node.outputs[0]).shape
    if before is None or after is None or len(before) != len(after):
        return False
    open_sizes = [b for a, b in zip(before, after, strict=True) if not (isinstance(a, int) and a == b)]
    # A free size that becomes a fixed one is information that others may need.
    return not open_sizes or (len(open_sizes) == 1 and not isinstance(open_sizes[0], int) and 0 not in before)


def _slice(node: Node, scope: Scope) -> bool:
    names = ("starts", "ends", "axes", "steps")
    starts, ends, axes, steps = (integers(node, name, i) for i, name in enumerate(names, 1))
    hidden = (_is_given(node, 3) and axes is None) or (_is_given(node, 4) and steps is None)
    if starts is None or ends is None or hidden or any(step != 1 for step in steps or ()):
        return False
    shape = scope.spec(node.inputs[0]).shape
    for axis, start, end in zip(axes or range(len(starts)), starts, ends, strict=True):
        size = shape[axis] if shape is not None else None
        if not isinstance(size, int):
            size = _TO_THE_END
        if (start != 0 and start > -size) or end < size:
            return False
    return True


def _pad(node: Node, scope: Scope) -> bool:
    pads = integers(node, "pads", 1)
    return pads is not None and not any(pads)


def _tile(node: Node, scope: Scope) -> bool:
    repeats = integers(node, "repeats", 1)
    return repeats is not None and all(r == 1 for r in repeats)


def _expand(node: Node, scope: Scope) -> bool:
    target, shape = integers(node, "shape", 1), scope.spec(node.inputs[0]).shape
    if target is None or shape is None or len(target) > len(shape):
        return False
    return all(t in (1, s) for t, s in zip(reversed(target), reversed(shape), strict=False))


def _neutral(value: float) -> Rule:
    """x * 1, x / 1, x + 0, x - 0: the second operand is one element that does nothing, and adds no axes."""

    def holds(node: Node, scope: Scope) -> bool:
        other = node.inputs[1]
        if not is_constant(other) or other.dtype.kind not in "fiu" or np.prod(other.shape, dtype=int) != 1:
            return False
        rank = len(scope.spec(node.inputs[0]).shape or ())
        return len(other.shape) <= rank and bool((np.asarray(other.values) == value).all())

    return holds


_RULES: dict[str, Rule] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _same_shape,
    "Flatten": _same_shape,
    "Squeeze": _same_shape,
    "Slice": _slice,
    "Pad": _pad,
    "Tile": _tile,
    "Expand": _expand,
    "Concat": _alone,
    "Sum": _alone,
    "Max": _alone,
    "Min": _alone,
    "Mean": _alone,
    "Mul": _neutral(1),
    "Div": _neutral(1),
    "Add": _neutral(0),
    "Sub": _neutral(0),
}
