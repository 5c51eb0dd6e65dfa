"""Where two forms of a model differ, piece by piece, and a model of one form with single pieces of the other.

Tensors that both forms have by name are where a piece may begin and end. What makes such a tensor out of others of its
kind is a piece; two pieces are equal when they compute the same from the same constants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxopt.graph.ir import Constant, Graph, Node, Tensor, Variable, is_constant, reads
from onnxopt.graph.model import Model
from onnxopt.graph.proto import raw_bytes
from onnxopt.graph.shapes import specs
from onnxopt.graph.signature import TensorSpec


@dataclass(frozen=True, eq=False)
class Piece:
    """The nodes that make the tensor ``output`` of the original, and those that make it in the other form, in order.

    ``whole``: it can be put into the original; False where a body of an If, Loop or Scan is part of it.
    """

    output: str
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
    return [
        Piece(name, before[name].nodes, after[name].nodes) for name in before if before[name].key != after[name].key
    ]


def transplant(original: Model, changed: Model, pieces: Sequence[Piece]) -> Model:
    """The original with these pieces of the other form in place of its own; neither model changes."""
    model = original.clone()
    _import_domains(model, changed)
    types = specs(original), specs(changed)
    own = {t.name: t for t in (*model.graph.inputs, *(t for n in model.graph.nodes for t in n.outputs))}
    for piece in pieces:
        _put(model, own, piece, types)
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
    return {n for n in names[0] & names[1] if _may_be_equal(a.get(n), b.get(n))}


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


def _put(model: Model, own: Mapping[str, Any], piece: Piece, types: Sequence[Mapping[str, TensorSpec]]) -> None:
    """Copy one piece, with casts where a common tensor has another float type in the other form."""
    copies: dict[int, Tensor] = {}
    inside = {id(t) for n in piece.after for t in n.outputs}

    def copy(tensor: Tensor) -> Tensor:
        if tensor.is_empty():
            return Variable.empty()
        if id(tensor) not in copies:
            if is_constant(tensor):
                copies[id(tensor)] = model.constant(tensor.name, tensor.values)
            elif id(tensor) in inside:
                copies[id(tensor)] = Variable(model.fresh_name(tensor.name), tensor.dtype)
            else:
                copies[id(tensor)] = _cast(model, own[tensor.name], _types(tensor.name, types))
        return copies[id(tensor)]

    for node in piece.after:
        inputs, outputs = ([copy(t) for t in side] for side in (node.inputs, node.outputs))
        name = model.fresh_name(node.name or node.op)
        model.graph.nodes.append(Node(node.op, name, inputs, outputs, dict(node.attrs), node.domain))
    result = next(t for t in piece.after[-1].outputs if t.name == piece.output)
    new = _cast(model, copy(result), _types(piece.output, types)[::-1])
    _take_over(model, own[piece.output], new)


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
