"""Between ONNX messages and the edit buffer, both ways, losing nothing.

Names are unique over a whole model in memory: a tensor of a body that is named like one elsewhere gets a fresh name
(bodies are bound by position, so nobody outside sees it). Constant nodes become constants that remember their node.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, numpy_helper

from onnxopt.errors import ModelError
from onnxopt.graph.ir import Constant, Graph, Node, Tensor, Variable
from onnxopt.graph.signature import Array
from onnxopt.graph.stored import Sparse, Stored, is_packed

M = TypeVar("M", bound=Message)
Origin: TypeAlias = onnx.TensorProto | onnx.NodeProto | onnx.SparseTensorProto | None
Weights: TypeAlias = Mapping[str, tuple[Any, Origin]]
Store: TypeAlias = Callable[[Constant], onnx.TensorProto | None]

_PLAIN = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.GRAPH: "g",
    AttributeProto.GRAPHS: "graphs",
}


def without(message: M, *fields: str) -> M:
    """A copy of a message that leaves out some fields, without copying those first."""
    result = type(message)()
    for field, value in message.ListFields():
        if field.name in fields:
            continue
        if field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED:
            getattr(result, field.name).extend(value)
        elif field.message_type is not None:
            getattr(result, field.name).CopyFrom(value)
        else:
            setattr(result, field.name, value)
    return result


def reference(constant: Constant, key: str) -> onnx.TensorProto:
    """A TensorProto that says what the constant is and, instead of its values, the key to find it by."""
    result = onnx.TensorProto(name=constant.name, data_type=data_type(constant), dims=constant.shape)
    result.data_location = onnx.TensorProto.EXTERNAL
    result.external_data.add(key="location", value=key)
    return result


def embed(constant: Constant) -> onnx.TensorProto:
    """A TensorProto with the constant's values inside."""
    values: Any = constant._values
    if isinstance(values, Stored) and values.raw is None:
        result = onnx.TensorProto()
        result.CopyFrom(values.tensor)
        result.name = constant.name
        return result
    if isinstance(values, Stored):
        result = onnx.TensorProto(name=constant.name, data_type=data_type(constant), dims=constant.shape)
        result.raw_data = values.raw.tobytes()  # type: ignore[union-attr]  # raw is set: the case above took None
    else:
        result = numpy_helper.from_array(np.asarray(constant.values), constant.name)
    keep_remarks(result, constant)
    return result


def keep_remarks(tensor: onnx.TensorProto, constant: Constant) -> None:
    """Give a new TensorProto the doc string and metadata of the one that the constant came from."""
    if isinstance(constant.origin, onnx.TensorProto):
        tensor.doc_string = constant.origin.doc_string
        tensor.metadata_props.extend(constant.origin.metadata_props)


def raw_bytes(constant: Constant) -> memoryview:
    """The values as ONNX lays them out in ``raw_data``, without a copy where they lie so already."""
    values: Any = constant._values
    if isinstance(values, Stored):
        if values.raw is not None:
            return memoryview(values.raw)
        if values.tensor.HasField("raw_data"):
            return memoryview(values.tensor.raw_data)
    array = np.asarray(values.load() if isinstance(values, Stored | Sparse) else values)
    if array.dtype == object:
        return memoryview(b"\0".join(s if isinstance(s, bytes) else str(s).encode() for s in array.reshape(-1)))
    if is_packed(onnx.helper.np_dtype_to_tensor_dtype(array.dtype)):
        return memoryview(numpy_helper.from_array(array).raw_data)
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def data_type(tensor: Tensor) -> int:
    """ONNX's number for the tensor's element type."""
    values = getattr(tensor, "_values", None)
    if isinstance(values, Stored):
        return int(values.tensor.data_type)
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))


def value_info(tensor: Tensor) -> onnx.ValueInfoProto:
    """Name, type and shape as ONNX says them; as they were read, while they are still what was read."""
    origin = getattr(tensor, "origin", None)
    if isinstance(origin, onnx.ValueInfoProto):
        if _type_of(origin) == (tensor.dtype, None if tensor.shape is None else list(tensor.shape)):
            result = onnx.ValueInfoProto()
            result.CopyFrom(origin)
            result.name = tensor.name
            return result
    elif tensor.dtype is None:
        return onnx.ValueInfoProto(name=tensor.name)
    return onnx.helper.make_tensor_value_info(tensor.name, data_type(tensor), tensor.shape)


def constants_of(graph: Graph) -> Iterator[Constant]:
    """The constants that a graph lists, its inputs' defaults, and those its own nodes read (some more than once)."""
    yield from graph.constants
    yield from graph.defaults.values()
    for tensor in (*(t for n in graph.nodes for t in n.inputs), *graph.outputs):
        if isinstance(tensor, Constant):
            yield tensor


def restore_metadata(converted: onnx.GraphProto, original: onnx.GraphProto) -> None:
    """Give back what ONNX's version converter drops: metadata, doc strings and annotations, found by output name."""
    by_output = {name: n for n in original.node for name in n.output if name}
    for node in converted.node:
        source = next((by_output[name] for name in node.output if name in by_output), None)
        if source is not None and not node.metadata_props:
            node.metadata_props.extend(source.metadata_props)
            node.doc_string = node.doc_string or source.doc_string
    converted.doc_string = original.doc_string
    del converted.metadata_props[:], converted.quantization_annotation[:]
    converted.metadata_props.extend(original.metadata_props)
    converted.quantization_annotation.extend(original.quantization_annotation)
    values = {v.name: v for v in (*original.value_info, *original.input, *original.output)}
    for value in (*converted.input, *converted.output, *converted.value_info):
        if value.name in values and value.type == values[value.name].type:
            value.CopyFrom(values[value.name])


def _type_of(value: onnx.ValueInfoProto) -> tuple[np.dtype[Any] | None, list[int | str | None] | None]:
    """Element type and shape that the edit buffer gives to a tensor; None where it is no tensor or not said."""
    if value.type.WhichOneof("value") != "tensor_type" or not value.type.tensor_type.elem_type:
        return None, None
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if not tensor.HasField("shape"):
        return dtype, None
    dims = {"dim_value": lambda d: d.dim_value, "dim_param": lambda d: d.dim_param or None, None: lambda d: None}
    return dtype, [dims[d.WhichOneof("value")](d) for d in tensor.shape.dim]


def _plain_value(attribute: AttributeProto) -> Any:
    """The attribute as a Python value; graphs, tensors, types and the like as the message itself."""
    if attribute.ref_attr_name:
        return attribute
    if attribute.type == AttributeProto.STRING:
        return _text(attribute.s) if _text(attribute.s) is not None else attribute
    if attribute.type == AttributeProto.STRINGS:
        texts = [_text(s) for s in attribute.strings]
        return attribute if None in texts else texts
    if attribute.type in _PLAIN:
        value = getattr(attribute, _PLAIN[attribute.type])
        return list(value) if attribute.type in (AttributeProto.FLOATS, AttributeProto.INTS) else value
    return attribute


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


class Importer:
    """Reads graphs into the edit buffer. ``names`` collects every name in use."""

    def __init__(self, weights: Weights, initializers_are_inputs: bool) -> None:
        self.names: set[str] = set()
        self._weights = weights
        self._initializers_are_inputs = initializers_are_inputs

    def graph(self, proto: onnx.GraphProto, outer: ChainMap[str, Tensor] | None = None) -> Graph:
        """One graph with its bodies. ``outer`` are the tensors that it may capture."""
        scope: ChainMap[str, Tensor] = ChainMap({}) if outer is None else outer.new_child()
        infos = {v.name: v for v in proto.value_info}
        infos.update((v.name, v) for v in proto.output)
        constants, defaults = [self._initializer(t) for t in proto.initializer], {}
        constants += [Constant(t.values.name, Sparse(t), t) for t in proto.sparse_initializer]
        overridable = set() if self._initializers_are_inputs and outer is None else {v.name for v in proto.input}
        for constant in [c for c in constants if c.name in overridable]:
            defaults[constant.name] = constant
        constants = [c for c in constants if c.name not in overridable]
        fixed = {c.name for c in constants}
        inputs = [self._variable(v.name, v) for v in proto.input if v.name not in fixed]
        for tensor in (*inputs, *constants):
            self._define(scope, tensor)
        for node in proto.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and (made := self._constant_node(node)):
                constants.append(made)
                self._define(scope, made)
                continue
            for name in node.output:
                if name:
                    self._define(scope, self._variable(name, infos.get(name)))
        nodes = [self._node(n, scope) for n in proto.node if not (n.output and isinstance(scope.get(n.output[0]), Constant))]
        outputs = [self._resolve(v.name, scope, "the graph's outputs") for v in proto.output]
        origin = without(proto, "node", "initializer", "sparse_initializer")
        return Graph(proto.name, nodes, inputs, outputs, origin, defaults, constants)

    def _define(self, scope: ChainMap[str, Tensor], tensor: Tensor) -> None:
        name = tensor.name
        if name in scope.maps[0]:
            raise ModelError(f"the name '{name}' is given to two tensors of one graph; export the model again")
        scope.maps[0][name] = tensor
        n = 0
        while tensor.name in self.names:
            n += 1
            tensor.name = f"{name}_{n}"
        self.names.add(tensor.name)

    def _resolve(self, name: str, scope: Mapping[str, Tensor], reader: str) -> Tensor:
        if not name:
            return Variable.empty()
        if name not in scope:
            raise ModelError(f"{reader} read '{name}', which nothing in the graph makes; export the model again")
        return scope[name]

    def _variable(self, name: str, info: onnx.ValueInfoProto | None) -> Variable:
        dtype, shape = _type_of(info) if info is not None else (None, None)
        return Variable(name, dtype, shape, info)

    def _initializer(self, tensor: onnx.TensorProto) -> Constant:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            values, origin = self._weights[tensor.external_data[0].value]
            return Constant(tensor.name, values, origin)
        return Constant(tensor.name, Stored(tensor), without(tensor, *_PAYLOAD))

    def _constant_node(self, node: onnx.NodeProto) -> Constant | None:
        if len(node.attribute) != 1 or node.attribute[0].ref_attr_name:
            return None
        attribute, name = node.attribute[0], node.output[0]
        origin = onnx.NodeProto()
        origin.CopyFrom(without(node, "attribute"))
        if attribute.name == "value":
            stored = self._initializer(attribute.t)
            keep = origin.attribute.add()
            keep.CopyFrom(without(attribute, "t"))
            keep.t.CopyFrom(without(attribute.t, *_PAYLOAD))
            return Constant(name, stored._values, origin)
        if attribute.name == "sparse_value":
            return None
        origin.attribute.append(attribute)
        return Constant(name, _literal(attribute), origin)

    def _node(self, proto: onnx.NodeProto, scope: ChainMap[str, Tensor]) -> Node:
        reader = f"node '{proto.name or next(iter(proto.output), '')}' ({proto.op_type})"
        attrs: dict[str, Any] = {}
        for attribute in proto.attribute:
            value = _plain_value(attribute)
            if attribute.type == AttributeProto.GRAPH:
                value = self.graph(value, scope)
            elif attribute.type == AttributeProto.GRAPHS:
                value = [self.graph(g, scope) for g in value]
            attrs[attribute.name] = value
        if proto.name:
            self.names.add(proto.name)
        return Node(
            proto.op_type,
            proto.name,
            [self._resolve(name, scope, reader) for name in proto.input],
            [scope[name] if name else Variable.empty() for name in proto.output],
            attrs,
            proto.domain,
            _light(proto),
        )


_PAYLOAD = (
    "raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data",
    "external_data", "data_location",
)  # fmt: skip


def _light(proto: onnx.NodeProto) -> onnx.NodeProto:
    """The message without links and bodies, which the edit buffer holds."""
    result = without(proto, "input", "output", "attribute")
    result.attribute.extend(a for a in proto.attribute if a.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS))
    return result


def _literal(attribute: AttributeProto) -> Array:
    """The value of a Constant node that spells it as a number, a string or a list."""
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type in (AttributeProto.STRING, AttributeProto.STRINGS):
        return np.asarray(value, dtype=object)
    return np.asarray(value, np.float32 if attribute.name.startswith("value_float") else np.int64)


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
            listed = [was.get(t.name, None) or onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
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
        elif not np.array_equal(_literal(attribute), np.asarray(constant.values)):
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
        if name in was and _plain_value(was[name]) == value:
            return was[name]
        if isinstance(value, list) and not value:
            return onnx.helper.make_attribute(name, value, attr_type=_schema_type(node, name))
        return onnx.helper.make_attribute(name, value)


def _schema_type(node: Node, name: str) -> int:
    """The type that the operator's definition gives to an attribute; a list of ints where there is none."""
    if node.is_standard and onnx.defs.has(node.op) and name in (known := onnx.defs.get_schema(node.op).attributes):
        return int(known[name].type.value)
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
