"""Write a placement into the graph: QuantizeLinear and DequantizeLinear around what runs in integers.

A tensor that is integer as soon as it is made keeps its name as the float value that is read back from the integers:

    maker -> t_float -> QuantizeLinear -> t_quantized -> DequantizeLinear -> t -> readers

so that whoever reads it, bodies and the graph's outputs included, need not be touched. A tensor that is made as float
gets a rounded copy for its integer readers only. A node that only moves numbers moves the integers themselves. The
runtime melts a node between DequantizeLinear and QuantizeLinear into one integer kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from types import MappingProxyType

import numpy as np

from onnxopt.core.pass_ import label
from onnxopt.graph.ir import Constant, Node, Tensor, Variable, is_constant, replace_uses
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.numerics.qparams import (
    INT8,
    UINT8,
    QParams,
    QuantType,
    qparams_asymmetric,
    quantize,
)
from onnxopt.numerics.ranges import Range
from onnxopt.quantization.eligible import clamp_limits, is_layer
from onnxopt.quantization.input_grid import Aligned, Grid
from onnxopt.quantization.kernels import CLAMPS, KEPT_APART, KERNELS, Kernel, Kind
from onnxopt.quantization.placement import Placement, Unit
from onnxopt.quantization.weights import LayerWeights

# Of a tensor that no clamp follows.
NO_LIMITS = (-np.inf, np.inf)
_COMPUTES = Kernel(Kind.LIGHT)
# The quick integer convolution takes input channels by fours.
_CHANNEL_STEP = 4


def activation_qparams(values: Range, limits: tuple[float, float] = NO_LIMITS, qtype: QuantType = UINT8) -> QParams:
    """Parameters for a range of values; no integer stands for a number outside ``limits``.

    The runtime drops a Relu or Clip in front of a quantizer only if it could change nothing.
    """
    scale, zero_point = qparams_asymmetric(*values, qtype)
    below, above = np.float32(int(zero_point) - qtype.minimum), np.float32(qtype.maximum - int(zero_point))
    lo, hi = map(np.float32, limits)
    if below > 0:
        scale = np.minimum(scale, -lo / below)
    if above > 0:
        scale = np.minimum(scale, hi / above)
    while above * scale > hi or -below * scale < lo:
        scale = np.nextafter(scale, np.float32(0))
    return QParams(np.asarray(scale, np.float32), zero_point)


def choose(placement: Placement, ranges: Mapping[str, Range], qtype: QuantType = UINT8) -> dict[str, QParams]:
    """Scale and zero point of every tensor to be quantized, by name; ``ranges`` are those of the placement's roots."""
    limits = limits_of(placement)
    chosen = {r: activation_qparams(ranges[r], limits.get(r, NO_LIMITS), qtype) for r in set(placement.roots.values())}
    return {name: chosen[root] for name, root in placement.roots.items()}


def limits_of(placement: Placement) -> dict[str, tuple[float, float]]:
    """What the clamps that quantizers take over let through, by tensor."""
    return {t.name: clamp_limits(u.clamp) for u in placement.units if u.clamp for t in u.writes}


def missing_channels(unit: Unit, placement: Placement, opset: int) -> int:
    """How many more input channels, of zeros, make a convolution of rounded floats quicker: for colours, mostly."""
    node, (source,) = unit.node, unit.reads
    if node.op != "Conv" or node.attrs.get("group", 1) != 1 or source.name in placement.made:
        return 0
    channels = int(node.inputs[1].shape[1])
    missing = -channels % _CHANNEL_STEP
    return missing if missing <= channels and opset >= KERNELS["Pad"].since else 0


def write(
    model: Model,
    placement: Placement,
    params: Mapping[str, QParams],
    weights: Mapping[str, LayerWeights],
    aligned: Mapping[str, Aligned] = MappingProxyType({}),
) -> None:
    """Change the model. ``params`` are from ``choose``, by tensor; ``weights`` are those of the placement's layers, of
    which those without keep their own; ``aligned`` are scaled and shifted inputs that a quantizer by channel can make
    integers of."""
    writer = _Writer(model, placement, params, weights, aligned)
    moved = {t.name for u in placement.units if u.moves for t in u.writes}
    for name, tensor in {**placement.read, **placement.made}.items():
        if name not in moved:
            writer.round(tensor)
    for unit in placement.units:
        if unit.moves:
            writer.move(unit)
        elif unit.kernel.kind is not Kind.LAYER:
            writer.constants(unit)
        elif label(unit.node) in weights:
            writer.parameters(unit)
        if unit.node.op == "AveragePool":
            writer.convolve(unit)


@dataclass
class _Writer:
    model: Model
    placement: Placement
    params: Mapping[str, QParams]
    weights: Mapping[str, LayerWeights]
    aligned: Mapping[str, Aligned]
    integers: dict[str, Variable] = field(default_factory=dict)  # by the name of the tensor that they stand for
    shared: dict[tuple[object, ...], Tensor] = field(default_factory=dict)  # scales, zero points, weights by content

    def round(self, tensor: Variable) -> None:
        """Quantize a tensor for those who read it as integers, or for all if it is made so."""
        params = self.params[tensor.name]
        integers = self._integers(tensor)
        if tensor.name in self.placement.made:
            exact = self._like(tensor, "float")
            maker = tensor.inputs[0]
            maker.outputs[_index(maker.outputs, tensor)] = exact
            self._node("QuantizeLinear", exact, integers, params)
            self._node("DequantizeLinear", integers, tensor, params)
        else:
            rounded = self._like(tensor, "rounded")
            replace_uses(tensor, rounded, [u.node for u in self.placement.readers(tensor)])
            aligned = self.aligned.get(tensor.name)
            if aligned is not None and aligned.source is not None:
                self._quantize_by_channel(aligned.source, aligned.grid, integers, params)
            else:
                self._node("QuantizeLinear", self._apart(tensor), integers, params)
            self._node("DequantizeLinear", integers, rounded, params)

    def _quantize_by_channel(self, source: str, grid: Grid, integers: Variable, params: QParams) -> None:
        """The integers of a grid, from what is not scaled and shifted yet."""
        zero = (np.rint(grid.zero) + float(params.zero_point)).astype(params.zero_point.dtype)
        by_channel = QParams(grid.step.astype(np.float32), zero)
        self._node("QuantizeLinear", self.model.variables()[source], integers, by_channel, 1)

    def _apart(self, tensor: Variable) -> Variable:
        """The tensor, or a copy of it that keeps the runtime from joining its maker with the quantizer.

        A quantizer goes upstream past what only moves numbers, and past a clamp. Of a layer with float weights between
        integers the runtime makes an integer one by itself, with one scale for all weights. A sum of one operand is not
        optimized away.
        """
        source: Tensor = tensor
        while source.inputs and (
            source.inputs[0].op in CLAMPS or KERNELS.get(source.inputs[0].op, _COMPUTES).kind is Kind.MOVE
        ):
            source = source.inputs[0].inputs[0]
        maker = source.inputs[0] if source.inputs else None
        if maker is None or not (maker.op in KEPT_APART or self._is_float_layer(maker)):
            return tensor
        copy = self._like(tensor, "apart")
        name = self.model.fresh_name(f"{tensor.name}_Sum")
        self.model.graph.nodes.append(Node("Sum", name, [tensor], [copy]))
        return copy

    def _is_float_layer(self, node: Node) -> bool:
        """Does it read integers, and have float weights?"""
        return is_layer(node) and node.inputs[0].name in self.placement.made and is_constant(node.inputs[1])

    def move(self, unit: Unit) -> None:
        """Let a node that computes nothing work on the integers."""
        node = unit.node
        params = self.params[unit.reads[0].name]
        source, *others = node.inputs
        if node.op == "Pad":
            others[1:2] = [self._constant(f"{source.name}_zero_point", params.zero_point)]
        node.inputs = [self.integers[unit.reads[0].name], *others]
        for i, tensor in enumerate(unit.writes):
            integers = self._integers(tensor)
            node.outputs[i] = integers
            self._node("DequantizeLinear", integers, tensor, params)

    def constants(self, unit: Unit) -> None:
        """Quantize the constant operands of a node without weights, to the type of the others."""
        qtype = UINT8 if self.params[unit.reads[0].name].zero_point.dtype == UINT8.dtype else INT8
        for i, tensor in enumerate(unit.node.inputs):
            if is_constant(tensor):
                params = qparams_asymmetric(tensor.values.min(), tensor.values.max(), qtype)
                unit.node.inputs[i] = self._stored(tensor, quantize(tensor.values, params, qtype), params)

    def convolve(self, unit: Unit) -> None:
        """Write an average as a convolution of each channel with equal weights."""
        node, channels = unit.node, self.placement.sizes[unit.reads[0].name][1]
        window = node.attrs["kernel_shape"]
        ones = self._constant("ones", np.ones((channels, 1, *window), INT8.dtype))
        weight = Variable(self.model.fresh_name(f"{label(node)}_weight"), np.dtype(np.float32), ones.shape)
        params = QParams(np.array(1 / prod(window), np.float32), np.array(0, INT8.dtype))
        self._node("DequantizeLinear", ones, weight, params)
        node.op = "Conv"
        node.inputs = [node.inputs[0], weight]
        kept = {k: v for k, v in node.attrs.items() if k not in ("ceil_mode", "count_include_pad")}
        node.attrs = kept | {"group": channels}

    def parameters(self, unit: Unit) -> None:
        """Give a layer its integer weights, and its bias on the scale of their products with the input."""
        node, (source,) = unit.node, unit.reads
        found, weight, rounded = self.weights[label(node)], node.inputs[1], node.inputs[0]
        steps, bias = found.steps, found.bias
        if node.op == "MatMul":
            self._add_behind(node, bias)
            bias = np.zeros_like(bias)
        if missing := missing_channels(unit, self.placement, self.model.opset):
            steps, rounded = self._widen(steps, source, missing)
        node.inputs = [rounded, self._stored(weight, steps, found.params, found.axis)]
        if bias.any():
            node.inputs.append(self._bias(f"{label(node)}.bias", replace(found, bias=bias)))

    def _widen(self, steps: Array, source: Variable, missing: int) -> tuple[Array, Variable]:
        """Weights and the integers that they meet with ``missing`` channels of zeros more, the latter read back."""
        params, integers = self.params[source.name], self.integers[source.name]
        wide, rounded = (Variable(self.model.fresh_name(f"{t.name}_wide"), t.dtype) for t in (integers, source))
        added = np.zeros((2, steps.ndim), np.int64)
        added[1, 1] = missing
        pads = [self._constant(f"{wide.name}_pads", added.reshape(-1)), self._constant("zero_point", params.zero_point)]
        self.model.graph.nodes.append(Node("Pad", self.model.fresh_name(f"{wide.name}_Pad"), [integers, *pads], [wide]))
        self._node("DequantizeLinear", wide, rounded, params)
        return np.pad(steps, added.T), rounded

    def _add_behind(self, node: Node, correction: Floats) -> None:
        """Take a correction into the constants that are added to a product, if they are."""
        if slot := constant_behind(node):
            add, i = slot
            values = add.inputs[i].values + correction.astype(np.float32)
            add.inputs[i] = self.model.constant(f"{add.inputs[i].name}_corrected", values)

    def _bias(self, stem: str, weights: LayerWeights) -> Variable:
        steps, params = weights.int32_bias()
        rounded = Variable(self.model.fresh_name(stem), np.dtype(np.float32), steps.shape)
        self._node("DequantizeLinear", self.model.constant(f"{stem}_quantized", steps), rounded, params, 0)
        return rounded

    def _stored(self, constant: Constant, steps: Array, params: QParams, axis: int | None = None) -> Tensor:
        """A constant as integers, read back; made once for all nodes that want the same."""
        key = (constant.name, params.scale.tobytes(), axis, steps.tobytes())
        if key not in self.shared:
            axis = axis if params.scale.ndim else None
            rounded = Variable(self.model.fresh_name(f"{constant.name}_rounded"), constant.dtype, steps.shape)
            integers = self.model.constant(f"{constant.name}_quantized", steps)
            self._node("DequantizeLinear", integers, rounded, params, axis)
            self.shared[key] = rounded
        return self.shared[key]

    def _node(self, op: str, source: Tensor, target: Tensor, params: QParams, axis: int | None = None) -> None:
        attributes = {} if axis is None or params.scale.ndim == 0 else {"axis": axis}
        stem = (target if op == "QuantizeLinear" else source).name
        constants = [self._constant(f"{stem}_{kind}", value) for kind, value in params._asdict().items()]
        if is_constant(source) and params.zero_point.dtype == INT8.dtype:
            # Each its own: with session.x64quantprecision=1 ONNX Runtime changes them with the weights, one by one.
            constants[1] = self.model.constant(f"{stem}_zero_point", params.zero_point)
        name = self.model.fresh_name(f"{stem}_{op}")
        self.model.graph.nodes.append(Node(op, name, [source, *constants], [target], attributes))

    def _constant(self, stem: str, value: Array) -> Tensor:
        key = (value.dtype, value.shape, value.tobytes())
        if key not in self.shared:
            self.shared[key] = self.model.constant(stem, value)
        return self.shared[key]

    def _like(self, tensor: Tensor, what: str) -> Variable:
        return Variable(self.model.fresh_name(f"{tensor.name}_{what}"), tensor.dtype, tensor.shape)

    def _integers(self, tensor: Variable) -> Variable:
        dtype = self.params[tensor.name].zero_point.dtype
        result = Variable(self.model.fresh_name(f"{tensor.name}_quantized"), dtype, tensor.shape)
        self.integers[tensor.name] = result
        return result


def constant_behind(matmul: Node) -> tuple[Node, int] | None:
    """The Add that alone reads a product, and which of its operands is a constant for each column; None without."""
    (product,) = matmul.outputs
    columns = matmul.inputs[1].shape[-1]
    if [n.op for n in product.outputs] != ["Add"]:
        return None
    add = product.outputs[0]
    fits = (is_constant(t) and t.values.size == columns and t.shape[-1:] == (columns,) for t in add.inputs)
    return next(((add, i) for i, fit in enumerate(fits) if fit), None)


def _index(tensors: Sequence[Tensor], tensor: Tensor) -> int:
    return next(i for i, t in enumerate(tensors) if t is tensor)
