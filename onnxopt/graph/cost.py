"""What a model costs: parameters, bytes of weights, and multiply-accumulate operations (MACs), per node and in all.

MACs are those of convolutions, matrix products, recurrent cells and attention, float or integer; other operators count
as 0. Parameters are the numbers that were trained: elements of the constants that are neither shape arithmetic (int64,
bool, text) nor scales and zero points, so that quantizing a model leaves their count as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from onnxopt.graph.ir import Constant, Node, Tensor
from onnxopt.graph.model import Model

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NodeCost:
    """One node. ``parameters`` and ``weight_bytes`` are of the constants that it is the first to compute with.

    ``macs`` is None where they cannot be counted: shapes unknown, or an operator of an unknown domain.
    """

    node: str
    op: str
    parameters: int
    weight_bytes: int
    macs: int | None


@dataclass(frozen=True)
class OperatorCost:
    """All nodes of one operator type together, or all there are. ``macs`` is None if those of any of them are."""

    op: str
    count: int
    parameters: int
    weight_bytes: int
    macs: int | None


@dataclass(frozen=True)
class Cost:
    """A whole model. Constants that several nodes share count once; both branches of an If count."""

    nodes: tuple[NodeCost, ...]
    total: OperatorCost

    @property
    def operators(self) -> tuple[OperatorCost, ...]:
        """By operator type: the most MACs first, then the most bytes, then the most nodes."""
        groups: dict[str, list[NodeCost]] = {}
        for node in self.nodes:
            groups.setdefault(node.op, []).append(node)
        rows = [_together(op, group) for op, group in groups.items()]
        return tuple(sorted(rows, key=lambda r: (-(r.macs or 0), -r.weight_bytes, -r.count, r.op)))


def cost(model: Model, shapes: Mapping[str, Shape]) -> Cost:
    """Count a model. ``shapes`` are those of its tensors in one run, by name, as observed.

    Weights behind a DequantizeLinear, Cast or the like count for the node that computes with them.
    """
    owned: dict[int, list[tuple[int, int]]] = {}  # by node: parameters and bytes of each constant
    seen: set[int] = set()
    nodes = list(model.nodes())
    for node in nodes:
        for i, tensor in enumerate(node.inputs):
            if isinstance(tensor, Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                owned.setdefault(id(_user(node)), []).append((trained(node, i, tensor), tensor.nbytes))
    rows = []
    for node in nodes:
        weights = owned.get(id(node), [])
        rows.append(
            NodeCost(node.name, node.op, sum(p for p, _ in weights), sum(b for _, b in weights), _macs(node, shapes))
        )
    total = _together("total", rows)
    unread = [c for c in model.constants() if id(c) not in seen]
    return Cost(
        tuple(rows),
        replace(
            total,
            parameters=total.parameters + sum(map(_parameters, unread)),
            weight_bytes=total.weight_bytes + sum(c.nbytes for c in unread),
        ),
    )


def _together(op: str, group: Sequence[NodeCost]) -> OperatorCost:
    return OperatorCost(
        op,
        len(group),
        sum(n.parameters for n in group),
        sum(n.weight_bytes for n in group),
        _sum(n.macs for n in group),
    )


def _sum(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def trained(node: Node, i: int, constant: Constant) -> int:
    """How many parameters a constant holds for the node that reads it as its input ``i``."""
    if i in _QUANTIZATION.get(node.op, ()):
        return 0
    if node.op == "MatMulNBits" and i == 1:  # several to a byte
        return int(node.attrs["K"]) * int(node.attrs["N"])
    return _parameters(constant)


def _parameters(constant: Constant) -> int:
    return 0 if constant.dtype in _NOT_TRAINED else prod(map(int, constant.shape))


def _user(node: Node) -> Node:
    """The node that computes with what this one only carries on from constants: itself, or one further down."""
    came: Tensor | None = None
    while node.op in _CARRIERS and all(t is came or isinstance(t, Constant) or t.is_empty() for t in node.inputs):
        readers = node.outputs[0].outputs
        if not readers:
            break
        came, node = node.outputs[0], readers[0]
    return node


_NOT_TRAINED = {np.dtype(np.int64), np.dtype(np.bool_), np.dtype(np.object_)}
_CARRIERS = {"DequantizeLinear", "Cast", "Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze"}
# Inputs that hold scales and zero points.
_QUANTIZATION: dict[str, tuple[int, ...]] = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "DynamicQuantizeMatMul": (2, 3),
    "DynamicQuantizeLSTM": (8, 9, 10, 11),
    "MatMulNBits": (2, 3),
}


def _macs(node: Node, shapes: Mapping[str, Shape]) -> int | None:
    """MACs of one node, or None where they cannot be counted."""
    if not node.is_standard and node.domain not in ("com.microsoft", "ai.onnx.ml"):
        return None
    count = _FORMULAS.get(node.op)
    try:
        return count(_Shapes(node, shapes)) if count is not None else 0
    except LookupError:
        return None


class _Shapes:
    """The shapes around one node; LookupError for one that is not known."""

    def __init__(self, node: Node, shapes: Mapping[str, Shape]) -> None:
        self.node = node
        self._shapes = shapes

    def input(self, i: int) -> Shape:
        return self._of(self.node.inputs[i])

    def output(self, i: int = 0) -> Shape:
        return self._of(self.node.outputs[i])

    def _of(self, tensor: Tensor) -> Shape:
        shape = self._shapes.get(tensor.name, tensor.shape)
        if shape is None or not all(isinstance(d, int | np.integer) for d in shape):
            raise LookupError(tensor.name)
        return tuple(map(int, shape))


Formula = Callable[[_Shapes], int]


def _convolution(weight: int) -> Formula:
    """Every output element sums over one filter."""
    return lambda s: prod(s.output()) * prod(s.input(weight)[1:])


def _transposed_convolution(s: _Shapes) -> int:
    """Every input element is spread through one filter."""
    return prod(s.input(0)) * prod(s.input(1)[1:])


def _product(s: _Shapes) -> int:
    """Every output element sums over the last axis of the first factor (the one before, where that is transposed)."""
    a = s.input(0)
    return prod(s.output()) * a[-2 if s.node.attrs.get("transA") else -1]


def _recurrent(s: _Shapes) -> int:
    """Every step of every sequence goes through W (directions, gates, inputs) and R (directions, gates, hidden)."""
    return prod(s.input(0)[:2]) * (prod(s.input(1)) + prod(s.input(2)))


def _einsum(s: _Shapes) -> int:
    """Two factors: one product for every combination of the labels."""
    equation = str(s.node.attrs["equation"]).replace(" ", "")
    factors = equation.partition("->")[0].split(",")
    if len(factors) != 2 or "." in equation:
        raise LookupError(equation)
    sizes: dict[str, int] = {}
    for i, labels in enumerate(factors):
        for label, size in zip(labels, s.input(i), strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return prod(sizes.values())


def _attention(s: _Shapes) -> int:
    """Scores: every element of the queries with every key. Then every element of the result over every value."""
    if not s.node.is_standard:
        raise LookupError(s.node.domain)
    past = s.node.inputs[4:5]
    keys = s.input(1)[-2] + (s.input(4)[-2] if past and not past[0].is_empty() else 0)
    return (prod(s.input(0)) + prod(s.output())) * keys


def _uncounted(s: _Shapes) -> int:
    raise LookupError(s.node.op)


_FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(("Conv", "ConvInteger", "FusedConv", "NhwcFusedConv", "DeformConv"), _convolution(1)),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed_convolution,
    **dict.fromkeys(
        ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "QGemm", "FusedGemm", "FusedMatMul"), _product
    ),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits"), _product),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent),
    "Einsum": _einsum,
    "Attention": _attention,
    **dict.fromkeys(("MultiHeadAttention", "GroupQueryAttention", "QAttention"), _uncounted),
}

# The operators that this file counts MACs of.
PRODUCTS = frozenset(_FORMULAS)
