"""Let the weights of each layer share few levels, and choose which takes which for what the layer shall make.

In the order of the graph every layer is given what reaches it from the layers already done, and shall make of it what
it made in the original (``repair.observed``). Levels that merely lie nearest to the weights are the measure: a layer
takes others only where what it makes is nearer on samples that were held back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.seen import Seen
from onnxopt.graph import layer as layers
from onnxopt.graph import recurrent
from onnxopt.graph.codes import Coded
from onnxopt.graph.ir import Constant, Node, is_constant
from onnxopt.graph.layer import Floats, layout
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.numerics import codebook
from onnxopt.numerics.codebook import Book, Form
from onnxopt.pruning.repair import Place, observed

_FLOATS = (np.float16, np.float32, np.float64)
_DAMPINGS = (1e-2, 1e-1)


@dataclass(frozen=True)
class Shared:
    """Bytes of a weight before, as codes, and as Shannon's bound has it; ``weight_db`` is its signal over its error.

    ``plain`` and ``error`` are the layer's squared error over its squared output on held-back samples, with the levels
    nearest to its weights and as it became; None without data.
    """

    layer: str
    levels: int
    bytes: tuple[int, int, int]
    weight_db: float
    plain: float | None = None
    error: float | None = None


def slots(node: Node) -> tuple[int, ...]:
    """Which inputs of a node are weights or a table to look rows up in."""
    if recurrent.is_recurrent(node):
        return (1, 2)
    if not node.is_standard:
        return ()
    if node.op in ("Gemm", "MatMul"):
        return (0, 1)
    return (1,) if node.op in layers.LAYERS else (0,) if node.op == "Gather" else ()


def candidates(model: Model) -> dict[Constant, list[Node]]:
    """The float weights of layers and tables, each with the nodes that read it as such, bodies included."""
    found: dict[Constant, list[Node]] = {}
    for node in model.nodes():
        for tensor in (node.inputs[i] for i in slots(node) if i < len(node.inputs)):
            if is_constant(tensor) and tensor.dtype in _FLOATS and len(tensor.shape) > 1:
                found.setdefault(tensor, []).append(node)
    return found


def fault(model: Model, constant: Constant, nodes: Sequence[Node], levels: int, *, per_channel: bool) -> str:
    """Why a weight stays as it is, to be read as a sentence; empty if it need not."""
    if any(constant is t for t in model.graph.outputs):
        return "it is an output of the graph"
    if any(constant is default for default in model.graph.defaults.values()):
        return "it is the default of an input, which a feed may replace"
    if not np.isfinite(constant.values).all():
        return "its weights hold NaN or infinity"
    scale = prod(_scaled(constant, nodes)) if per_channel else 0
    blank = Coded(np.zeros(constant.shape, np.uint8), np.zeros(levels, constant.dtype), np.zeros(scale, constant.dtype))
    if blank.nbytes >= constant.nbytes:
        return f"it would save nothing: {constant.nbytes} bytes now, {blank.nbytes} as codes"
    return ""


def is_solvable(model: Model, constant: Constant, nodes: Sequence[Node]) -> bool:
    """Can codes be chosen by what the layer makes, rather than by its weights?"""
    layer = nodes[0]
    outer = any(layer is n for n in model.graph.nodes)
    return outer and len(nodes) == 1 and layer.op in layers.LAYERS and not unrolled.fault(layer)


def by_weights(constant: Constant, nodes: Sequence[Node], form: Form, *, per_channel: bool) -> Coded:
    """The codes of the levels nearest to the weights."""
    values = np.asarray(constant.values, np.float64)
    shape = _scaled(constant, nodes) if per_channel else ()
    axes = [i for i, size in enumerate(shape) if size > 1]
    rows = np.moveaxis(values, axes, range(len(axes)))
    book = codebook.plain(
        rows.reshape(1, prod(rows.shape[: len(axes)]), -1), form, per_channel=per_channel and bool(axes)
    )
    codes = np.moveaxis(book.codes.reshape(rows.shape), range(len(axes)), axes)
    scale = book.scale.reshape(shape) if axes else book.scale[:, :1].reshape(())
    return _coded(np.ascontiguousarray(codes), book.levels, scale, constant.dtype)


def by_outputs(
    model: Model, original: Model, chosen: Sequence[Node], form: Form, context: Context, samples: int, *, channels: bool
) -> Iterator[tuple[Node, Coded, float, float]]:
    """Layers of a model in its order, each with its codes and its errors; their weights and biases are replaced."""
    places = [Place(layer, np.ones(layout(layer).outputs, np.bool_), True) for layer in chosen]
    for place, rows in observed(model, original, places, context, samples, "cluster"):
        layer = place.layer
        weight, bias = unrolled.read(layer)
        seen = Seen(weight, bias, unrolled.has_bias(model, layer), rows)
        own = channels and not (layer.op == "ConvTranspose" and weight.shape[0] > 1)
        tried = list(_tried(seen, form, own))
        results = [(book.values, seen.bias) if i == 0 else seen.with_bias(book.values) for i, book in enumerate(tried)]
        errors = [seen.error(*result) for result in results]
        best = int(np.argmin(errors))
        unrolled.write(model, layer, *results[best])
        yield layer, _rolled(layer, tried[best], own), errors[0], errors[best]


def _tried(seen: Seen, form: Form, channels: bool) -> Iterator[Book]:
    """Books to choose from: that of the weights twice, the second time to get a bias to go with it."""
    plain = codebook.plain(seen.weight, form, per_channel=channels)
    yield plain
    yield plain
    if not seen.counts[0]:
        return
    for damping in _DAMPINGS:
        gram = seen.damped(damping)
        wanted = seen.wanted(gram)
        start = codebook.plain(wanted, form, np.diagonal(gram, axis1=1, axis2=2), per_channel=channels)
        yield codebook.for_outputs(wanted, gram, start, form, per_channel=channels)


def _rolled(layer: Node, book: Book, channels: bool) -> Coded:
    """A book in the form of the layer's own weight."""
    constant = layer.inputs[1]
    scale = book.scale[:1, :1].reshape(())
    if channels:
        full = unrolled.roll(layer, np.broadcast_to(book.scale, book.codes.shape))
        scale = full[tuple(slice(None) if n > 1 else slice(1) for n in _scaled(constant, [layer]))]
    return _coded(unrolled.roll(layer, book.codes), book.levels, scale, constant.dtype)


def _coded(codes: Array, levels: Floats, scale: Floats, dtype: np.dtype[np.generic]) -> Coded:
    """In the type of the weight; one scale for all goes into the levels."""
    if not scale.ndim:
        return Coded(codes.astype(np.uint8), (levels * scale).astype(dtype))
    return Coded(codes.astype(np.uint8), levels.astype(dtype), scale.astype(dtype))


def _scaled(constant: Constant, nodes: Sequence[Node]) -> tuple[int, ...]:
    """The shape of a weight's scales: one for each output channel, hidden unit and gate, or row of a table.

    One for all (every size is 1) where its readers do not agree on an axis.
    """
    shape = tuple(constant.shape)
    axes = {_axes(constant, node) for node in nodes}
    keep = axes.pop() if len(axes) == 1 else ()
    return tuple(size if i in keep else 1 for i, size in enumerate(shape))


def _axes(constant: Constant, node: Node) -> tuple[int, ...]:
    rank = len(constant.shape)
    if recurrent.is_recurrent(node):
        return (0, 1)
    if node.op in ("Conv", "Gather"):
        return (0,)
    if node.op == "ConvTranspose":
        return (1,) if node.attrs.get("group", 1) == 1 else ()
    if node.inputs[1] is constant:
        return (rank - 2,) if node.attrs.get("transB", 0) else (rank - 1,)
    return (rank - 1,) if node.attrs.get("transA", 0) else (rank - 2,)


def told(name: str, before: Array, coded: Coded, errors: tuple[float, float] | None) -> Shared:
    """The figures of a weight."""
    a, b = before.astype(np.float64), coded.values.astype(np.float64)
    power, noise = float(np.square(a).sum()), float(np.square(a - b).sum())
    db = float(10 * np.log10(max(power, 1e-30) / max(noise, 1e-30)))
    sizes = (before.nbytes, coded.nbytes, round(coded.entropy_bytes))
    return Shared(name, len(coded.levels), sizes, round(db, 2), *(errors or ()))
