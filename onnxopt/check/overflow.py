"""Layers whose products overflow on x86 processors without VNNI: told from the file alone, whoever made it.

Which kernels add products in pairs was found by running each operator under onnxruntime 1.31 with its kernels for AVX2,
with weights of 127 and inputs of 255: all that multiply uint8 by int8, whether written as such or made of the layers
between DequantizeLinear and QuantizeLinear, but for ConvInteger, depthwise convolutions, and products of int8 by int8
(which a pair of QuantizeLinear and DequantizeLinear is turned away from: its int8 becomes uint8 when the model loads).
What makes a pair overflow is in ``onnxopt.quantization.saturation``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from onnxopt.graph import shapes
from onnxopt.graph.ir import Node, Scope, Tensor, is_constant
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.quantization.saturation import LIMIT, can_saturate, heaviest, pairs
from onnxopt.runtime.islands import dequantizer, obstacle, quantizer, type_read

# The integer operators: which of their inputs are the two factors, and the zero points of these.
_FACTORS = {
    "QLinearConv": (0, 3, 2, 5),
    "QLinearMatMul": (0, 3, 2, 5),
    "QGemm": (0, 3, 2, 5),
    "MatMulInteger": (0, 1, 2, 3),
    "MatMulIntegerToFloat": (0, 1, 4, 5),
    "QAttention": (0, 1, 6, 7),
    # These quantize what they read themselves, unsigned.
    "DynamicQuantizeMatMul": (0, 1, None, 3),
    "DynamicQuantizeLSTM": (0, 1, None, 9),
}
_LSTM_RECURRENT = 2
_QDQ = ("Conv", "Gemm", "MatMul")
# Conv and Gemm between quantized tensors get their float weights quantized when the model loads.
_QUANTIZED_AT_LOAD = ("Conv", "Gemm")
_S8 = np.dtype(np.int8)
# A computed factor takes any value: 2 * -128.
_ANY_PAIR = 256


@dataclass(frozen=True)
class Risk:
    """``channels`` of the ``outputs`` of a layer can overflow; ``worst`` is the largest sum, in magnitude, that weights
    of one sign have in a pair, where 128 is safe. Both counts are 0 where the second factor is computed."""

    node: str
    op: str
    channels: int
    outputs: int
    worst: int

    def __str__(self) -> str:
        which = f"{self.channels} of {self.outputs} channels" if self.outputs else "its second factor is computed"
        return f"{self.op} '{self.node}': {which}, pairs of weights add up to {self.worst}, not {LIMIT}"


def overflow_risk(model: Model) -> tuple[Risk, ...]:
    """The layers that can overflow on x86 processors without VNNI, in the order of the graph; empty: none can."""
    proven = cache(lambda: shapes.proven(model))
    scopes = (Scope(graph, proven) for graph in model.graphs())
    places = ((node, scope) for scope in scopes for node in scope.graph.nodes)
    found = (_risk(node, factor) for node, scope in places for factor in _signed_factors(node, scope))
    return tuple(risk for risk in found if risk is not None)


def _signed_factors(node: Node, scope: Scope) -> Iterator[Array | None]:
    """What a kernel multiplies unsigned numbers by, int8 and in the shape that the layer reads; None: it is computed.

    What is not int8 is left out.
    """
    if node.is_standard and node.op in _QDQ:
        factors = _between_quantizers(node, scope)
    elif node.op in _FACTORS:
        factors = _written_down(node, scope)
    else:
        return
    yield from (f for f in factors if f is None or (f.dtype == _S8 and f.size))


def _written_down(node: Node, scope: Scope) -> Iterator[Array | None]:
    """Those of an integer operator."""
    first, second, zero, second_zero = _FACTORS[node.op]
    if _type(node, (first, zero), scope) == _S8 and zero is not None:
        return
    for slot in (second, _LSTM_RECURRENT) if node.op == "DynamicQuantizeLSTM" else (second,):
        values = _integers(node.inputs[slot])
        if values is not None or _type(node, (slot, second_zero), scope) != np.uint8:
            yield values


def _between_quantizers(node: Node, scope: Scope) -> Iterator[Array | None]:
    """Those of the integer kernel that ONNX Runtime makes of a float operator."""
    x, weight = (dequantizer(t, scope) for t in node.inputs[:2])
    if x is None or type_read(x, scope, "native") == _S8:
        return
    if weight is None:
        if node.op in _QUANTIZED_AT_LOAD and is_constant(node.inputs[1]) and quantizer(node, scope) is not None:
            yield _symmetric(node, np.asarray(node.inputs[1].values))
    elif obstacle(node, scope, "native") is None:
        values = _integers(node.inputs[1])
        constant = _integers(weight.inputs[0]) is not None
        if values is not None or not (constant or type_read(weight, scope, "native") == np.uint8):
            yield values


def _risk(node: Node, factor: Array | None) -> Risk | None:
    label = str(node.name or node.outputs[0].name)
    if factor is None:
        return Risk(label, node.op, 0, 0, _ANY_PAIR)
    steps = _pairs(node, factor)
    overflows = can_saturate(steps)
    if not overflows.any():
        return None
    return Risk(label, node.op, int(overflows.sum()), len(steps), int(heaviest(steps).max()))


def _integers(tensor: Tensor) -> Array | None:
    """Weights as they are stored, in the shape in which the layer reads them; None where they are computed.

    Their steps count, not what these stand for: the kernel takes the zero point into account after it has summed.
    """
    if is_constant(tensor):
        return np.asarray(tensor.values)
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or not node.inputs:
        return None
    values = _integers(node.inputs[0])
    if values is None:
        return None
    if node.op in ("DequantizeLinear", "Identity"):
        return values
    if node.op == "Transpose":
        return values.transpose(node.attrs.get("perm"))
    if node.op == "QuantizeLinear":
        return _quantized(node, values)
    return None


def _quantized(node: Node, values: Array) -> Array | None:
    """What a QuantizeLinear makes of constants; None where its parameters are computed, or are those of blocks."""
    if node.attrs.get("block_size") or not all(is_constant(t) for t in node.inputs[1:] if not t.is_empty()):
        return None
    zero = np.asarray(node.inputs[2].values) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    if zero.dtype not in (np.int8, np.uint8):
        return None
    shape = [1] * values.ndim
    scale = np.asarray(node.inputs[1].values)
    if scale.size > 1:
        shape[int(node.attrs.get("axis", 1))] = -1
    limits = np.iinfo(zero.dtype)
    steps = np.rint(values / scale.reshape(shape)) + zero.reshape(shape if zero.size > 1 else [1] * values.ndim)
    return np.asarray(np.clip(steps, limits.min, limits.max).astype(zero.dtype))


def _symmetric(node: Node, weight: Array) -> Array:
    """Float weights in 8 bits, each channel over its full range: no scale makes more of them overflow."""
    axis = tuple(range(1, weight.ndim)) if node.op == "Conv" or node.attrs.get("transB") else 0
    most = np.abs(weight).max(axis=axis, keepdims=True)
    return np.asarray(np.rint(weight / np.where(most > 0, most, 1) * 127).astype(np.int8))


def _pairs(node: Node, values: Array) -> Array:
    if node.op in ("Conv", "QLinearConv"):
        return pairs(Node("Conv", "", [], [], {"group": node.attrs.get("group", 1)}), values)
    if values.ndim == 2:
        return pairs(Node("Gemm", "", [], [], {"transB": node.attrs.get("transB", 0)}), values)
    stack = values[:, None] if values.ndim == 1 else values
    rows = np.swapaxes(stack, -1, -2).reshape(-1, stack.shape[-2])
    return pairs(Node("MatMul", "", [], []), rows.T)


def _type(node: Node, slots: tuple[int | None, ...], scope: Scope) -> np.dtype[np.generic] | None:
    """The first type that is known of these inputs."""
    given = [node.inputs[i] for i in slots if i is not None and i < len(node.inputs) and not node.inputs[i].is_empty()]
    known = (np.dtype(t.dtype) if t.dtype is not None else scope.spec(t).dtype for t in given)
    return next((dtype for dtype in known if dtype != np.dtype(object)), None)
