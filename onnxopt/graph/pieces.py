"""Where two forms of a model differ, piece by piece, and a model of one form with single pieces of the other.

Tensors that both forms have by name, and that something reads, are where a piece may begin and end; but a layer and
the bias that is added behind it belong together. What makes such a tensor out of others of its kind is a piece, and all
that one node makes is one; two pieces are equal when they compute the same from the same constants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxopt.graph.ir import Constant, Graph, Node, Scope, Tensor, Variable, is_constant, reads
from onnxopt.graph.layer import LAYERS
from onnxopt.graph.model import Model
from onnxopt.graph.proto import raw_bytes
from onnxopt.graph.shapes import specs
from onnxopt.graph.signature import TensorSpec


@dataclass(frozen=True, eq=False)
class Piece:
    """The nodes that make the tensors ``outputs`` of the original, and those that make them in the other form.

    ``whole``: it can be put into the original; False where a body of an If, Loop or Scan is part of it.
    """

    outputs: tuple[str, ...]
    before: tuple[Node, ...]
    after: tuple[Node, ...]

    @property
    def whole(self) -> bool:
        """See above."""
        return not any(True for n in (*self.before, *self.after) for _ in n.bodies())


def differences(original: Model, changed: Model) -> list[Piece]:
    """The pieces of the main graphs that are not equal, in the order of the original; both at the same opset."""
    common = _common(original, changed)
    digests: dict[int, str] = {}
    before, after = (_read(m, common, digests) for m in (original, changed))
    parts: dict[int, list[str]] = {}
    for name, made in before.items():
        if made.key != after[name].key:
            parts.setdefault(id(made.nodes[-1]), []).append(name)
    return [Piece(tuple(p), *(_joined(form[n].nodes for n in p) for form in (before, after))) for p in parts.values()]


def _joined(parts: Iterable[Sequence[Node]]) -> tuple[Node, ...]:
    return tuple(dict.fromkeys(n for nodes in parts for n in nodes))


def transplant(original: Model, changed: Model, pieces: Sequence[Piece]) -> Model:
    """The original with these pieces of the other form in place of its own; neither model changes."""
    model = original.clone()
    _import_domains(model, changed)
    types = specs(original), specs(changed)
    own = {t.name: t for t in (*model.graph.inputs, *(t for n in model.graph.nodes for t in n.outputs))}
    constants: dict[int, Tensor] = {}
    for piece in pieces:
        _put(model, own, piece, types, constants)
    model.tidy()
    return model


@dataclass(frozen=True)
class _Made:
    """How a tensor comes about: a digest of all that makes it from common tensors, and the nodes that do."""

    key: str
    nodes: tuple[Node, ...]


def _common(original: Model, changed: Model) -> set[str]:
    """The names of what nodes of both main graphs make, where nothing says that it is of another shape."""
    names = [{t.name for n in m.graph.nodes for t in n.outputs if t.name} for m in (original, changed)]
    a, b = specs(original), specs(changed)
    inner = _inner(original)
    return {n for n in names[0] & names[1] if n not in inner and _may_be_equal(a.get(n), b.get(n))}


def _inner(model: Model) -> set[str]:
    """What nothing reads, and what a layer makes for the constant that alone is then added."""
    scope = Scope(model.graph)
    read = {id(t) for n in model.graph.nodes for t in reads(n)} | {id(t) for t in model.graph.outputs}
    found = {t.name for n in model.graph.nodes for t in n.outputs if id(t) not in read}
    for node in model.graph.nodes:
        sums = [t for t in node.inputs if not is_constant(t)]
        if node.op != "Add" or not node.is_standard or len(sums) != 1:
            continue
        maker = scope.producer(sums[0])
        if maker is not None and maker.op in LAYERS and scope.used_once(sums[0]):
            found.add(sums[0].name)
    return found


def _may_be_equal(a: TensorSpec | None, b: TensorSpec | None) -> bool:
    if a is None or b is None:
        return True
    if a.dtype != b.dtype and not all(np.issubdtype(s.dtype, np.floating) for s in (a, b)):
        return False
    if a.shape is None or b.shape is None:
        return True
    sizes = zip(a.shape, b.shape, strict=False)
    same = all(p == q for p, q in sizes if isinstance(p, int) and isinstance(q, int))
    return len(a.shape) == len(b.shape) and same


def _read(model: Model, common: set[str], digests: dict[int, str]) -> dict[str, _Made]:
    """How every common tensor is made. ``digests`` of constants, by the identity of their values, are filled in."""
    made: dict[int, _Made] = {}
    found: dict[str, _Made] = {}
    for node in model.graph.nodes:
        inner = [made[id(t)] for t in dict.fromkeys(reads(node)) if id(t) in made]
        nodes = (*dict.fromkeys(n for m in inner for n in m.nodes), node)
        parts = [node.kind, *_attributes(node, digests)]
        parts += [made[id(t)].key if id(t) in made else _leaf(t, digests) for t in node.inputs]
        for i, tensor in enumerate(node.outputs):
            one = _Made(_digest([*parts, str(i)]), nodes)
            if tensor.name in common:
                found[tensor.name] = one
            elif tensor.name:
                made[id(tensor)] = one
    return found


def _leaf(tensor: Tensor, digests: dict[int, str]) -> str:
    if not is_constant(tensor):
        return f"tensor {tensor.name}"
    assert isinstance(tensor, Constant)
    at = id(tensor._values)
    if at not in digests:
        digests[at] = f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(raw_bytes(tensor)).hexdigest()}"
    return digests[at]


def _attributes(node: Node, digests: dict[int, str]) -> Iterator[str]:
    for name, value in sorted(node.attrs.items()):
        values = value if isinstance(value, list) else [value]
        if any(isinstance(v, Graph) for v in values):
            yield from (part for v in values if isinstance(v, Graph) for part in _body(v, digests))
        else:
            yield f"{name}={value}"


def _body(graph: Graph, digests: dict[int, str]) -> Iterator[str]:
    for node in graph.nodes:
        yield node.kind
        yield from _attributes(node, digests)
        yield from (_leaf(t, digests) for t in node.inputs)
        yield from (t.name for t in node.outputs)


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _import_domains(model: Model, other: Model) -> None:
    known = {o.domain for o in model.header.opset_import}
    model.header.opset_import.extend(o for o in other.header.opset_import if o.domain not in known)
    model.header.ir_version = max(model.header.ir_version, other.header.ir_version)


def _put(
    model: Model,
    own: Mapping[str, Any],
    piece: Piece,
    types: Sequence[Mapping[str, TensorSpec]],
    constants: dict[int, Tensor],
) -> None:
    """Copy one piece, with casts where a common tensor has another float type in the other form. What pieces read
    together, ``constants`` by the identity of the other form's, they still do."""
    copies: dict[int, Tensor] = {}
    inside = {id(t) for n in piece.after for t in n.outputs}

    def copy(tensor: Tensor) -> Tensor:
        if tensor.is_empty():
            return Variable.empty()
        if is_constant(tensor):
            if id(tensor) not in constants:
                constants[id(tensor)] = Constant(model.fresh_name(tensor.name), tensor._values)  # packed, if it was
            return constants[id(tensor)]
        if id(tensor) not in copies:
            if id(tensor) in inside:
                copies[id(tensor)] = Variable(model.fresh_name(tensor.name), tensor.dtype)
            else:
                copies[id(tensor)] = _cast(model, own[tensor.name], _types(tensor.name, types))
        return copies[id(tensor)]

    for node in piece.after:
        inputs, outputs = ([copy(t) for t in side] for side in (node.inputs, node.outputs))
        name = model.fresh_name(node.name or node.op)
        model.graph.nodes.append(Node(node.op, name, inputs, outputs, dict(node.attrs), node.domain))
    made = {t.name: t for n in piece.after for t in n.outputs}
    for name in piece.outputs:
        _take_over(model, own[name], _cast(model, copy(made[name]), _types(name, types)[::-1]))


def _types(name: str, types: Sequence[Mapping[str, TensorSpec]]) -> list[Any]:
    return [known[name].dtype if name in known else None for known in types]


def _cast(model: Model, tensor: Tensor, types: Sequence[Any]) -> Tensor:
    """The tensor, of the second type instead of the first where they are known and not the same."""
    if None in types or types[0] == types[1]:
        return tensor
    result = Variable(model.fresh_name(f"{tensor.name}.cast"), types[1])
    to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(types[1]))
    model.graph.nodes.append(Node("Cast", model.fresh_name(f"{tensor.name}.cast"), [tensor], [result], {"to": to}))
    return result


def _take_over(model: Model, old: Tensor, new: Tensor) -> None:
    """Let the node that makes ``new`` make ``old`` instead of the one that did."""
    maker, heir = old.inputs[0], new.inputs[0]
    places = [next(i for i, t in enumerate(n.outputs) if t is x) for n, x in ((maker, old), (heir, new))]
    maker.outputs[places[0]] = Variable(model.fresh_name(f"{old.name}.before"), old.dtype)
    heir.outputs[places[1]] = old
    for reader in list(new.outputs):  # where what the piece gives is read within it
        for i, t in enumerate(reader.inputs):
            if t is new:
                reader.inputs[i] = old
