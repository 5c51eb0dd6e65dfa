"""The first layer of a model whose result on another processor is not what it is here.

Tensors are made outputs of the model, which is then run here and there. That changes which kernels ONNX Runtime makes
of the graph, so only those are read at which none begins or ends otherwise: what a QuantizeLinear writes, and the
floats that a layer reads. A few at a time, first all over the graph, then only before the first that differs.

What ONNX Runtime makes unsigned when it loads a model would stay signed if somebody looked at it; it is made unsigned
here before, for all processors, since their integer kernels take both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from onnxopt.graph import io
from onnxopt.graph.cost import PRODUCTS
from onnxopt.graph.ir import Graph, Node, Scope, Tensor, is_constant, reads
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array, Feed
from onnxopt.numerics.tolerance import allowed, deviation
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.islands import type_read
from onnxopt.targets.native import Native
from onnxopt.targets.way import Way

_WRITERS = ("QuantizeLinear", "QLinear", "QGemm")
_CONVOLUTIONS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool")
_PRODUCTS = ("Gemm", "MatMul", "MatMulNBits", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "LSTM", "GRU", "RNN")
_READERS = {*_CONVOLUTIONS, *_PRODUCTS}
# Steps between float and integer, and what is done within the kernel before: none of them is the layer that departs.
_AROUND = (
    "Identity",
    "QuantizeLinear",
    "DequantizeLinear",
    "Relu",
    "Clip",
    "Cast",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
)
_ROUNDS = 4
_TIMEOUT_S = 600
# Most models have no more places than that, and one run tells. All are held in memory at once.
_AT_ONCE = 64
# Sums of float16 numbers, each rounded to 11 bits; what the exact passes are allowed would hide how they are summed.
_FLOAT16 = 2e-3


@dataclass(frozen=True)
class Departure:
    """``node`` is the layer, ``tensor`` where it was seen, ``share`` how much of it differs.

    ``largest`` is the largest difference: in steps of one for integers, over the largest magnitude for floats.
    """

    node: str
    tensor: str
    share: float
    largest: float
    op: str = ""
    steps: bool = True

    def __str__(self) -> str:
        by = f"{self.largest:g} step{'s' * (self.largest != 1)}" if self.steps else f"{self.largest:.2g} of the largest"
        return f"{self.op} '{self.node}': {_percent(self.share)} differ, by up to {by}"


@dataclass(frozen=True)
class _Difference:
    share: float
    largest: float
    steps: bool


def find_departure(candidate: Model, feed: Feed, way: Way, *, threads: int = 1) -> Departure | None:
    """The first layer, in the order of the graph, whose result there is another than here by more than float rounding.

    None where there is none: also where a difference goes away as soon as the inner tensors are looked at.
    Raises ExecutionError and TargetError as ``way.run`` does.
    """
    candidate = _as_loaded(candidate)
    graph = candidate.graph
    places = cuts(graph)
    known: dict[str, _Difference | None] = {}
    wanted = _spread(list(places))
    first: str | None = None
    for _ in range(_ROUNDS):
        known |= _compare(candidate, wanted, feed, way, threads)
        order = [*places, *(t.name for t in graph.outputs if t.name not in places)]
        first = next((name for name in order if known.get(name)), None)
        if first is None:
            return None
        wanted = _spread(_open(graph, places, first, known))
        if not wanted:
            break
    assert first is not None
    difference, node = known[first], _layer(graph, places, first)
    assert difference is not None
    return Departure(
        str(node.name or node.outputs[0].name), first, difference.share, difference.largest, node.op, difference.steps
    )


def cuts(graph: Graph) -> dict[str, Tensor]:
    """The tensors by name, in the order of the graph, that can be read without changing how they are made."""
    found = {}
    for node in graph.nodes:
        for tensor in node.outputs:
            if not tensor.is_empty() and _is_cut(node, tensor):
                found[tensor.name] = tensor
    return found


def _as_loaded(model: Model) -> Model:
    """A copy in which those quantized tensors are uint8 that x86 builds of ONNX Runtime turn from int8 into it."""
    copy = model.clone()
    scope = Scope(copy.graph)
    for node in copy.graph.nodes:
        if node.op != "DequantizeLinear" or type_read(node, scope, "native") != np.uint8:
            continue
        quantize = scope.producer(node.inputs[0])
        if quantize is None or quantize.op != "QuantizeLinear":
            continue
        for end in (quantize, node):
            if len(end.inputs) > 2 and is_constant(end.inputs[2]) and end.inputs[2].dtype == np.int8:
                zero = np.asarray(end.inputs[2].values).astype(np.int16) + 128
                end.inputs[2] = copy.constant("zero_point", zero.astype(np.uint8))
                quantize.outputs[0].dtype = np.dtype(np.uint8)
    return copy


def _is_cut(node: Node, tensor: Tensor) -> bool:
    if node.op.startswith(_WRITERS):
        return not is_constant(node.inputs[0])
    if node.op in ("DequantizeLinear", "DynamicQuantizeLinear"):
        return False
    readers = {reader.op for reader in tensor.outputs}
    return bool(readers & _READERS) and "QuantizeLinear" not in readers


def _spread(names: Sequence[str]) -> list[str]:
    """Some of them, evenly, the last among them."""
    count = min(len(names), _AT_ONCE)
    return [names[i] for i in np.linspace(len(names) - 1, 0, count).astype(int)][::-1] if count else []


def _open(graph: Graph, places: Mapping[str, Tensor], first: str, known: Mapping[str, object]) -> list[str]:
    """What may differ before the first that is known to: what leads to it, but to nothing that is equal."""
    by_name = {t.name: t for t in (*places.values(), *graph.outputs)}
    before = _ancestors([by_name[first]])
    equal = _ancestors([by_name[name] for name, difference in known.items() if difference is None and name in by_name])
    return [n for n, t in places.items() if n not in known and id(t) in before and id(t) not in equal]


def _ancestors(tensors: Iterable[Tensor]) -> set[int]:
    """The tensors that these are made of, by id, and themselves."""
    found: set[int] = set()
    stack = list(tensors)
    while stack:
        tensor = stack.pop()
        if id(tensor) not in found:
            found.add(id(tensor))
            stack += [t for node in tensor.inputs for t in reads(node)]
    return found


def _layer(graph: Graph, places: Mapping[str, Tensor], name: str) -> Node:
    """The node that does the work for a tensor: of those since the last that could be read, the nearest product, or
    else the nearest that is more than a step around a kernel."""
    tensor = places.get(name) or next(t for t in graph.outputs if t.name == name)
    made_by: list[Node] = [tensor.inputs[0]]
    for node in made_by:  # grows: nearest first
        inner = (t for t in reads(node) if t.name not in places)
        made_by += [maker for t in inner for maker in t.inputs if maker not in made_by]
    products = (node for node in made_by if node.op in PRODUCTS)
    workers = (node for node in made_by if node.op not in _AROUND)
    return next(products, None) or next(workers, made_by[0])


def _compare(model: Model, names: Sequence[str], feed: Feed, way: Way, threads: int) -> dict[str, _Difference | None]:
    """How these tensors and the model's outputs differ; None: they do not."""
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
        path = Path(folder) / "model.onnx"
        io.save(model, path)
        proto = onnx.load(path, load_external_data=False)
        have = {o.name for o in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in have)
        path.write_bytes(proto.SerializeToString())
        job = Job(models=(path,), feeds=[feed], threads=threads, timeout_s=_TIMEOUT_S)
        (here,), (there,) = (each.run(job).runs[0].outputs for each in (Native(), way))
    return {name: _difference(here[name], there[name]) for name in here if name in there}


def _difference(here: Array, there: Array) -> _Difference | None:
    if here.shape != there.shape or here.dtype != there.dtype:
        return _Difference(1.0, float("inf"), False)
    if here.dtype.kind == "f":
        limit = _FLOAT16 if here.dtype == np.float16 else allowed(here.dtype)
        largest = deviation(here, there)
        if largest <= limit:
            return None
        a, b = here.astype(np.float64), there.astype(np.float64)
        scale = np.abs(a[np.isfinite(a)]).max(initial=0)
        with np.errstate(invalid="ignore"):
            near = (np.abs(a - b) <= limit * scale) | (a == b) | (np.isnan(a) & np.isnan(b))
        return _Difference(float(1 - near.mean()), largest, False)
    unequal = here != there
    if not unequal.any():
        return None
    wide = here.dtype.kind in "iu"
    largest = float(np.abs(here.astype(np.float64) - there.astype(np.float64)).max()) if wide else 1.0
    return _Difference(float(unequal.mean()), largest, True)


def _percent(share: float) -> str:
    return f"{100 * share:.{2 if share < 0.1 else 3}g} %"
