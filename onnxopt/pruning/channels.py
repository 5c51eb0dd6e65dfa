"""Which channels to remove: layers that make channels, and how many of them may go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.graph import layer as layers
from onnxopt.graph import recurrent
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.decoding import already
from onnxopt.graph.ir import Constant, Graph, Node, Tensor, is_constant, reads
from onnxopt.graph.labels import Labels
from onnxopt.graph.layer import Floats
from onnxopt.runtime.target import fast_counts

_SMALLEST_STEP = 4
_Tensors: TypeAlias = Callable[[Node], Iterable[Tensor]]


@dataclass(frozen=True)
class Producer:
    """A layer and the class of each of its output channels, or hidden units: along an axis of its output ``slot``."""

    layer: Node
    axis: int
    classes: Labels
    slot: int = 0


def producers(graph: Graph, coupling: Coupling) -> list[Producer]:
    """The layers of a graph and its bodies that have weights to judge channels by."""
    found = []
    for node in graph.nodes:
        for body in node.bodies():
            found += producers(body, coupling)
        if is_layer(node) and not weight_fault(node):
            axis = 1 if node.op in ("Conv", "ConvTranspose") else -1
            slot = recurrent.output(node) if recurrent.is_recurrent(node) else 0
            found.append(Producer(node, axis, coupling.output(node, axis, slot), slot))
    return found


def is_layer(node: Node) -> bool:
    """Is it a layer, and not the product of two computed tensors, nor a constant added by a convolution with ones?

    Recurrent ones are layers too.
    """
    if recurrent.is_recurrent(node):
        return any(not t.is_empty() for t in node.outputs)
    if not node.is_standard or node.op not in layers.LAYERS or _is_addition(node):
        return False
    return node.op != "MatMul" or is_constant(node.inputs[0]) != (layers.stored_weight(node) is not None)


def _is_addition(node: Node) -> bool:
    """Is it a convolution of every channel with 1, as ``depth.drop`` leaves it?"""
    weight = layers.stored_weight(node) if node.op == "Conv" else None
    if weight is None or weight.shape[1:] != (1, 1, 1) or node.attrs.get("group", 1) != weight.shape[0]:
        return False
    return weight is node.inputs[1] and bool((weight.values == 1).all())


def weight_fault(layer: Node) -> str:
    """Why its weights do not tell channels apart, to be read after its name; empty if they do."""
    if recurrent.is_recurrent(layer):
        return recurrent.fault(layer)
    weight = layers.stored_weight(layer)
    if weight is None:
        return f"has weights {already(layer.inputs[1]) or 'that are not constant'}"
    if weight is layer.inputs[1] and weight.dtype not in (np.float16, np.float32, np.float64):
        return f"has weights of type {weight.dtype}"
    return (
        "has weights that are not a matrix"
        if len(weight.shape) < 2 or (len(weight.shape) > 2 and layer.op == "MatMul")
        else ""
    )


def count(layer: Node) -> int:
    """How many output channels, or hidden units, a layer has; of one without ``weight_fault``."""
    return recurrent.units(layer) if recurrent.is_recurrent(layer) else layers.layout(layer).outputs


def stored(layer: Node) -> list[Constant]:
    """The constants that hold a layer's weights."""
    if recurrent.is_recurrent(layer):
        return recurrent.weights(layer)
    weight = layers.stored_weight(layer)
    return [] if weight is None else [weight]


def widths(makers: Sequence[Producer], coupling: Coupling) -> Labels:
    """By class: how many channels it is of the layer that has the fewest of it; 0 where no layer makes it."""
    found = np.zeros(coupling.count + 1, np.intp)
    for maker in makers:
        classes, often = np.unique(maker.classes, return_counts=True)
        found[classes] = np.where(found[classes] == 0, often, np.minimum(found[classes], often))
    return found


def shared(makers: Sequence[Producer], coupling: Coupling) -> npt.NDArray[np.bool_]:
    """By class: does more than one layer make it?"""
    often = np.zeros(coupling.count + 1, np.intp)
    for maker in makers:
        often[np.unique(maker.classes)] += 1
    return np.asarray(often > 1)


def step(channels: int, channel_step: int) -> int:
    """What the number of channels that stay is best a multiple of, where each layer is to lose the same share.

    The power of two up to ``channel_step`` that is no more than a quarter of them, and at least 4: below that, ONNX
    Runtime's blocked kernels fall back to slow ones.
    """
    quarter = max(_SMALLEST_STEP, channels // 4)
    return min(channel_step, 1 << (quarter.bit_length() - 1))


def levels(classes: int, width: int, align: int, channel_step: int) -> Floats:
    """The numbers of classes that may stay, each ``width`` channels wide: all, then ever fewer.

    In channels they are multiples of ``align``; with 0, those that are faster than the next where ``channel_step`` is
    the length of a block (``target.fast_counts``).
    """
    counts = np.arange(align, classes * width, align) if align else fast_counts(classes * width, channel_step)
    able = [n // width for n in counts if n % width == 0 and n < classes * width]
    return np.array([classes, *able[::-1]], np.float64)


def ends(graph: Graph) -> set[int]:
    """The layers (their ``id``) before which, or after which, there is no other on the way through the graph."""
    first = _outermost(graph.nodes, reads, lambda node: node.outputs)
    return first | _outermost(reversed(graph.nodes), lambda node: node.outputs, reads)


def _outermost(nodes: Iterable[Node], near: _Tensors, far: _Tensors) -> set[int]:
    """The layers met first, going through ``nodes`` from the tensors ``near`` each to those ``far``."""
    reached: set[int] = set()
    found = set()
    for node in nodes:
        behind = any(id(t) in reached for t in near(node))
        computed = any(not is_constant(t) for t in node.inputs)
        if not behind and node.op in (*layers.LAYERS, *recurrent.LAYERS) and computed and not _is_addition(node):
            found.add(id(node))
            behind = True
        if behind:
            reached.update(id(t) for t in far(node))
    return found
