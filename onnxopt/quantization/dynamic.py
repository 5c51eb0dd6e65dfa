"""Layers whose input gets its scale anew at every run: no data is needed, and no range can be wrong.

    x -> DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul by both scales -> Add

The weights are signed, with one scale per output channel and zero point 0: unsigned weights run five times slower. The
runtime makes one DynamicQuantizeMatMul of it all, or of several that read one tensor a quantization and one
MatMulIntegerToFloat each; a vector that is added last melts in. An LSTM becomes the runtime's own DynamicQuantizeLSTM,
for which ONNX has no operator. A table that rows are looked up in keeps them as integers, each with its scale.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx

from onnxopt.core.pass_ import label
from onnxopt.graph.ir import Constant, Graph, Node, Tensor, Variable, is_constant
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.numerics.qparams import INT8, UINT8, quantize, weight_qparams
from onnxopt.quantization.dynamic_eligible import fault, is_candidate, is_turned, stored
from onnxopt.quantization.saturation import paired, safe_scale

_DOMAIN = "com.microsoft"

# What makes integers and scales of a weight.
_Form: TypeAlias = Callable[[Array], tuple[Array, Array]]


def quantize_layers(model: Model, layers: Collection[str], *, guard: bool = False) -> int:
    """Quantize the nodes with these labels, bodies included, where ``fault`` allows it; node names stay.

    ``guard``: give fewer bits to the channels whose products would overflow where they are added in pairs into 16 bits;
    returns how many those are.
    """
    writer = _Writer(model, guard)
    for graph in list(model.graphs()):
        for node in list(graph.nodes):
            if label(node) in layers and is_candidate(node) and not fault(node, model.opset):
                writer.write(graph, node)
    model.tidy()
    return writer.reduced


@dataclass
class _Writer:
    model: Model
    guard: bool
    reduced: int = 0
    weights: dict[tuple[Constant, _Form], tuple[Constant, Constant]] = field(default_factory=dict)
    inputs: dict[tuple[Graph, Tensor], list[Variable]] = field(default_factory=dict)
    zeros: dict[tuple[int, ...], Constant] = field(default_factory=dict)

    def write(self, graph: Graph, node: Node) -> None:
        node.name = node.name or self.model.fresh_name(f"{node.op}_{label(node)}")
        if node.op == "Gather":
            self._lookup(graph, node)
        elif node.op == "LSTM":
            self._lstm(node)
        else:
            self._product(graph, node)

    def _product(self, graph: Graph, node: Node) -> None:
        x, weight = node.inputs[:2]
        form = self._transposed if is_turned(node) else self._columns
        attrs, node.attrs = node.attrs, {}
        addend = self._addend(graph, node, attrs.get("beta", 1.0))
        if attrs.get("transA", 0):
            x = self._node(graph, "Transpose", [x], f"{x.name}_transposed", np.float32, perm=[1, 0])
        steps, scale = self._weight(stored(weight), form)
        if (alpha := attrs.get("alpha", 1.0)) != 1:
            scale = self.model.constant(scale.name, scale.values * np.float32(alpha))
        integers, x_scale, x_zero = self._input(graph, x)
        y, stem = node.outputs[0], node.outputs[0].name
        node.op = "MatMulInteger"
        node.inputs = [integers, steps, x_zero, self._zero(())]
        node.outputs = [Variable(self.model.fresh_name(f"{stem}_integers"), np.dtype(np.int32))]
        floats = self._node(graph, "Cast", list(node.outputs), f"{stem}_float", np.float32, to=onnx.TensorProto.FLOAT)
        both = self._node(graph, "Mul", [x_scale, scale], f"{stem}_scale", np.float32)
        last = [floats, both]
        if addend is not None:
            last = [self._node(graph, "Mul", last, f"{stem}_product", np.float32), addend]
        op = "Mul" if addend is None else "Add"
        graph.nodes.append(Node(op, self.model.fresh_name(f"{node.name}_{op}"), last, [y]))

    def _addend(self, graph: Graph, node: Node, beta: float) -> Tensor | None:
        """What a Gemm adds: of a constant, a vector where it is one, for only that is fused."""
        if len(node.inputs) < 3 or node.inputs[2].is_empty() or beta == 0:
            return None
        addend: Tensor = node.inputs[2]
        if is_constant(addend):
            values = addend.values * np.float32(beta)
            values = values.reshape(-1) if values.shape[:-1] == (1,) else values
            return addend if beta == 1 and values.shape == addend.shape else self.model.constant(addend.name, values)
        if beta == 1:
            return addend
        factor = self.model.constant(f"{addend.name}_beta", np.array(beta, np.float32))
        return self._node(graph, "Mul", [addend, factor], f"{addend.name}_scaled", np.float32)

    def _lstm(self, node: Node) -> None:
        node.op, node.domain = "DynamicQuantizeLSTM", _DOMAIN
        if not self.model.opset_of(_DOMAIN):
            self.model.header.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
        node.attrs.pop("layout", None)
        inputs = [*node.inputs, *(Variable.empty() for _ in range(8 - len(node.inputs)))]
        for i in (1, 2):
            inputs[i], scale = self._weight(inputs[i], self._gates)
            inputs += [scale, self._zero(tuple(scale.shape))]
        node.inputs = inputs

    def _lookup(self, graph: Graph, node: Node) -> None:
        table, indices = node.inputs
        y, stem = node.outputs[0], node.outputs[0].name
        steps, scale = self._weight(table, self._rows)
        rows = Variable(self.model.fresh_name(f"{stem}_integers"), INT8.dtype)
        node.inputs, node.outputs = [steps, indices], [rows]
        scales = self._node(graph, "Gather", [scale, indices], f"{stem}_scale", np.float32, axis=0)
        floats = self._node(graph, "Cast", [rows], f"{stem}_float", np.float32, to=onnx.TensorProto.FLOAT)
        graph.nodes.append(Node("Mul", self.model.fresh_name(f"{node.name}_Mul"), [floats, scales], [y]))

    def _weight(self, weight: Constant, form: _Form) -> tuple[Constant, Constant]:
        """Integers and scales, made once for all nodes that want them of one weight in one form."""
        key = weight, form
        if key not in self.weights:
            steps, scale = form(weight.values)
            self.weights[key] = (
                self.model.constant(f"{weight.name}_quantized", steps),
                self.model.constant(f"{weight.name}_scale", scale),
            )
        return self.weights[key]

    def _columns(self, values: Array) -> tuple[Array, Array]:
        """Of (..., inputs, outputs): one scale per output."""
        params = weight_qparams(values, -1)
        if self.guard:
            rows = np.moveaxis(values, -1, 0)
            pairs = paired(rows.reshape(-1, rows.shape[-1])).reshape(len(rows), -1, 2)
            scale = safe_scale(pairs, params.scale)
            self.reduced += int((scale != params.scale).sum())
            params = params._replace(scale=scale)
        return quantize(values, params, INT8, -1), params.scale

    def _transposed(self, values: Array) -> tuple[Array, Array]:
        """Of (outputs, inputs), turned: one scale per output."""
        return self._columns(values.T)

    def _gates(self, values: Array) -> tuple[Array, Array]:
        """Of (directions, 4 x cells, inputs), turned to (directions, inputs, 4 x cells): one scale per gate."""
        directions, outputs, inputs = values.shape
        steps, scale = self._columns(values.reshape(-1, inputs).T)
        turned = steps.reshape(inputs, directions, outputs).swapaxes(0, 1)
        return np.ascontiguousarray(turned), scale.reshape(directions, outputs)

    def _rows(self, values: Array) -> tuple[Array, Array]:
        """Of (entries, ...): one scale per entry, with as many axes."""
        params = weight_qparams(values, 0)
        return quantize(values, params, INT8, 0), params.scale.reshape(-1, *(1,) * (values.ndim - 1))

    def _input(self, graph: Graph, x: Tensor) -> list[Variable]:
        """Integers, scale and zero point of what layers of one graph read; one quantization serves them all."""
        key = graph, x
        if key not in self.inputs:
            kinds = (("quantized", UINT8.dtype), ("scale", np.dtype(np.float32)), ("zero_point", UINT8.dtype))
            made = [Variable(self.model.fresh_name(f"{x.name}_{kind}"), dtype) for kind, dtype in kinds]
            name = self.model.fresh_name(f"{x.name}_DynamicQuantizeLinear")
            graph.nodes.append(Node("DynamicQuantizeLinear", name, [x], made))
            self.inputs[key] = made
        return self.inputs[key]

    def _zero(self, shape: tuple[int, ...]) -> Constant:
        if shape not in self.zeros:
            self.zeros[shape] = self.model.constant("weight_zero_point", np.zeros(shape, INT8.dtype))
        return self.zeros[shape]

    def _node(self, graph: Graph, op: str, inputs: list[Tensor], stem: str, dtype: type, **attrs: object) -> Variable:
        made = Variable(self.model.fresh_name(stem), np.dtype(dtype))
        graph.nodes.append(Node(op, self.model.fresh_name(f"{stem}_{op}"), inputs, [made], dict(attrs)))
        return made
