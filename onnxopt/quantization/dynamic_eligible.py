"""Which nodes with weights can take inputs that get their scale at every run, and which of them gain by it."""

from __future__ import annotations

from collections import Counter
from math import prod

import numpy as np

from onnxopt.core.pass_ import label
from onnxopt.graph.decoding import already
from onnxopt.graph.ir import Node, Tensor, is_constant
from onnxopt.graph.model import Model
from onnxopt.numerics.qparams import INT8, SMALLEST_SCALE, dequantize, quantize, weight_qparams
from onnxopt.quantization.dynamic_cost import lstm_gain_ps, product_gain_ps
from onnxopt.quantization.eligible import Reasons, Sizes

PRODUCTS = ("MatMul", "Gemm")
OLDEST_OPSET = 11

# Operators with weights that stay float, and why.
_NO_KERNEL = {
    # 0.8 to 2 times as long as Conv, with unsigned weights; with signed ones, 5 times.
    "Conv": "a convolution hardly gains by dynamic scales, or loses",
    "ConvTranspose": "ConvTranspose has no integer kernel",
    "GRU": "GRU has no integer kernel",
    "RNN": "RNN has no integer kernel",
    "Einsum": "Einsum has no integer kernel",
}
# A lookup in integers takes a microsecond more: it must save some bytes, three of four.
_SMALL_TABLE = 2**13
_TABLE_DB = 30.0
# So many rows, spread over the table, tell how well 8 bits hold it.
_TABLE_SAMPLE = 4096


def choose(model: Model, sizes: Sizes, left_out: Reasons) -> tuple[list[str], dict[str, str]]:
    """The names of the nodes to quantize, and of the other candidates with the reason. ``sizes`` are observed shapes.

    Nodes that have no name of their own, and are chosen, get one. Those named in ``left_out`` are not.
    """
    labels = Counter(map(label, model.nodes()))
    chosen: list[str] = []
    left: dict[str, str] = {}
    for node in filter(is_candidate, model.nodes()):
        name = label(node)
        if why := left_out.get(name) or fault(node, model.opset) or loss(node, sizes):
            left[name] = why
        else:
            if not node.name or labels[name] > 1:
                node.name = model.fresh_name(f"{node.op}_{name}")
            chosen.append(node.name)
    return chosen, left


def is_candidate(node: Node) -> bool:
    """Is this an operator with weights? Of Gather, those that read a float table."""
    if not node.is_standard:
        return False
    if node.op == "Gather":
        table = node.inputs[0]
        return is_constant(table) and table.dtype.kind == "f" and len(table.shape) > 1
    return node.op in (*PRODUCTS, "LSTM") or node.op in _NO_KERNEL


def fault(node: Node, opset: int) -> str:
    """Why a candidate cannot be quantized dynamically; empty if it can."""
    if node.op in _NO_KERNEL:
        return _NO_KERNEL[node.op]
    if node.op in PRODUCTS and opset < OLDEST_OPSET:
        return f"{node.op} takes dynamic scales from opset {OLDEST_OPSET} on"
    if node.op == "Gather":
        return _table_fault(node)
    if node.op == "LSTM":
        if node.attrs.get("layout", 0):
            return "there is no integer kernel for layout=1"
        return next(filter(None, map(_weight_fault, node.inputs[1:3])), "")
    if is_constant(node.inputs[0]):
        return "its constant is the first factor"
    return _weight_fault(stored(node.inputs[1]))


def loss(node: Node, sizes: Sizes) -> str:
    """Why it would take more time in integers; empty if it would not. ``sizes`` are observed shapes by tensor.

    Where a shape is missing there, one row is assumed, and one step.
    """
    if node.op == "Gather":
        table = node.inputs[0]
        return "" if table.values.size >= _SMALL_TABLE else f"its table is small: {table.values.size} numbers"
    gain = _gain_ps(node, sizes)
    return "" if gain >= 0 else f"it is too small to gain: it would take {-gain / 1e6:.1f} us more in integers"


def stored(weight: Tensor) -> Tensor:
    """The matrix that a Transpose turns, where the weights are one: it is not folded where others read it unturned."""
    maker = next(iter(weight.inputs), None)
    if maker is None or maker.op != "Transpose" or not maker.is_standard or not is_constant(maker.inputs[0]):
        return weight
    matrix: Tensor = maker.inputs[0]
    return matrix if len(matrix.shape) == 2 and maker.attrs.get("perm", [1, 0]) == [1, 0] else weight


def is_turned(node: Node) -> bool:
    """Are the weights of a product stored as (outputs, inputs)?"""
    return (stored(node.inputs[1]) is not node.inputs[1]) != bool(node.attrs.get("transB", 0))


def _gain_ps(node: Node, sizes: Sizes) -> float:
    shape = stored(node.inputs[1]).shape
    if node.op == "LSTM":
        directions, gates, inputs = shape
        steps, batch, _ = sizes.get(node.inputs[0].name, (1, 1, inputs))
        return lstm_gain_ps(directions, inputs, gates // 4, steps, batch)
    inputs, outputs = shape[:-3:-1] if is_turned(node) else shape[-2:]
    made = prod(sizes.get(node.outputs[0].name, (outputs,)))
    return product_gain_ps(made / outputs, inputs, outputs, prod(shape))


def _weight_fault(weight: Tensor) -> str:
    if not is_constant(weight):
        return f"its weights are {already(weight) or 'computed at run time'}"
    if weight.dtype != np.float32:
        return f"its weights are {weight.dtype}, not float32: start from the model in float32"
    if len(weight.shape) < 2:
        return "its weights are a vector"
    if not weight.values.size:
        return "its weights are empty"
    if not np.isfinite(weight.values).all():
        return "its weights are not all finite"
    largest = float(np.abs(weight.values).max())
    return f"its weights are too small: {largest:.0e} at most" if 0 < largest / 127 < SMALLEST_SCALE else ""


def _table_fault(node: Node) -> str:
    if why := _weight_fault(node.inputs[0]):
        return why.replace("weights are", "table is")
    if node.attrs.get("axis", 0) != 0:
        return "it looks up columns, not rows"
    if other := next((n for n in node.inputs[0].outputs if n.op not in ("Gather", "Transpose", *PRODUCTS)), None):
        return f"its table is read as float by '{label(other)}'"
    table = node.inputs[0].values
    table = table[:: -(-len(table) // _TABLE_SAMPLE)]
    params = weight_qparams(table, 0)
    error = float(np.square(dequantize(quantize(table, params, INT8, 0), params, 0) - table, dtype=np.float64).sum())
    db = 10 * np.log10(float(np.square(table, dtype=np.float64).sum()) / error) if error else np.inf
    return "" if db >= _TABLE_DB else f"8 bits hold its table to {db:.0f} dB only"
