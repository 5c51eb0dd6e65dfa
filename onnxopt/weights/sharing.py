"""Let the weights of each layer share few levels, and choose which takes which for what the layer shall make.

In the order of the graph every layer is given what reaches it from the layers already done, and shall make of it what
it made in the original (``core.observed``). Levels that merely lie nearest to the weights are the measure: a layer
takes others only where what it makes is nearer on samples that were held back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.observed import Place, observed
from onnxopt.core.pass_ import label
from onnxopt.core.seen import Seen
from onnxopt.graph import layer as layers
from onnxopt.graph import recurrent
from onnxopt.graph.codes import Coded
from onnxopt.graph.ir import Constant, Node, is_constant
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.numerics import codebook
from onnxopt.numerics.codebook import Book, Form, Part, Shelf

_FLOATS = (np.float16, np.float32, np.float64)
_DAMPINGS = (1e-2, 1e-1)
# Of a bias with its name, and of an Add behind a product.
_BIAS_BYTES = 200


@dataclass(frozen=True)
class Shared:
    """Bytes of a weight before, as codes, and as Shannon's bound for the codes has it, with levels and scales;
    ``weight_db`` is its signal over its error. There are ``books`` times so many levels.

    ``plain`` and ``error`` are the layer's squared error over its squared output on held-back samples, with the levels
    nearest to its weights and as it became; None without data.
    """

    layer: str
    levels: int
    books: int
    bytes: tuple[int, int, int]
    weight_db: float
    plain: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Kind:
    """What levels weights take: a ``form``, a scale for each output channel or one, and levels of their own for so
    many output channels each (``group``; 0: all share them)."""

    form: Form
    per_channel: bool = True
    group: int = 0

    @property
    def levels(self) -> int:
        """How many levels a book has."""
        return {"ternary": 3, "binary": 2}[self.form] if isinstance(self.form, str) else self.form


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


def fault(model: Model, constant: Constant, nodes: Sequence[Node], kind: Kind) -> str:
    """Why a weight stays as it is, to be read as a sentence; empty if it need not."""
    if any(constant is t for t in model.graph.outputs):
        return "it is an output of the graph"
    if any(constant is default for default in model.graph.defaults.values()):
        return "it is the default of an input, which a feed may replace"
    if not np.isfinite(constant.values).all():
        return "its weights hold NaN or infinity"
    if saved(constant, nodes, kind) <= 0:
        size = constant.nbytes - saved(constant, nodes, kind)
        return f"it would save nothing: {constant.nbytes} bytes now, {size} as codes"
    return ""


def saved(constant: Constant, nodes: Sequence[Node], kind: Kind) -> int:
    """Bytes that a weight would take less, at least, without what all weights share; with data it gets a bias."""
    shape = _scaled(constant, nodes)
    books = len(codebook.parts(*_channels(constant, nodes, shape), kind.group))
    blank = Coded(
        np.zeros(constant.shape, np.uint8),
        np.zeros((books, kind.levels), constant.dtype),
        np.zeros(shape, constant.dtype) if kind.per_channel else None,
        np.zeros(shape, np.int32) if books > 1 else None,
    )
    stems = [constant.name, *(f"{label(n)}.weight" for n in nodes)]
    lone = nodes[0].op in layers.LAYERS and len(nodes[0].inputs) < 3
    bias = _BIAS_BYTES + prod(shape) * constant.dtype.itemsize if lone else 0
    return constant.nbytes - max(map(blank.nbytes, stems)) - bias


def is_solvable(model: Model, constant: Constant, nodes: Sequence[Node]) -> bool:
    """Can codes be chosen by what the layer makes, rather than by its weights?"""
    layer = nodes[0]
    outer = any(layer is n for n in model.graph.nodes)
    return outer and len(nodes) == 1 and layer.op in layers.LAYERS and not unrolled.fault(layer)


def by_weights(constant: Constant, nodes: Sequence[Node], kind: Kind) -> Coded:
    """The codes of the levels nearest to the weights."""
    values = np.asarray(constant.values, np.float64)
    shape = _scaled(constant, nodes)
    axes = [i for i, size in enumerate(shape) if size > 1]
    rows = np.moveaxis(values, axes, range(len(axes)))
    groups, outputs = _channels(constant, nodes, shape)
    weight = rows.reshape(groups, outputs, -1)
    own = kind.per_channel and bool(axes)
    found = codebook.shelf(
        lambda part: codebook.plain(weight[part], kind.form, per_channel=own), groups, outputs, kind.group
    )
    codes = np.moveaxis(found.codes.reshape(rows.shape), range(len(axes)), axes)
    scale = found.scale.reshape(shape) if own else found.scale[:1, :1].reshape(())
    return _coded(np.ascontiguousarray(codes), found.levels, scale, found.book.reshape(shape), constant.dtype)


def by_outputs(
    model: Model, original: Model, chosen: Sequence[Node], kind: Kind, context: Context, samples: int
) -> Iterator[tuple[Node, Coded, float, float]]:
    """Layers of a model in its order, each with its codes and its errors; their weights and biases are replaced."""
    places = [Place.whole(layer) for layer in chosen]
    for place, rows in observed(model, original, places, context, samples, "cluster"):
        layer = place.layer
        weight, bias = unrolled.read(layer)
        seen = Seen(weight, bias, unrolled.has_bias(model, layer), rows)
        tried = list(_tried(seen, kind if _axes(layer.inputs[1], layer) else Kind(kind.form, per_channel=False)))
        results = [(book.values, seen.bias) if i == 0 else seen.with_bias(book.values) for i, book in enumerate(tried)]
        errors = [seen.error(*result) for result in results]
        best = int(np.argmin(errors))
        unrolled.write(model, layer, *results[best])
        yield layer, _rolled(layer, tried[best], kind), errors[0], errors[best]


def _tried(seen: Seen, kind: Kind) -> Iterator[Shelf]:
    """Levels to choose from: those of the weights twice, the second time to get a bias to go with them."""
    groups, outputs = seen.weight.shape[:2]
    form, own = kind.form, kind.per_channel

    def near(part: Part) -> Book:
        return codebook.plain(seen.weight[part], form, per_channel=own)

    plain = codebook.shelf(near, groups, outputs, kind.group)
    yield plain
    yield plain
    if not seen.tells:
        return
    for damping in _DAMPINGS:
        gram = seen.damped(damping)
        wanted = seen.wanted(gram)

        def solved(part: Part, gram: Floats = gram, wanted: Floats = wanted) -> Book:
            moments = gram[part[0]]
            start = codebook.plain(wanted[part], form, np.diagonal(moments, axis1=1, axis2=2), per_channel=own)
            return codebook.for_outputs(wanted[part], moments, start, form, per_channel=own)

        yield codebook.shelf(solved, groups, outputs, kind.group)


def _rolled(layer: Node, found: Shelf, kind: Kind) -> Coded:
    """Codes and scales in the form of the layer's own weight."""
    constant = layer.inputs[1]
    shape = _scaled(constant, [layer])
    at = tuple(slice(None) if n > 1 else slice(1) for n in shape)
    scale, book = (unrolled.roll(layer, np.broadcast_to(a, found.codes.shape))[at] for a in (found.scale, found.book))
    own = kind.per_channel and bool(_axes(constant, layer))
    return _coded(
        unrolled.roll(layer, found.codes), found.levels, scale if own else scale.reshape(-1)[0], book, constant.dtype
    )


def _coded(codes: Array, levels: Floats, scale: Floats, book: Array, dtype: np.dtype[np.generic]) -> Coded:
    """In the type of the weight; one scale for all goes into the levels."""
    if not scale.ndim:
        levels = levels * scale
    factors = scale.astype(dtype) if scale.ndim else None
    if len(levels) == 1:
        return Coded(codes.astype(np.uint8), levels[0].astype(dtype), factors)
    return Coded(codes.astype(np.uint8), levels.astype(dtype), factors, book.astype(np.int32))


def _channels(constant: Constant, nodes: Sequence[Node], shape: tuple[int, ...]) -> tuple[int, int]:
    """Groups of a weight, and output channels of each, in all as many as its scales have numbers."""
    groups = int(nodes[0].attrs.get("group", 1)) if nodes[0].op == "Conv" and len(nodes) == 1 else 1
    return groups, prod(shape) // groups


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


def told(name: str, before: Array, coded: Coded, stem: str, errors: tuple[float, float] | None) -> Shared:
    """The figures of a weight that is stored under a name that begins with ``stem``."""
    a, b = before.astype(np.float64), coded.values.astype(np.float64)
    power, noise = float(np.square(a).sum()), float(np.square(a - b).sum())
    db = float(10 * np.log10(max(power, 1e-30) / max(noise, 1e-30)))
    sizes = (before.nbytes, coded.nbytes(stem), round(coded.entropy_bytes))
    books = coded.levels.size // coded.count
    return Shared(name, coded.count, books, sizes, round(db, 2), *(errors or ()))
