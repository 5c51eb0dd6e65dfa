"""Can this node run in integers at all? What the table of kernels asks of a node, its constants and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, prod

import numpy as np

from onnxopt.graph import layer as layers
from onnxopt.graph.decoding import already
from onnxopt.graph.ir import Node, Tensor, is_constant
from onnxopt.graph.signature import TensorSpec
from onnxopt.numerics.qparams import SMALLEST_SCALE
from onnxopt.quantization.kernels import FLOAT_LAYERS, KERNELS, Kernel, Kind

Sizes = Mapping[str, tuple[int, ...]]
Specs = Mapping[str, TensorSpec]
# Why nodes stay float, by label.
Reasons = Mapping[str, str]


def operands(node: Node, kernel: Kernel) -> tuple[Tensor, ...]:
    """What a node takes as integers, a layer's weights and bias apart; constants may be among them."""
    chosen = kernel.activations
    return tuple(node.inputs if chosen is None else (node.inputs[i] for i in chosen))


def is_layer(node: Node) -> bool:
    """Is most of a model's time spent in operators like this one?"""
    kernel = KERNELS.get(node.op)
    return node.is_standard and (node.op in FLOAT_LAYERS or (kernel is not None and kernel.kind is Kind.LAYER))


def fault(node: Node, sizes: Sizes, specs: Specs, opset: int) -> str:
    """Why a node cannot run in integers; empty if it can."""
    kernel = KERNELS.get(node.op) if node.is_standard else None
    if kernel is None:
        return FLOAT_LAYERS.get(node.op, f"{node.op} has no integer kernel")
    if opset < kernel.since:
        return f"{node.op} takes integers from opset {kernel.since} on"
    for name, allowed in kernel.attributes.items():
        if node.attrs.get(name) not in allowed:
            return f"there is no integer kernel for {name}={node.attrs[name]}"
    if kernel.kind is Kind.LAYER and (why := _layer_fault(node)):
        return why
    if all(map(is_constant, operands(node, kernel))):
        return "its inputs are constant"
    for tensor in (*operands(node, kernel), *node.outputs):
        if why := _tensor_fault(tensor, sizes, specs):
            return f"'{tensor.name}' {why}"
    if node.op == "Pad" and not pads_with_zeros(node):
        return "it pads with something else than zero"
    if node.op == "AveragePool" and not node.attrs.get("count_include_pad", 0) and _pads(node):
        return "it does not count what it pads"
    return ""


def column_bias(node: Node) -> layers.Floats | None:
    """A layer's bias as (channels,), zeros where there is none; None where it does not run along the channels."""
    bias, channels = layers.bias(node), layers.layout(node).outputs
    if bias.size != 1 and (bias.size != channels or bias.shape[-1] != channels):
        return None
    return np.broadcast_to(bias.reshape(-1), (channels,))


def output_axis(node: Node) -> int:
    """The axis of a layer's weight that runs along its output channels."""
    return 0 if node.op == "Conv" or node.attrs.get("transB", 0) else 1


def clamp_limits(clamp: Node) -> tuple[float, float]:
    """The range of a Relu's or a Clip's output; NaN where it is computed at run time."""
    if clamp.op == "Relu":
        return 0.0, inf
    if "min" in clamp.attrs or "max" in clamp.attrs:
        return float(clamp.attrs.get("min", -inf)), float(clamp.attrs.get("max", inf))
    given = [None if t.is_empty() else float(t.values.item()) if is_constant(t) else np.nan for t in clamp.inputs[1:3]]
    lo, hi = (*given, None, None)[:2]
    return -inf if lo is None else lo, inf if hi is None else hi


def pads_with_zeros(pad: Node) -> bool:
    """Does a Pad put zeros around, or copies of what is there?"""
    if pad.attrs.get("mode", "constant") != "constant":
        return True
    if len(pad.inputs) < 3 or pad.inputs[2].is_empty():
        return not pad.attrs.get("value", 0)
    return is_constant(pad.inputs[2]) and not np.any(pad.inputs[2].values)


def _layer_fault(node: Node) -> str:
    weight = node.inputs[1]
    if how := already(weight):
        return f"its weights are {how}"
    if not is_constant(weight):
        # Measured: the steps to integers take what the kernel saves, below 128 rows more.
        both = " as well as its input: the steps to integers cost what they save" if node.op == "MatMul" else ""
        return f"its weights are computed at run time{both}"
    if weight.dtype != np.float32:
        return f"its weights are {weight.dtype}, not float32: start from the model in float32"
    if node.op == "MatMul" and len(weight.shape) != 2:
        return f"its weights have {len(weight.shape)} axes, not 2"
    if len(node.inputs) > 2 and not (node.inputs[2].is_empty() or is_constant(node.inputs[2])):
        return "its bias is computed at run time"
    if not np.isfinite(weight.values).all() or not np.isfinite(layers.bias(node)).all():
        return "its weights are not all finite"
    largest = float(np.abs(weight.values).max(initial=0.0))
    if 0 < largest / 127 < SMALLEST_SCALE:
        return f"its weights are too small: {largest:.0e} at most"
    return "its bias is not one number per column" if column_bias(node) is None else ""


def _tensor_fault(tensor: Tensor, sizes: Sizes, specs: Specs) -> str:
    if is_constant(tensor):
        if tensor.dtype != np.float32:
            return f"is {tensor.dtype}, not float32"
        return "" if tensor.values.size and np.isfinite(tensor.values).all() else "is empty or not finite"
    if tensor.name not in specs:
        return "is of unknown type"
    if specs[tensor.name].dtype != np.float32:
        return f"is {specs[tensor.name].dtype}, not float32"
    return "" if prod(sizes.get(tensor.name, (0,))) else "is empty or of unknown size"


def _pads(node: Node) -> bool:
    return any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
