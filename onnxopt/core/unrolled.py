"""A layer written as one matrix product for each group of channels: rows of what it reads, times its weights.

``target[n, g] = weight[g] @ row[n, g] + bias[g]`` for Conv, ConvTranspose, Gemm and MatMul alike; weight (groups,
outputs, inputs x kernel), bias (groups, outputs).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np

from onnxopt.core.pass_ import label
from onnxopt.graph import layer as layers
from onnxopt.graph.ir import Node, Variable, is_constant
from onnxopt.graph.layer import Floats, layout
from onnxopt.graph.model import Model
from onnxopt.graph.recurrent import is_recurrent
from onnxopt.graph.signature import Array
from onnxopt.numerics import patches
from onnxopt.numerics.patches import Positions

LAYERS = layers.LAYERS
WIDEST = 4_608
_ROWS = 40_000
# Products of rows with themselves, rows times inputs squared, that a layer may cost: some seconds of one core.
_PRODUCTS = 10**11
_OWN_PADS = (None, "NOTSET")


def fault(layer: Node) -> str:
    """Why a layer cannot be written so and solved for, to be read after its name; empty if it can."""
    if is_recurrent(layer):
        return f"is {'a' if layer.op == 'GRU' else 'an'} {layer.op}"
    if found := layers.fault(layer):
        return found
    view = layout(layer)
    width = view.shape[view.into] * view.shape[3]
    if width > WIDEST:
        return f"sums over {width} inputs, too many to solve for"
    shift = layers.bias(layer)
    if shift.size != 1 and (shift.size != view.outputs or shift.shape[-1] != view.outputs):
        return "has a bias that is not one number per channel"
    if layer.attrs.get("transA", 0):
        return "transposes its input"
    if layer.op == "ConvTranspose" and ("output_shape" in layer.attrs or layer.attrs.get("auto_pad") not in _OWN_PADS):
        return "pads automatically"
    return ""


def enough_rows(layer: Node) -> int:
    """On how many rows to solve for a layer."""
    view = layout(layer)
    return enough(view.shape[view.into] * view.shape[3], view.shape[0])


def enough(width: int, groups: int = 1) -> int:
    """On how many rows of so many inputs to solve: 40,000, of wide layers fewer, but three for each input."""
    return min(_ROWS, max(3 * width, _PRODUCTS // (groups * width**2)))


def read(layer: Node) -> tuple[Floats, Floats]:
    """Weight and bias."""
    view = layout(layer)
    weight = unroll(layer, np.asarray(layer.inputs[1].values, np.float64)) * layer.attrs.get("alpha", 1.0)
    bias = np.broadcast_to(layers.bias(layer).reshape(-1), (view.outputs,))
    return weight, bias.reshape(view.shape[0], -1).copy()


def unroll(layer: Node, weight: Array) -> Array:
    """Numbers in the form of the layer's own weight as (groups, outputs, inputs x kernel)."""
    view = layout(layer)
    full = weight.reshape(view.shape)
    full = full if view.out == 1 else full.swapaxes(1, 2)
    full = full[..., ::-1] if layer.op == "ConvTranspose" else full
    return full.reshape(view.shape[0], view.shape[view.out], -1).copy()


def roll(layer: Node, weight: Array) -> Array:
    """Numbers as (groups, outputs, inputs x kernel) in the form of the layer's own weight: what undoes ``unroll``."""
    view = layout(layer)
    full = weight.reshape(view.shape[0], view.shape[view.out], view.shape[view.into], view.shape[3])
    full = full[..., ::-1] if layer.op == "ConvTranspose" else full
    full = full if view.out == 1 else full.swapaxes(1, 2)
    return np.ascontiguousarray(full.reshape(layer.inputs[1].shape))


def write(model: Model, layer: Node, weight: Floats, bias: Floats) -> None:
    """Give the layer a new weight and bias, in its own form. What it makes keeps its name."""
    old = layer.inputs[1]
    new = model.constant(f"{label(layer)}.weight", roll(layer, weight).astype(old.dtype))
    shift = model.constant(f"{label(layer)}.bias", bias.reshape(-1).astype(old.dtype))
    layer.attrs.pop("alpha", None)
    layer.attrs.pop("beta", None)
    if layer.op == "MatMul":
        layer.inputs[1] = new
        _add_behind(model, layer, shift.values)
    else:
        layer.inputs = [layer.inputs[0], new, shift]


def _add_behind(model: Model, layer: Node, shift: Array) -> None:
    """A MatMul has no bias: what it would be goes into the constant that is added next, or into an Add of its own."""
    if found := _added(model, layer):
        follower, slot = found
        old = follower.inputs[slot]
        follower.inputs[slot] = model.constant(old.name, np.asarray(old.values + shift, shift.dtype))
        return
    if not shift.any():
        return
    y = layer.outputs[0]
    product = Variable(model.fresh_name(f"{y.name}_product"), y.dtype, y.shape)
    layer.outputs = [product]
    bias = model.constant(f"{y.name}_bias", shift)
    add = Node("Add", model.fresh_name(f"{label(layer)}_bias"), [product, bias], [y])
    model.graph.nodes.insert(next(i for i, n in enumerate(model.graph.nodes) if n is layer) + 1, add)


def has_bias(model: Model, layer: Node) -> bool:
    """Can a layer get another bias without another node?"""
    return layer.op != "MatMul" or _added(model, layer) is not None


def _added(model: Model, layer: Node) -> tuple[Node, int] | None:
    """The Add that alone reads a MatMul, and which of its operands is a bias; None without."""
    y = layer.outputs[0]
    follower = y.outputs[0] if len(y.outputs) == 1 and all(y is not t for t in model.graph.outputs) else None
    if follower is None or follower.op != "Add" or not follower.is_standard:
        return None
    kinds = (is_constant(t) and t.dtype == layer.inputs[1].dtype and len(t.shape) <= 1 for t in follower.inputs)
    return next(((follower, slot) for slot, fits in enumerate(kinds) if fits), None)


def targets(layer: Node, y: Array) -> Array:
    """What the layer made, as rows: (count, channels)."""
    return (np.moveaxis(y, 1, -1) if _convolves(layer) else y).reshape(-1, y.shape[1 if _convolves(layer) else -1])


class Rows:
    """What the layer read, ``x``, as ``count`` rows (inputs of all groups x kernel), made when they are asked for."""

    def __init__(self, layer: Node, x: Array) -> None:
        if not _convolves(layer):
            self._x, self._geometry = x.reshape(-1, x.shape[-1]), None
            self.count = len(self._x)
            return
        rank = x.ndim - 2
        kernel = tuple(layer.inputs[1].shape[2:])
        strides, dilations = (layer.attrs.get(name, [1] * rank) for name in ("strides", "dilations"))
        pads = layer.attrs.get("pads", [0] * 2 * rank)
        if layer.op == "ConvTranspose":
            # A transposed convolution is a plain one with turned weights, over the input with zeros put in between.
            reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
            extra = layer.attrs.get("output_padding", [0] * rank)
            begins = [r - p for r, p in zip(reach, pads, strict=False)]
            ends = [r - p + e for r, p, e in zip(reach, pads[rank:], extra, strict=True)]
            x, pads = _spread(x, strides, begins, ends)
            strides = [1] * rank
        elif layer.attrs.get("auto_pad") not in _OWN_PADS:
            upper, valid = layer.attrs["auto_pad"] == "SAME_UPPER", layer.attrs["auto_pad"] == "VALID"
            same = patches.same_pads(x.shape[2:], kernel, strides, dilations, upper=upper)
            pads = [0] * 2 * rank if valid else list(same)
        self._x, self._geometry = x, (kernel, strides, pads, dilations)
        self.count = len(x) * prod(patches.output_size(x.shape[2:], *self._geometry))

    def at(self, positions: Positions) -> Array:
        """Some of the rows: (len(positions), inputs x kernel)."""
        return self._x[positions] if self._geometry is None else patches.patches(self._x, *self._geometry, positions)


def _spread(x: Array, strides: Sequence[int], begins: Sequence[int], ends: Sequence[int]) -> tuple[Array, list[int]]:
    """``x`` with zeros between its values, cut off where it is to be padded by less than nothing; and the pads left."""
    long = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True)]
    result = np.zeros((*x.shape[:2], *long), x.dtype)
    result[_inner(slice(None, None, s) for s in strides)] = x
    inside = _inner(slice(max(0, -b), m - max(0, -e)) for b, e, m in zip(begins, ends, long, strict=True))
    return result[inside], [max(0, n) for n in (*begins, *ends)]


def _inner(parts: Iterable[slice]) -> tuple[slice, ...]:
    """An index that takes these parts of the spatial axes of all samples and channels."""
    return (slice(None), slice(None), *parts)


def _convolves(layer: Node) -> bool:
    return layer.op in ("Conv", "ConvTranspose")
