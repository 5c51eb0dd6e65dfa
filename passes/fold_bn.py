"""Fold per-channel scales and shifts into the weights beside them.

    y = s * (x - mean) / sqrt(var + eps) + beta = k * x + c       k = s / sqrt(var + eps), c = beta - mean * k

(Ioffe and Szegedy, 2015). Behind a layer, x = W u + b:  y = (k W) u + (k b + c).
Before a layer, z = W y + b:  z = (W k) x + (b + W c), exact where the layer pads nothing in (a padded zero is no
k * 0 + c), or where c is zero.

Layers are Conv (M, C/g, ...), ConvTranspose (C, M/g, ...), Gemm and MatMul (K, N). A multiplication, division,
addition or subtraction with one constant per channel behind a layer is folded like a normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxopt.core.pass_ import Skip, label
from onnxopt.core.rewrite import RewritePass
from onnxopt.graph.ir import Constant, Node, Scope, Tensor, Variable, is_constant
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array

Floats = npt.NDArray[np.float64]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ELEMENTWISE = ("Mul", "Div", "Add", "Sub")


@dataclass(frozen=True)
class Affine:
    """``scale * x + shift`` along axis 1; both (C,)."""

    scale: Floats
    shift: Floats

    def is_finite(self) -> bool:
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())


@dataclass(frozen=True)
class Match:
    """``layer`` takes over what ``node`` computes, behind it or (``before``) in front of it."""

    node: Node
    layer: Node
    affine: Affine
    before: bool = False


@dataclass(frozen=True)
class Layout:
    """A weight as (group, out, in, rest) or (group, in, out, rest); ``out`` and ``into`` are those axes."""

    shape: tuple[int, int, int, int]
    out: int
    into: int

    def along(self, factor: Floats, axis: int) -> Floats:
        """One factor per channel, shaped to multiply the weight."""
        shape = [self.shape[0], 1, 1, 1]
        shape[axis] = self.shape[axis]
        return factor.reshape(shape)


@dataclass(frozen=True, kw_only=True)
class FoldBatchNorm(RewritePass[Match]):
    """BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul next to it; exact up to rounding."""

    name: ClassVar[str] = "fold-bn"
    exact: ClassVar[bool] = True

    def match(self, node: Node, scope: Scope) -> Match | Skip | None:
        if not node.is_standard:
            return None
        if node.op in _ELEMENTWISE:
            return _elementwise(node, scope)
        if node.op != "BatchNormalization":
            return None
        affine = _normalisation(node)
        if isinstance(affine, str):
            return Skip(label(node), affine)
        behind = _behind(node, affine, scope)
        if isinstance(behind, Match):
            return behind
        before = _before(node, affine, scope)
        return before if isinstance(before, Match) else Skip(label(node), f"{behind}; {before}")

    def rewrite(self, match: Match, model: Model) -> None:
        layer, affine = match.layer, match.affine
        weight, layout = layer.inputs[1].values, _layout(layer)
        bias = _bias(layer)
        if match.before:
            new_weight = _scaled(weight, layout, affine.scale, layout.into)
            letters = "goik,gi->go" if layout.out == 1 else "giok,gi->go"
            shift = np.einsum(letters, weight.reshape(layout.shape), affine.shift.reshape(layout.shape[0], -1))
            new_bias = bias + layer.attrs.get("alpha", 1.0) * shift.reshape(-1)
        else:
            new_weight = _scaled(weight, layout, affine.scale, layout.out)
            new_bias = bias * affine.scale + affine.shift
        stem = label(layer)
        parts = [model.constant(f"{stem}.weight", new_weight), model.constant(f"{stem}.bias", new_bias.astype(weight.dtype))]
        layer.inputs = [layer.inputs[0], *parts]
        layer.attrs.pop("beta", None)
        if layer.op == "MatMul":
            layer.op = "Gemm"
        _bypass(match)


def _bypass(match: Match) -> None:
    """Take the folded node out: the layer makes its output, or its reader reads its input."""
    node = match.node
    x, y = _data_input(node), node.outputs[0]
    if match.before:
        reader = y.outputs[0]
        reader.inputs[next(i for i, t in enumerate(reader.inputs) if t is y)] = x
    else:
        node.outputs.clear()
        match.layer.outputs = [y]


def _normalisation(node: Node) -> Affine | str:
    """What a BatchNormalization computes, or why it cannot be said."""
    if node.attrs.get("training_mode", 0) or any(not t.is_empty() for t in node.outputs[1:]):
        return "it runs in training mode"
    if not node.attrs.get("spatial", 1):
        return "spatial=0 normalises every position by itself"
    if not all(map(is_constant, node.inputs[1:5])):
        return "its parameters are not constant"
    scale, beta, mean, variance = (np.asarray(t.values, np.float64) for t in node.inputs[1:5])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        k = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        affine = Affine(k, beta - mean * k)
    return affine if affine.is_finite() else "its variances are not all positive"


def _elementwise(node: Node, scope: Scope) -> Match | None:
    """A constant per channel behind a layer that has a bias to take it."""
    x, constant = _data_input(node), next(filter(is_constant, node.inputs), None)
    layer = scope.producer(x) if constant is not None else None
    if constant is None or layer is None or layer.op not in _LAYERS[:3] or _fault(layer, scope):
        return None
    rank = 2 if layer.op == "Gemm" else len(layer.inputs[1].shape)
    value = _per_channel(constant, rank, _channels(layer))
    if value is None:
        return None
    one, zero = np.ones_like(value), np.zeros_like(value)
    with np.errstate(divide="ignore"):
        if node.op == "Mul":
            affine = Affine(value, zero)
        elif node.op == "Add":
            affine = Affine(one, value)
        elif node.op == "Sub":
            affine = Affine(one, -value) if node.inputs[1] is constant else Affine(-one, value)
        elif node.inputs[1] is constant:
            affine = Affine(1 / value, zero)
        else:
            return None
    found = _behind(node, affine, scope)
    return found if isinstance(found, Match) else None


def _behind(node: Node, affine: Affine, scope: Scope) -> Match | str:
    """Can the layer that makes the node's input take it over? Otherwise why not."""
    made = _data_input(node)
    layer = scope.producer(made)
    if layer is None or not layer.is_standard:
        return "it follows no layer of this graph"
    if layer.op == "Add" and scope.used_once(made):
        constant, inner = next(filter(is_constant, layer.inputs), None), _data_input(layer)
        first = scope.producer(inner)
        if constant is not None and first is not None and first.op == "MatMul":
            shift = _per_channel(constant, 2, len(affine.scale))
            if shift is not None:
                made, layer = inner, first
                affine = Affine(affine.scale, affine.shift + affine.scale * shift)
    if layer.op not in _LAYERS:
        return f"it follows {_named(layer)}, which has no weights"
    if fault := _fault(layer, scope):
        return fault
    if layer.op == "MatMul" and not _is_matrix(made):
        return f"{_named(layer)} makes more than two axes, or an unknown number"
    if not scope.used_once(made):
        return f"the output of {_named(layer)} is used elsewhere too"
    if _overflows(layer, affine):
        return f"the weights of {_named(layer)} would overflow {layer.inputs[1].dtype}"
    return Match(node, layer, affine)


def _before(node: Node, affine: Affine, scope: Scope) -> Match | str:
    """Can the layer that reads the node's output take it over? Otherwise why not."""
    y = node.outputs[0]
    flat = False
    while scope.used_once(y) and _keeps_affine(y.outputs[0]):
        flat = flat or y.outputs[0].op == "Flatten"
        y = y.outputs[0].outputs[0]
    if not scope.used_once(y):
        return "its output is used more than once or leaves the graph"
    layer = y.outputs[0]
    if layer.op not in ("Conv", "Gemm", "MatMul") or not layer.is_standard or layer.inputs[0] is not y:
        return f"it feeds {_named(layer)}, which has no weights for it"
    if fault := _fault(layer, scope):
        return fault
    if layer.op == "MatMul" and not flat and not _is_matrix(y):
        return f"{_named(layer)} reads more than two axes, or an unknown number"
    if layer.attrs.get("transA", 0):
        return f"{_named(layer)} transposes its input"
    if layer.op == "Conv" and affine.shift.any() and _pads(layer):
        return f"{_named(layer)} pads with zeros, which the shift would have to leave alone"
    layout = _layout(layer)
    repeats = layout.shape[0] * layout.shape[layout.into] // len(affine.scale)
    affine = Affine(np.repeat(affine.scale, repeats), np.repeat(affine.shift, repeats))
    if _overflows(layer, affine):
        return f"the weights of {_named(layer)} would overflow {layer.inputs[1].dtype}"
    return Match(node, layer, affine, before=True)


def _keeps_affine(node: Node) -> bool:
    """Is f(k x + c) = k f(x) + c, channel by channel?"""
    return node.is_standard and (node.op == "GlobalAveragePool" or (node.op == "Flatten" and node.attrs.get("axis", 1) == 1))


def _fault(layer: Node, scope: Scope) -> str:
    """Why the weights of a layer cannot be replaced; empty if they can."""
    if len(layer.inputs) < 2 or not is_constant(layer.inputs[1]):
        return f"the weights of {_named(layer)} are not constant"
    weight = layer.inputs[1]
    if weight.dtype not in (np.float16, np.float32, np.float64):
        return f"the weights of {_named(layer)} are {weight.dtype}"
    if len(weight.outputs) != 1 or scope.is_output(weight):
        return f"the weights of {_named(layer)} are shared with another node"
    if layer.op in ("Gemm", "MatMul") and len(weight.shape) != 2:
        return f"the weights of {_named(layer)} are not a matrix"
    if len(layer.inputs) > 2 and not layer.inputs[2].is_empty() and not is_constant(layer.inputs[2]):
        return f"the bias of {_named(layer)} is not constant"
    return ""


def _layout(layer: Node) -> Layout:
    shape = layer.inputs[1].shape
    if layer.op in ("Gemm", "MatMul"):
        transposed = layer.op == "Gemm" and layer.attrs.get("transB", 0)
        return Layout((1, *shape, 1), 1, 2) if transposed else Layout((1, *shape, 1), 2, 1)
    groups, rest = layer.attrs.get("group", 1), int(np.prod(shape[2:]))
    view = (groups, shape[0] // groups, shape[1], rest)
    return Layout(view, 1, 2) if layer.op == "Conv" else Layout(view, 2, 1)


def _channels(layer: Node) -> int:
    layout = _layout(layer)
    return layout.shape[0] * layout.shape[layout.out]


def _bias(layer: Node) -> Floats:
    """The bias as it is added, float64: (M,), or what a Gemm's C broadcasts from."""
    if len(layer.inputs) < 3 or layer.inputs[2].is_empty():
        return np.zeros(_channels(layer))
    return np.asarray(layer.inputs[2].values, np.float64) * layer.attrs.get("beta", 1.0)


def _scaled(weight: Array, layout: Layout, factor: Floats, axis: int) -> Array:
    """The weight times a factor per channel, rounded once; float64 only inside numpy's small buffers."""
    result = np.empty(layout.shape, weight.dtype)
    np.multiply(
        weight.reshape(layout.shape), layout.along(factor, axis), out=result, dtype=np.float64, casting="same_kind"
    )
    return result.reshape(weight.shape)


def _overflows(layer: Node, affine: Affine) -> bool:
    """Could a weight or bias leave its type's range? Weights are looked at only where the range is short."""
    dtype = layer.inputs[1].dtype
    limit = float(np.finfo(dtype).max)
    largest = np.abs(affine.scale).max(initial=0.0)
    if dtype == np.float16:
        weight = layer.inputs[1].values
        largest *= max(float(weight.max(initial=0)), -float(weight.min(initial=0)))
    bias = np.abs(_bias(layer)).max(initial=0.0) * np.abs(affine.scale).max(initial=0.0)
    return not (affine.is_finite() and max(largest, bias + np.abs(affine.shift).max(initial=0.0)) < limit)


def _per_channel(constant: Constant, rank: int, channels: int) -> Floats | None:
    """A constant that broadcasts along axis 1 of ``rank`` axes, as (channels,); None if it does anything else."""
    shape = tuple(constant.shape)
    if len(shape) > rank or not np.issubdtype(constant.dtype, np.floating):
        return None
    padded = (1,) * (rank - len(shape)) + shape
    if padded[1] not in (1, channels) or any(d != 1 for i, d in enumerate(padded) if i != 1):
        return None
    return np.broadcast_to(np.asarray(constant.values, np.float64).reshape(-1), (channels,))


def _pads(conv: Node) -> bool:
    if all(d == 1 for d in conv.inputs[1].shape[2:]) and not any(conv.attrs.get("pads", ())):
        return False
    return any(conv.attrs.get("pads", ())) or conv.attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")


def _data_input(node: Node) -> Tensor:
    """The input that is not constant (the first, where none or all are)."""
    return next((t for t in node.inputs if not is_constant(t)), node.inputs[0])


def _is_matrix(tensor: Variable) -> bool:
    return tensor.shape is not None and len(tensor.shape) == 2


def _named(node: Node) -> str:
    return f"{node.op} '{label(node)}'"
