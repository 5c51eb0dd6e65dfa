"""Is this graph whole? What must hold after every pass, said in one line where it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from onnxopt.graph.ir import Constant, Graph, Variable, constants_of, toposort
from onnxopt.graph.model import Model
from onnxopt.graph.signature import TensorSpec, describe

Boundary = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def boundary(model: Model) -> Boundary:
    """The inputs and outputs that no pass may change."""
    return model.inputs, model.outputs


def faults(model: Model, expected: Boundary | None = None) -> list[str]:
    """All that is wrong with a model; an empty list means it is whole. ``expected`` is the boundary it must keep."""
    found = list(_names(model))
    found += _captures(model.graph, set())
    if stuck := toposort(model.graph):
        found.append(f"node '{stuck[0].name}' ({stuck[0].op}) is part of a cycle")
    if expected is not None:
        found += _moved("inputs", expected[0], model.inputs) + _moved("outputs", expected[1], model.outputs)
    if not found:
        try:
            onnx.checker.check_model(_with_ranks(model.skeleton()))
        except onnx.checker.ValidationError as error:
            found.append(str(error).strip().splitlines()[0])
    return found


def _with_ranks(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """The checker wants every input and output to have a shape, which runtimes do not; it does not look which."""
    for value in (*skeleton.graph.input, *skeleton.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return skeleton


def _names(model: Model) -> Iterator[str]:
    """Every tensor has a name of its own, and one maker at most."""
    owner: dict[str, int] = {}
    for graph in model.graphs():
        defaults = {id(c) for c in graph.defaults.values()}
        constants = (c for c in constants_of(graph) if id(c) not in defaults)
        tensors = [*graph.inputs, *constants, *(t for n in graph.nodes for t in n.outputs)]
        for tensor in tensors:
            if tensor.name and owner.setdefault(tensor.name, id(tensor)) != id(tensor):
                yield f"two tensors are named '{tensor.name}'"
        for node in graph.nodes:
            for tensor in node.outputs:
                if len(tensor.inputs) > 1:
                    yield f"'{tensor.name}' is made by {len(tensor.inputs)} nodes"
                if isinstance(tensor, Constant):
                    yield f"node '{node.name}' ({node.op}) writes into the constant '{tensor.name}'"


def _captures(graph: Graph, outer: set[int]) -> list[str]:
    """Everything that is read exists: made in this graph or around it, or constant."""
    known = outer | {id(t) for t in graph.inputs} | {id(t) for n in graph.nodes for t in n.outputs}
    found = []
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, Variable) and not tensor.is_empty() and id(tensor) not in known:
                found.append(f"node '{node.name}' ({node.op}) reads '{tensor.name}', which nothing makes")
        for body in node.bodies():
            found += _captures(body, known)
    for tensor in graph.outputs:
        if isinstance(tensor, Variable) and id(tensor) not in known:
            found.append(f"the output '{tensor.name}' is made by nothing")
    return found


def _moved(what: str, expected: Sequence[TensorSpec], now: Sequence[TensorSpec]) -> list[str]:
    if tuple(expected) == tuple(now):
        return []
    return [f"the {what} changed from {describe(expected)} to {describe(now)}"]
