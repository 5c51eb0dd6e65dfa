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
from typing import ClassVar

import numpy as np

from onnxopt.core.pass_ import Skip, label
from onnxopt.core.rewrite import RewritePass
from onnxopt.graph import layer as layers
from onnxopt.graph.ir import Constant, Node, Scope, Tensor, detach, is_constant
from onnxopt.graph.layer import Floats, layout
from onnxopt.graph.model import Model

_ELEMENTWISE = ("Mul", "Div", "Add", "Sub")
_BIASED = ("Conv", "ConvTranspose", "Gemm")


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


@dataclass(frozen=True, kw_only=True)
class FoldBatchNorm(RewritePass[Match]):
    """BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul next to it; exact up to rounding."""

    name: ClassVar[str] = "fold-bn"
    exact: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("inline-functions", "freeze-defaults", "clean", "prune")
    prepare: ClassVar[tuple[str, ...]] = ("fold-constants",)

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
        weight, view, bias = layer.inputs[1].values, layout(layer), layers.bias(layer)
        if match.before:
            new_weight = view.scale(weight, affine.scale, view.into)
            new_bias = bias + layer.attrs.get("alpha", 1.0) * view.respond(weight, affine.shift)
        else:
            new_weight = view.scale(weight, affine.scale, view.out)
            new_bias = bias * affine.scale + affine.shift
        stem = label(layer)
        layer.inputs = [
            layer.inputs[0],
            model.constant(f"{stem}.weight", new_weight),
            model.constant(f"{stem}.bias", new_bias.astype(weight.dtype)),
        ]
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
    detach(node)
    if not match.before:
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
    constant = next(filter(is_constant, node.inputs), None)
    layer = scope.producer(_data_input(node))
    if constant is None or layer is None or not layer.is_standard or layer.op not in _BIASED or layers.fault(layer):
        return None
    value = _per_channel(constant, 2 if layer.op == "Gemm" else len(layer.inputs[1].shape), layout(layer).outputs)
    if value is None or (node.op == "Div" and node.inputs[0] is constant):
        return None
    one, zero = np.ones_like(value), np.zeros_like(value)
    if node.op in ("Mul", "Div"):
        with np.errstate(divide="ignore"):
            affine = Affine(value if node.op == "Mul" else 1 / value, zero)
    elif node.op == "Sub" and node.inputs[0] is constant:
        affine = Affine(-one, value)
    else:
        affine = Affine(one, value if node.op == "Add" else -value)
    found = _behind(node, affine, scope)
    return found if isinstance(found, Match) else None


def _behind(node: Node, affine: Affine, scope: Scope) -> Match | str:
    """Can the layer that makes the node's input take it over? Otherwise why not."""
    made = _data_input(node)
    layer = scope.producer(made)
    if layer is None or not layer.is_standard:
        return "it follows no layer of this graph"
    if layer.op == "Add" and scope.used_once(made):
        made, layer, affine = _through_bias(layer, affine, scope) or (made, layer, affine)
    if layer.op not in layers.LAYERS:
        return f"it follows {_named(layer)}, which has no weights"
    if fault := layers.fault(layer):
        return f"{_named(layer)} {fault}"
    if layer.op == "MatMul" and not _is_matrix(made, scope):
        return f"{_named(layer)} makes more than two axes, or an unknown number"
    if not scope.used_once(made):
        return f"the output of {_named(layer)} is used elsewhere too"
    if _overflows(layer, affine):
        return f"the weights of {_named(layer)} would overflow {layer.inputs[1].dtype}"
    return Match(node, layer, affine)


def _through_bias(add: Node, affine: Affine, scope: Scope) -> tuple[Tensor, Node, Affine] | None:
    """Of a MatMul with a constant added per channel: its output, itself, and the affine that holds the constant too."""
    constant, made = next(filter(is_constant, add.inputs), None), _data_input(add)
    layer = scope.producer(made)
    shift = _per_channel(constant, 2, len(affine.scale)) if constant is not None else None
    if layer is None or layer.op != "MatMul" or not layer.is_standard or shift is None:
        return None
    return made, layer, Affine(affine.scale, affine.shift + affine.scale * shift)


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
    if fault := layers.fault(layer):
        return f"{_named(layer)} {fault}"
    if layer.op == "MatMul" and not flat and not _is_matrix(y, scope):
        return f"{_named(layer)} reads more than two axes, or an unknown number"
    if layer.attrs.get("transA", 0):
        return f"{_named(layer)} transposes its input"
    if layer.op == "Conv" and affine.shift.any() and _pads(layer):
        return f"{_named(layer)} pads with zeros, which the shift would have to leave alone"
    repeats = layout(layer).inputs // len(affine.scale)
    affine = Affine(np.repeat(affine.scale, repeats), np.repeat(affine.shift, repeats))
    if _overflows(layer, affine):
        return f"the weights of {_named(layer)} would overflow {layer.inputs[1].dtype}"
    return Match(node, layer, affine, before=True)


def _keeps_affine(node: Node) -> bool:
    """Is f(k x + c) = k f(x) + c, channel by channel?"""
    flattens = node.op == "Flatten" and node.attrs.get("axis", 1) == 1
    return node.is_standard and (flattens or node.op == "GlobalAveragePool")


def _overflows(layer: Node, affine: Affine) -> bool:
    """Could a weight or bias leave its type's range? Weights are looked at only where the range is short."""
    if not affine.is_finite():
        return True
    scale, shift, bias = (float(np.abs(a).max(initial=0.0)) for a in (affine.scale, affine.shift, layers.bias(layer)))
    weight = layer.inputs[1]
    largest = 1.0
    if weight.dtype == np.float16:
        largest = max(float(weight.values.max(initial=0)), -float(weight.values.min(initial=0)))
    return max(scale * largest, scale * bias + shift) > float(np.finfo(weight.dtype).max)


def _per_channel(constant: Constant, rank: int, channels: int) -> Floats | None:
    """A constant that broadcasts along axis 1 of ``rank`` axes, as (channels,); None if it does anything else."""
    shape = tuple(constant.shape)
    if len(shape) > rank or not np.issubdtype(constant.dtype, np.floating):
        return None
    padded = (1,) * (rank - len(shape)) + shape
    if padded[1] not in (1, channels) or any(d != 1 for i, d in enumerate(padded) if i != 1):
        return None
    return np.array(np.broadcast_to(np.asarray(constant.values, np.float64).reshape(-1), (channels,)))


def _pads(conv: Node) -> bool:
    same = conv.attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    return any(conv.attrs.get("pads", ())) or (same and any(d != 1 for d in conv.inputs[1].shape[2:]))


def _data_input(node: Node) -> Tensor:
    """The input that is not constant (the first, where none or all are)."""
    found: Tensor = next((t for t in node.inputs if not is_constant(t)), node.inputs[0])
    return found


def _is_matrix(tensor: Tensor, scope: Scope) -> bool:
    shape = scope.spec(tensor).shape
    return shape is not None and len(shape) == 2


def _named(node: Node) -> str:
    return f"{node.op} '{label(node)}'"
