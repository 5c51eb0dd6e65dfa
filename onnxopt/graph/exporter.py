"""From the edit buffer back to ONNX messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto

from onnxopt.graph.ir import Constant, Graph, Node, constants_of
from onnxopt.graph.proto import embed, literal, plain_value, value_info, without
from onnxopt.graph.stored import Sparse

Store: TypeAlias = Callable[[Constant], onnx.TensorProto | None]


class Exporter:
    """Writes graphs back. ``store`` gives each constant its TensorProto, or None to leave it out."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._homes: dict[int, list[Constant]] = {}

    def graph(self, graph: Graph, list_initializers: bool = False) -> onnx.GraphProto:
        """The main graph. ``list_initializers``: name them among the inputs too, as IR versions below 4 demand."""
        self._homes = _homes(graph)
        return self._graph(graph, list_initializers)

    def _graph(self, graph: Graph, list_initializers: bool = False) -> onnx.GraphProto:
        result = onnx.GraphProto(name=graph.name)
        listed: list[onnx.ValueInfoProto] = []
        for constant in self._homes.get(id(graph), []):
            self._constant(constant, result)
        if list_initializers:
            was = {v.name: v for v in graph.origin.input} if graph.origin is not None else {}
            listed = [was.get(t.name) or onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
                      for t in result.initializer]  # fmt: skip
        result.node.extend(self._node(n) for n in graph.nodes)
        result.input.extend(_in_order([*map(value_info, graph.inputs), *listed], graph.origin))
        result.output.extend(value_info(t) for t in graph.outputs)
        boundary = {v.name for v in (*result.input, *result.output)}
        made = {t.name: t for n in graph.nodes for t in n.outputs if t.name}
        told = [t for t in made.values() if t.name not in boundary and (t.origin is not None or t.dtype is not None)]
        infos = _in_order([value_info(t) for t in told], graph.origin, "value_info")
        result.value_info.extend(i for i in infos if i.type.WhichOneof("value"))
        if graph.origin is not None:
            origin = graph.origin
            if origin.HasField("doc_string"):
                result.doc_string = origin.doc_string
            result.metadata_props.extend(origin.metadata_props)
            known = {*made, *boundary, *(c.name for c in self._homes.get(id(graph), []))}
            result.value_info.extend(
                v for v in origin.value_info if v.name in known and v.name not in made and v.name not in boundary
            )
            result.quantization_annotation.extend(a for a in origin.quantization_annotation if a.tensor_name in known)
        return result

    def _constant(self, constant: Constant, graph: onnx.GraphProto) -> None:
        values: Any = constant._values
        if isinstance(values, Sparse) and self._store is embed:
            graph.sparse_initializer.append(values.tensor)
            return
        tensor = self._store(constant)
        if tensor is None:
            return
        if not isinstance(constant.origin, onnx.NodeProto):
            graph.initializer.append(tensor)
            return
        node = graph.node.add()
        node.CopyFrom(constant.origin)
        node.output[:] = [constant.name]
        attribute = node.attribute[0]
        if attribute.name == "value":
            said = attribute.t.name if attribute.t.HasField("name") else None
            attribute.t.CopyFrom(tensor)
            attribute.t.ClearField("name")
            if said is not None:
                attribute.t.name = said
        elif not np.array_equal(literal(attribute), np.asarray(constant.values)):
            del node.attribute[:]
            node.attribute.add(name="value", type=AttributeProto.TENSOR).t.CopyFrom(tensor)

    def _node(self, node: Node) -> onnx.NodeProto:
        origin = getattr(node, "origin", None)
        result = without(origin, "attribute") if origin is not None else onnx.NodeProto()
        result.op_type = node.op
        for field, value in (("name", node.name), ("domain", node.domain or "")):
            if value != getattr(result, field):
                setattr(result, field, value)
        result.input.extend(t.name for t in node.inputs)
        result.output.extend(t.name for t in node.outputs)
        was = {a.name: a for a in origin.attribute} if origin is not None else {}
        result.attribute.extend(self._attribute(node, name, value, was) for name, value in node.attrs.items())
        return result

    def _attribute(self, node: Node, name: str, value: Any, was: Mapping[str, AttributeProto]) -> AttributeProto:
        if isinstance(value, Graph):
            return AttributeProto(name=name, type=AttributeProto.GRAPH, g=self._graph(value))
        if isinstance(value, list) and value and isinstance(value[0], Graph):
            return AttributeProto(name=name, type=AttributeProto.GRAPHS, graphs=[self._graph(g) for g in value])
        if isinstance(value, AttributeProto):
            return value
        if name in was and plain_value(was[name]) == value:
            return was[name]
        if isinstance(value, list) and not value:
            return onnx.helper.make_attribute(name, value, attr_type=_schema_type(node, name))
        return onnx.helper.make_attribute(name, value)


def _schema_type(node: Node, name: str) -> int:
    """The type that the operator's definition gives to an attribute; a list of ints where there is none."""
    if node.is_standard and onnx.defs.has(node.op) and name in (known := onnx.defs.get_schema(node.op).attributes):
        return int(known[name].type.value)  # type: ignore[attr-defined]  # an enum that onnx's stubs call a class
    return int(AttributeProto.INTS)


def _in_order(
    values: list[onnx.ValueInfoProto], origin: onnx.GraphProto | None, field: str = "input"
) -> list[onnx.ValueInfoProto]:
    """In the order that the file had them in; new ones last."""
    place = {v.name: i for i, v in enumerate(getattr(origin, field))} if origin is not None else {}
    return sorted(values, key=lambda v: place.get(v.name, len(place)))


def _homes(main: Graph) -> dict[int, list[Constant]]:
    """The graph that each constant is written in: where it was, else the one that uses it, else the main graph."""
    homes: dict[int, list[Constant]] = {}
    users: dict[int, tuple[Constant, set[int]]] = {}
    placed: set[int] = set()
    stack = [main]
    graphs: list[Graph] = []
    while stack:
        graph = stack.pop()
        graphs.append(graph)
        stack += [body for node in graph.nodes for body in node.bodies()]
    for graph in graphs:
        homes[id(graph)] = [*graph.constants, *graph.defaults.values()]
        placed.update(id(c) for c in homes[id(graph)])
    for graph in graphs:
        for constant in constants_of(graph):
            if id(constant) not in placed:
                users.setdefault(id(constant), (constant, set()))[1].add(id(graph))
    for constant, used_in in users.values():
        homes[next(iter(used_in)) if len(used_in) == 1 else id(main)].append(constant)
    return homes
