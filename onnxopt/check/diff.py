"""How two models differ, node by node: operators, attributes, types, shapes, weights, connections, cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from onnxopt.check.common import common_inputs
from onnxopt.check.diff_numbers import numbers as run_both
from onnxopt.check.diff_weights import weight_differences
from onnxopt.check.matching import Digests, Match, match
from onnxopt.core.context import Context
from onnxopt.data.dataset import Dataset
from onnxopt.errors import ExecutionError
from onnxopt.graph import io, shapes
from onnxopt.graph.cost import Cost, cost
from onnxopt.graph.ir import Graph, Node, Tensor, is_constant
from onnxopt.graph.model import Model
from onnxopt.graph.signature import TensorSpec, describe
from onnxopt.progress import Track, silent
from onnxopt.report import words
from onnxopt.report.difference import Difference, Field, Lone, Numbers, Pair, Size
from onnxopt.runtime.machine import versions

_TEXT = 60
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


class Open(Protocol):
    """Samples for a model, as it takes them or as ``inputs`` narrows that."""

    def __call__(self, model: Model, inputs: tuple[TensorSpec, ...] | None = None) -> Dataset: ...


@dataclass(frozen=True)
class Side:
    """One model as it is compared: its nodes in order, what they cost, its tensors' types and shapes for one sample."""

    model: Model
    nodes: tuple[Node, ...]
    sizes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, str]
    cost: Cost

    @classmethod
    def of(cls, model: Model, dataset: Dataset) -> Side:
        """``dataset`` feeds the model; what it cannot run has only the shapes that are sure."""
        try:
            sizes = Context(model, dataset).shapes(model)
        except ExecutionError:
            sizes = {}
        types = {name: str(spec.dtype) for name, spec in shapes.specs(model).items()}
        return cls(model, tuple(model.nodes()), sizes, types, cost(model, sizes))


def look(a: Model, b: Model, open_one: Open, *, threads: int = 1, track: Track = silent) -> Difference:
    """Compare two models, and what they compute where they take the same inputs.

    ``open_one(model, inputs)`` gives samples: of the inputs that both take, or (None) of the model's own.
    """
    inputs, notes = common_inputs(a.inputs, b.inputs), []
    data = (open_one(a, inputs), open_one(b, inputs)) if inputs is not None else (open_one(a), open_one(b))
    sides = Side.of(a, data[0]), Side.of(b, data[1])
    numbers = None
    if inputs is None:
        notes.append(f"numbers are not compared: one takes {describe(a.inputs)}, the other {describe(b.inputs)}")
    else:
        notes += data[0].notes
        try:
            numbers = run_both(a, b, (sides[0].sizes, sides[1].sizes), data[0], threads=threads, track=track)
        except ExecutionError as error:
            notes.append(f"numbers are not compared: {error}")
    return compare(*sides, numbers, notes)


def compare(a: Side, b: Side, numbers: Numbers | None = None, notes: Sequence[str] = ()) -> Difference:
    """Everything that differs. ``numbers`` were computed by both before (``diff_numbers``), if that could be done."""
    digest = Digests()
    matches = match(a.nodes, b.nodes, digest)
    wiring = _Wiring(a, b, matches)
    pairs = tuple(_pair(a, b, m, wiring, digest) for m in matches)
    left, right = {i for i, _ in matches}, {j for _, j in matches}
    removed = tuple(_lone(n) for i, n in enumerate(a.nodes) if i not in left)
    added = tuple(_lone(n) for j, n in enumerate(b.nodes) if j not in right)
    interface = (*_interface(a.model, b.model, digest), *wiring.outputs(a.model.graph, b.model.graph, "output"))
    same = not removed and not added and not interface and all(p.same for p in pairs)
    return Difference(
        a=str(a.model.path or ""),
        b=str(b.model.path or ""),
        same=same,
        versions=versions(),
        sizes=(_size(a), _size(b)),
        header=tuple(_header(a.model, b.model)),
        interface=interface,
        pairs=pairs,
        removed=removed,
        added=added,
        renamed=sum(p.same and p.a != p.b for p in pairs),
        numbers=numbers,
        notes=tuple(notes),
    )


class _Wiring:
    """Where inputs come from, so that it can be told whether two nodes read the same."""

    def __init__(self, a: Side, b: Side, matches: Sequence[Match]) -> None:
        self._owner: dict[int, object] = {}
        for number, (i, j) in enumerate(matches):
            self._owner[id(a.nodes[i])] = self._owner[id(b.nodes[j])] = number
            for one, other in zip(a.nodes[i].bodies(), b.nodes[j].bodies(), strict=False):
                for k, (x, y) in enumerate(zip(one.inputs, other.inputs, strict=False)):
                    self._owner[id(x)] = self._owner[id(y)] = (number, k)
        for side in (a, b):
            self._owner |= {id(t): t.name for t in side.model.graph.inputs}

    def differ(self, x: Tensor | None, y: Tensor | None) -> bool:
        """Do two tensors surely come from elsewhere? What is made by a node that the other model lacks may be equal."""
        one, other = self._origin(x), self._origin(y)
        return one != other and one is not None and other is not None

    def outputs(self, a: Graph, b: Graph, what: str) -> Iterator[Field]:
        """Outputs of two graphs that come from elsewhere."""
        for k, (x, y) in enumerate(zip(a.outputs, b.outputs, strict=False)):
            if self.differ(x, y):
                yield Field(f"{what} {k} comes from", _source(x), _source(y))

    def _origin(self, tensor: Tensor | None) -> object:
        """What tells a tensor from others; None where that is not known."""
        if tensor is None or tensor.is_empty():
            return "nothing"
        if is_constant(tensor):
            return None  # compared as a weight
        if not tensor.inputs:
            return self._owner.get(id(tensor))
        node: Node = tensor.inputs[0]
        if (owner := self._owner.get(id(node))) is not None:
            return owner, next(k for k, t in enumerate(node.outputs) if t is tensor)
        return self._origin(node.inputs[0]) if node.op in _CONVERSIONS and node.is_standard else None


def _pair(a: Side, b: Side, indices: Match, wiring: _Wiring, digest: Digests) -> Pair:
    i, j = indices
    one, other = a.nodes[i], b.nodes[j]
    fields = [Field("operator", one.kind, other.kind)] if one.kind != other.kind else []
    fields += _attributes(one, other, (a.model, b.model), digest)
    fields += _results(a, b, one, other)
    for k in range(max(len(one.inputs), len(other.inputs))):
        x, y = (n.inputs[k] if k < len(n.inputs) else None for n in (one, other))
        if wiring.differ(x, y):
            fields.append(Field(f"input {k} comes from", _source(x), _source(y)))
    for x_body, y_body in zip(one.bodies(), other.bodies(), strict=False):
        fields += wiring.outputs(x_body, y_body, "result of its body")
    costs = a.cost.nodes[i], b.cost.nodes[j]
    return Pair(
        a=one.name,
        b=other.name,
        op=one.kind,
        fields=tuple(fields),
        weights=tuple(weight_differences(one, other, digest)),
        macs=(costs[0].macs, costs[1].macs),
        bytes=(costs[0].weight_bytes, costs[1].weight_bytes),
    )


def _attributes(one: Node, other: Node, models: tuple[Model, Model], digest: Digests) -> Iterator[Field]:
    """Attributes that differ; one that is left out has its default."""
    sides = [_defaults(n, m) | n.attrs for n, m in zip((one, other), models, strict=True)]
    for name in sorted(set(sides[0]) | set(sides[1])):
        x, y = (_attribute(side[name], digest) if name in side else "" for side in sides)
        if x != y:
            yield Field(str(name), _short(x), _short(y))


def _defaults(node: Node, model: Model) -> dict[str, Any]:
    """What an operator's attributes are where nothing is said."""
    if not node.is_standard:
        return {}
    try:
        schema = onnx.defs.get_schema(node.op, model.opset, "")
    except onnx.defs.SchemaError:
        return {}
    given = {n: a.default_value for n, a in schema.attributes.items() if a.default_value.type}
    return {n: onnx.helper.get_attribute_value(value) for n, value in given.items()}


def _attribute(value: Any, digest: Digests) -> str:
    if isinstance(value, Graph):
        return f"a body of {words.many(len(value.inputs), 'input')}, {words.many(len(value.outputs), 'output')}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_attribute(v, digest) for v in value)}]"
    if is_constant(value):
        return f"{np.dtype(value.dtype)}{list(value.shape)} {digest(value)}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)} {value.tolist()}"
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return f"{float(np.float32(value)):.9g}" if isinstance(value, float) else str(value)


def _results(a: Side, b: Side, one: Node, other: Node) -> Iterator[Field]:
    """Types and shapes of what both make."""
    for k, (x, y) in enumerate(zip(one.outputs, other.outputs, strict=False)):
        texts = [_form(t, s) for t, s in ((x, a), (y, b))]
        if "" not in texts and texts[0] != texts[1]:
            yield Field(f"output {k}", *texts)


def _form(tensor: Tensor, side: Side) -> str:
    """Type and shape; empty where they are not known."""
    shape = side.sizes.get(tensor.name)
    return "" if shape is None else f"{side.types.get(tensor.name, '')}[{','.join(map(str, shape))}]"


def _header(a: Model, b: Model) -> Iterator[Field]:
    """What does not change what is computed."""
    for what in ("ir_version", "producer_name", "producer_version", "domain", "model_version"):
        x, y = (str(getattr(m.header, what)) for m in (a, b))
        if x != y:
            yield Field(what.replace("_", " "), x, y)
    remarks = [{p.key: p.value for p in m.header.metadata_props} for m in (a, b)]
    for key in sorted(set(remarks[0]) | set(remarks[1])):
        if remarks[0].get(key) != remarks[1].get(key):
            yield Field(f"metadata {key}", *(_short(r.get(key, "")) for r in remarks))


def _interface(a: Model, b: Model, digest: Digests) -> Iterator[Field]:
    opsets = [{o.domain or "ai.onnx": o.version for o in m.header.opset_import} for m in (a, b)]
    for domain in sorted(set(opsets[0]) | set(opsets[1])):
        x, y = (str(o.get(domain, "")) for o in opsets)
        if x != y:
            yield Field(f"opset {domain}", x, y)
    for what, ours, theirs in (("input", a.inputs, b.inputs), ("output", a.outputs, b.outputs)):
        for k in range(max(len(ours), len(theirs))):
            x, y = (str(specs[k]) if k < len(specs) else "" for specs in (ours, theirs))
            if x != y:
                yield Field(f"{what} {k}", x, y)
    defaults = [{k: digest(v) for k, v in m.graph.defaults.items()} for m in (a, b)]
    for name in sorted(set(defaults[0]) | set(defaults[1])):
        if defaults[0].get(name) != defaults[1].get(name):
            yield Field(f"default of {name}", *(d.get(name, "none")[:8] for d in defaults))
    bodies = [{f"{f.domain}.{f.name}": f.SerializeToString(deterministic=True) for f in m.header.functions}
              for m in (a, b)]  # fmt: skip
    for name in sorted(set(bodies[0]) | set(bodies[1])):
        if bodies[0].get(name) != bodies[1].get(name):
            yield Field(f"function {name}", *("is there" if name in side else "" for side in bodies))


def _size(side: Side) -> Size:
    total, path = side.cost.total, side.model.path
    stored = sum(Path(p).stat().st_size for p in io.files_of(path)) if path is not None else 0
    return Size(len(side.nodes), total.parameters, total.weight_bytes, stored, total.macs)


def _lone(node: Node) -> Lone:
    return Lone(node.name, node.kind)


def _source(tensor: Tensor | None) -> str:
    """Where a tensor comes from, for reading."""
    if tensor is None or tensor.is_empty():
        return "nothing"
    return str(tensor.inputs[0].name or tensor.name) if tensor.inputs else str(tensor.name)


def _short(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"
