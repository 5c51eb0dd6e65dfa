"""A layer that may be made of several smaller ones, whichever operator spells it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.pass_ import Skip, label
from onnxopt.graph.decoding import already
from onnxopt.graph.ir import Constant, Graph, Node, Scope, Tensor, is_constant
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.runtime.audit import INTEGER_KERNELS

# Fewer parameters than this are not worth a second node.
_SMALL = 4096
_FLOATS = (np.float16, np.float32, np.float64)
_CODED = INTEGER_KERNELS | {"MatMulNBits"}


@dataclass(frozen=True)
class Site:
    """Its weights are input number ``at``; what they are multiplied with, or the indices of a table, ``into``."""

    node: Node
    graph: Graph
    at: int

    @property
    def into(self) -> int:
        return 1 - self.at

    @property
    def x(self) -> Tensor:
        tensor: Tensor = self.node.inputs[self.into]
        return tensor

    @property
    def weight(self) -> Constant:
        tensor: Constant = self.node.inputs[self.at]
        return tensor

    @property
    def convolves(self) -> bool:
        return bool(self.node.op == "Conv")

    @property
    def is_table(self) -> bool:
        return bool(self.node.op == "Gather")

    @property
    def kernel(self) -> tuple[int, ...]:
        """The sides of a convolution's kernel; none of another layer."""
        return tuple(map(int, self.weight.shape[2:])) if self.convolves else ()

    @property
    def by_output(self) -> bool:
        """Are the weights (outputs, inputs) as they are stored, rather than (inputs, outputs)?"""
        return self.convolves or (not self.is_table and self._transposes(self.at) == bool(self.at))

    def _transposes(self, at: int) -> bool:
        """Does it read input number ``at`` transposed?"""
        return bool(self.node.op == "Gemm" and self.node.attrs.get(("transA", "transB")[at], 0))

    @property
    def sizes(self) -> tuple[int, int]:
        """(outputs, inputs); of a convolution, channels."""
        first, second = self.weight.shape[:2]
        return (first, second) if self.by_output else (second, first)

    @property
    def unfolded(self) -> tuple[int, int, int, int]:
        """(outputs, inputs, height, width): the kernel as a plane, whatever its dimensions."""
        kernel = (1,) * (2 - len(self.kernel)) + self.kernel
        return (*self.sizes, kernel[0], prod(kernel[1:]))

    @property
    def width(self) -> int:
        """Over how many inputs x kernel it sums."""
        return prod(self.unfolded[1:])

    def matrix(self) -> Floats:
        """The weights as (outputs, inputs x kernel), without alpha."""
        values = np.asarray(self.weight.values, np.float64)
        return np.asarray(values.reshape(len(values), -1) if self.by_output else values.T)

    def affine(self) -> tuple[Floats, Floats]:
        """Weights (outputs, inputs x kernel), alpha in them, and bias (outputs,), of a layer that can be solved for."""
        bias = self._bias
        shift = np.zeros(1) if bias is None else np.float64(self.node.attrs.get("beta", 1.0)) * bias.values
        return self.matrix() * self.node.attrs.get("alpha", 1.0), np.broadcast_to(shift.reshape(-1), self.sizes[:1])

    def read(self, x: Array) -> Array:
        """Values of ``x`` with the inputs on the last axis, of convolutions as they are."""
        columns = not self.convolves and self._transposes(self.into) == bool(self.at)
        return np.swapaxes(x, -1, -2) if columns and x.ndim > 1 else x

    def write(self, y: Array) -> Array:
        """Values of what it makes with the outputs on the last axis, of convolutions as they are."""
        return np.swapaxes(y, -1, -2) if self.at == 0 and y.ndim > 1 else y

    def has_bias(self, model: Model) -> bool:
        """Can it get another bias without another node?"""
        return bool(self.node.op == "Gemm") if self.at == 0 else unrolled.has_bias(model, self.node)

    @property
    def solvable(self) -> bool:
        """Can it be solved for by what reaches it, bias and all?"""
        if self.is_table or self.width > unrolled.WIDEST:
            return False
        bias = self._bias
        if bias is None or not is_constant(bias):
            return bias is None
        size, along = bias.values.size, (1, 1, *bias.shape)[-2 if self.at == 0 else -1]
        return bool(size == 1 or size == self.sizes[0] == along)

    @property
    def _bias(self) -> Tensor | None:
        return self.node.inputs[2] if len(self.node.inputs) > 2 and not self.node.inputs[2].is_empty() else None


def find(model: Model, skips: list[Skip], *, tables: bool) -> list[Site]:
    """The layers that can be split; those that cannot go to ``skips``, with the reason."""
    found = []
    for graph in model.graphs():
        scope = Scope(graph)
        skips += [Skip(label(n), "its weights are integers already") for n in graph.nodes if _is_coded(n, scope)]
        skips += [Skip(label(n), f"its weights are {how}") for n in graph.nodes if (how := _stored(n))]
        for site in filter(None, (_site(node, graph) for node in graph.nodes)):
            if site.is_table and (not tables or len(site.weight.shape) != 2 or site.weight.dtype not in _FLOATS):
                continue
            if why := _fault(site, scope):
                skips.append(Skip(label(site.node), why))
            else:
                found.append(site)
    return found


def _is_coded(node: Node, scope: Scope) -> bool:
    """Does it multiply with weights that are stored as integers?"""
    if node.op in _CODED:
        return True
    if not node.is_standard or node.op not in ("Conv", "Gemm", "MatMul"):
        return False
    makers = [scope.producer(t) for t in node.inputs[:2]]
    return any(m is not None and m.op == "DequantizeLinear" and is_constant(m.inputs[0]) for m in makers)


def _stored(node: Node) -> str:
    """How a product's weights are stored, if in few bits."""
    product = node.is_standard and node.op in ("Conv", "Gemm", "MatMul")
    return next(filter(None, map(already, node.inputs[:2])), "") if product else ""


def _site(node: Node | None, graph: Graph) -> Site | None:
    """The node, if one of the two factors that it multiplies is constant, or the table that it looks up."""
    if node is None or not node.is_standard or node.op not in ("Conv", "Gemm", "MatMul", "Gather"):
        return None
    constant = [is_constant(t) for t in node.inputs[:2]]
    if constant[0] == constant[1] or (node.op == "Conv" and constant[0]) or (node.op == "Gather" and constant[1]):
        return None
    return Site(node, graph, constant.index(True))


def _fault(site: Site, scope: Scope) -> str:
    """Why a layer cannot be split; empty if it can."""
    weight, shape = site.weight, site.weight.shape
    if site.convolves and site.node.attrs.get("group", 1) != 1:
        return "it convolves in groups"
    if not site.convolves and len(shape) != 2:
        return "its weights are not a matrix"
    if weight.dtype not in _FLOATS:
        return f"its weights are of type {weight.dtype}"
    if len(weight.outputs) != 1:
        return "its weights are shared with another node"
    if prod(shape) < _SMALL:
        return f"it is small: {prod(shape)} parameters"
    if site.is_table and site.node.attrs.get("axis", 0) not in (0, -2):
        return "it looks up columns"
    if _is_factor(site, scope):
        return "it is one of the factors of a layer already"
    return ""


def _is_factor(site: Site, scope: Scope) -> bool:
    """Is another layer right before or behind, with fewer channels in between than at either end? Of convolutions and
    tables, any that is right beside them."""
    inner, y = site.x, site.node.outputs[0]
    before = _site(scope.producer(inner), site.graph) if scope.used_once(inner) else None
    behind = _site(y.outputs[0], site.graph) if scope.used_once(y) else None
    behind = behind if behind is not None and behind.x is y and not behind.is_table else None
    if site.convolves:
        return any(n is not None and n.convolves for n in (before, behind))
    if before is not None and before.is_table:
        return bool(before.weight.shape[1] < site.sizes[0])
    if before is not None and _bottleneck(before, site):
        return True
    return behind is not None and (_bottleneck(site, behind) if not site.is_table else behind.sizes[0] > site.sizes[0])


def _bottleneck(first: Site, second: Site) -> bool:
    if any(s.convolves or len(s.weight.shape) != 2 for s in (first, second)):
        return False
    return first.sizes[1] > first.sizes[0] < second.sizes[0]
