"""How the weights of two nodes differ, seen through a DequantizeLinear as what they stand for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxopt.check.matching import Digests
from onnxopt.core.quality import Comparison
from onnxopt.graph.ir import Constant, Node, Tensor, is_constant
from onnxopt.graph.layer import dequantized
from onnxopt.graph.signature import Array
from onnxopt.report.difference import WeightChange, WeightDifference


@dataclass(frozen=True)
class _Weight:
    """A constant, or what a DequantizeLinear ``source`` of constants makes of it."""

    stored: Constant
    source: Node | None

    def identity(self, digest: Digests) -> tuple[str, ...]:
        if self.source is None:
            return (digest(self.stored),)
        return *(digest(t) for t in self.source.inputs if is_constant(t)), str(sorted(self.source.attrs.items()))

    def values(self) -> Array:
        return np.asarray(self.stored.values) if self.source is None else dequantized(self.source)

    def __str__(self) -> str:
        return f"{np.dtype(self.stored.dtype)}[{','.join(map(str, self.stored.shape))}]"


def weight_differences(a: Node, b: Node, digest: Digests) -> Iterator[WeightDifference]:
    """The constant inputs of two nodes that differ, in the order of the inputs."""
    if _is_read_through(a) and _is_read_through(b):
        return  # told of the nodes that read what it makes
    for i in range(max(len(a.inputs), len(b.inputs))):
        x, y = (_weight(n.inputs[i]) if i < len(n.inputs) else None for n in (a, b))
        if x is not None and y is not None:
            if x.identity(digest) != y.identity(digest):
                yield _difference(i, x, y)
        elif x is not None and _absent(b, i):
            yield WeightDifference(i, "removed", str(x), "")
        elif y is not None and _absent(a, i):
            yield WeightDifference(i, "added", "", str(y))
        elif x is not None or y is not None:
            yield WeightDifference(i, "changed", str(x or "computed"), str(y or "computed"))


def _difference(i: int, x: _Weight, y: _Weight) -> WeightDifference:
    texts = str(x), str(y)
    if x.stored.shape != y.stored.shape:
        return WeightDifference(i, "reshaped", *texts)
    change: WeightChange = "retyped" if x.stored.dtype != y.stored.dtype else "changed"
    a, b = x.values(), y.values()
    if a.dtype.kind not in "fiubV" or b.dtype.kind not in "fiubV":
        return WeightDifference(i, change, *texts)
    # As numbers, whatever they are: not as names, as integer outputs of models are.
    numbers = [v if v.dtype.kind in "fV" else v.astype(np.float64) for v in (a, b)]
    if not _same_where_undefined(*numbers):
        return WeightDifference(i, change, *texts, math.inf, None, -math.inf)
    sums = Comparison()
    sums.add({}, {"": numbers[0]}, {"": numbers[1]})
    (found,) = sums.result(0).outputs
    largest = float(np.abs(numbers[0]).max(initial=0.0, where=np.isfinite(numbers[0])))
    relative = found.max_error / largest if largest else None
    return WeightDifference(i, change, *texts, found.max_error, relative, found.sqnr_db)


def _same_where_undefined(a: Array, b: Array) -> bool:
    """Are NaN and infinities the same ones? These are no part of a signal or an error."""
    odd = ~(np.isfinite(a) & np.isfinite(b))
    return np.array_equal(a[odd].astype(np.float64), b[odd].astype(np.float64), equal_nan=True)


def _weight(tensor: Tensor) -> _Weight | None:
    if is_constant(tensor):
        return _Weight(tensor, None)
    source = tensor.inputs[0] if tensor.inputs else None
    return _Weight(source.inputs[0], source) if source is not None and _is_weight(source) else None


def _is_weight(node: Node) -> bool:
    standard = node.op == "DequantizeLinear" and node.is_standard
    return standard and all(is_constant(t) or t.is_empty() for t in node.inputs)


def _is_read_through(node: Node) -> bool:
    return _is_weight(node) and bool(node.outputs[0].outputs)


def _absent(node: Node, i: int) -> bool:
    return i >= len(node.inputs) or bool(node.inputs[i].is_empty())
