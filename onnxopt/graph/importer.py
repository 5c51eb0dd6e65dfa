"""From ONNX messages to the edit buffer.

Names are unique over a whole model in memory: a tensor of a body that is named like one elsewhere gets a fresh name
(bodies are bound by position, so nobody outside sees it). Constant nodes become constants that remember their node.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Any, TypeAlias

import onnx
from onnx import AttributeProto

from onnxopt.errors import ModelError
from onnxopt.graph.ir import Constant, Graph, Node, Tensor, Variable
from onnxopt.graph.proto import PAYLOAD, literal, plain_value, type_of, without
from onnxopt.graph.stored import Sparse, Stored

Origin: TypeAlias = onnx.TensorProto | onnx.NodeProto | onnx.SparseTensorProto | None
Weights: TypeAlias = Mapping[str, tuple[Any, Origin]]


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
        for given in inputs:
            self._define(scope, given)
        for constant in constants:
            self._define(scope, constant)
        computed = []
        for node in proto.node:
            made = self._constant_node(node) if node.op_type == "Constant" and node.domain in ("", "ai.onnx") else None
            if made is not None:
                constants.append(made)
                self._define(scope, made)
                continue
            computed.append(node)
            for name in filter(None, node.output):
                self._define(scope, self._variable(name, infos.get(name)))
        nodes = [self._node(n, scope) for n in computed]
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
        dtype, shape = type_of(info) if info is not None else (None, None)
        return Variable(name, dtype, shape, info)

    def _initializer(self, tensor: onnx.TensorProto) -> Constant:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            values, origin = self._weights[tensor.external_data[0].value]
            return Constant(tensor.name, values, origin)
        return Constant(tensor.name, Stored(tensor), without(tensor, *PAYLOAD))

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
            keep.t.CopyFrom(without(attribute.t, *PAYLOAD))
            return Constant(name, stored._values, origin)
        if attribute.name == "sparse_value":
            return None
        origin.attribute.append(attribute)
        return Constant(name, literal(attribute), origin)

    def _node(self, proto: onnx.NodeProto, scope: ChainMap[str, Tensor]) -> Node:
        reader = f"node '{proto.name or next(iter(proto.output), '')}' ({proto.op_type})"
        attrs: dict[str, Any] = {}
        for attribute in proto.attribute:
            value = plain_value(attribute)
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


def _light(proto: onnx.NodeProto) -> onnx.NodeProto:
    """The message without links and bodies, which the edit buffer holds."""
    result = without(proto, "input", "output", "attribute")
    result.attribute.extend(a for a in proto.attribute if a.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS))
    return result
