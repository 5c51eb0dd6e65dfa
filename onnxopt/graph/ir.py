"""The edit buffer: onnx-graphsurgeon's classes, made to compare by identity and to remember where they came from.

graphsurgeon links tensors and nodes both ways and keeps the links in step, but its nodes compare by structure, so
that removing one of two equal nodes may unlink the other. Here every node and tensor is only equal to itself.
``origin`` is the ONNX message that an object was read from; the exporter takes from it what graphsurgeon has no
place for (doc strings, metadata, attribute types).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxopt.graph.signature import Array, Dim, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

Tensor: TypeAlias = "Variable | Constant"


class Node(gs.Node):  # type: ignore[misc]  # graphsurgeon is untyped
    """One operator. ``attrs`` maps names to int, float, str, lists of these, Graph, or an ONNX AttributeProto."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(
        self,
        op: str,
        name: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        attrs: dict[str, Any] | None = None,
        domain: str = "",
        origin: onnx.NodeProto | None = None,
    ) -> None:
        super().__init__(op, name, dict(attrs or {}), list(inputs), list(outputs), domain)
        self.origin = origin

    @property
    def is_standard(self) -> bool:
        """Is this an operator of ONNX's own domain?"""
        return self.domain in ("", "ai.onnx", None)

    @property
    def kind(self) -> str:
        """The operator's name, behind its domain where that is not ONNX's own: Conv, com.microsoft.FusedConv."""
        return str(self.op if self.is_standard else f"{self.domain}.{self.op}")

    def bodies(self) -> Iterator[Graph]:
        """The graphs held in this node's attributes (If, Loop, Scan)."""
        for value in self.attrs.values():
            if isinstance(value, Graph):
                yield value
            elif isinstance(value, list):
                yield from (v for v in value if isinstance(v, Graph))


class Variable(gs.Variable):  # type: ignore[misc]  # graphsurgeon is untyped
    """A tensor whose value is known only at run time. ``shape`` is None when even the rank is unknown."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(
        self,
        name: str,
        dtype: np.dtype[Any] | None = None,
        shape: Sequence[Dim] | None = None,
        origin: onnx.ValueInfoProto | None = None,
    ) -> None:
        super().__init__(name, dtype, None if shape is None else list(shape))
        self.origin = origin

    @staticmethod
    def empty() -> Variable:
        """An optional input or output that is left out."""
        return Variable("")


class Constant(gs.Constant):  # type: ignore[misc]  # graphsurgeon is untyped
    """A tensor whose value is fixed: an initializer, or the output of a Constant node.

    Values are shared between clones and may be mapped from a file: never write into them, assign new ones.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(
        self,
        name: str,
        values: Array | gs.ir.tensor.LazyValues,
        origin: onnx.TensorProto | onnx.NodeProto | onnx.SparseTensorProto | None = None,
    ) -> None:
        super().__init__(name, values)
        self.origin = origin

    @property
    def nbytes(self) -> int:
        """Bytes of the values in memory."""
        return int(self._values.nbytes)


class Graph(gs.Graph):  # type: ignore[misc]  # graphsurgeon is untyped
    """Nodes with named inputs and outputs: a model's main graph, or the body of an If, Loop or Scan.

    ``constants`` are those that the file listed here, in order, used or not (new ones need not be entered);
    ``defaults`` are the values of inputs that have one.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(
        self,
        name: str,
        nodes: Sequence[Node],
        inputs: Sequence[Variable],
        outputs: Sequence[Tensor],
        origin: onnx.GraphProto | None = None,
        defaults: dict[str, Constant] | None = None,
        constants: Sequence[Constant] = (),
    ) -> None:
        super().__init__(nodes=list(nodes), inputs=list(inputs), outputs=list(outputs), name=name)
        self.origin = origin
        self.defaults = defaults or {}
        self.constants = list(constants)


class Scope:
    """What belongs to one graph, looked up in constant time. Made afresh after a change.

    ``proven`` gives types and shapes by name; it is called when they are first asked for.
    """

    def __init__(self, graph: Graph, proven: Callable[[], Mapping[str, TensorSpec]] = dict) -> None:
        self.graph = graph
        self._proven = proven
        self._nodes = {id(n) for n in graph.nodes}
        self._outputs = {id(t) for t in graph.outputs}

    def holds(self, node: Node) -> bool:
        """Is the node in this very graph (and not in a body or around it)?"""
        return id(node) in self._nodes

    def is_output(self, tensor: Tensor) -> bool:
        """Is the tensor an output of this graph?"""
        return id(tensor) in self._outputs

    def used_once(self, tensor: Tensor) -> bool:
        """Is one input of one node of this graph all that reads the tensor? A capture by a body is a use."""
        return len(tensor.outputs) == 1 and self.holds(tensor.outputs[0]) and not self.is_output(tensor)

    def spec(self, tensor: Tensor) -> TensorSpec:
        """Type and shape, as far as they are certain without running; ``object`` and None where they are not."""
        if is_constant(tensor):
            return TensorSpec(tensor.name, np.dtype(tensor.dtype), tuple(tensor.shape))
        return self._proven().get(tensor.name) or TensorSpec(tensor.name, np.dtype(object), None)

    def producer(self, tensor: Tensor) -> Node | None:
        """The node of this graph that makes the tensor; None for inputs, constants and captured tensors."""
        made_by = tensor.inputs[0] if tensor.inputs else None
        return made_by if made_by is not None and self.holds(made_by) else None


def is_constant(tensor: Tensor) -> bool:
    """Is the value fixed in the model?"""
    return isinstance(tensor, gs.Constant)


def reads(node: Node) -> Iterator[Tensor]:
    """Every tensor that the node reads, with what its bodies capture from outside (and what they make themselves)."""
    yield from (t for t in node.inputs if not t.is_empty())
    for body in node.bodies():
        for inner in body.nodes:
            yield from reads(inner)
        yield from body.outputs


def constants_of(graph: Graph) -> Iterator[Constant]:
    """The constants that a graph lists, its inputs' defaults, and those its own nodes read (some more than once)."""
    yield from graph.constants
    yield from graph.defaults.values()
    for tensor in (*(t for n in graph.nodes for t in n.inputs), *graph.outputs):
        if isinstance(tensor, Constant):
            yield tensor


def toposort(graph: Graph) -> list[Node]:
    """Put the graph's nodes in order, keeping theirs where it is right already; bodies too.

    Returns the nodes that cannot be ordered because they wait for one another (empty: all is well).
    """
    position = {id(n): i for i, n in enumerate(graph.nodes)}
    waiting: list[int] = [0] * len(graph.nodes)
    followers: list[list[int]] = [[] for _ in graph.nodes]
    stuck: list[Node] = []
    for i, node in enumerate(graph.nodes):
        needs = {position[id(p)] for t in reads(node) for p in t.inputs if id(p) in position}
        waiting[i] = len(needs)
        for j in needs:
            followers[j].append(i)
        for body in node.bodies():
            stuck += toposort(body)
    ready = [i for i, n in enumerate(waiting) if n == 0]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for j in followers[i]:
            waiting[j] -= 1
            if waiting[j] == 0:
                heapq.heappush(ready, j)
    stuck += [graph.nodes[i] for i, n in enumerate(waiting) if n > 0]
    if len(order) == len(graph.nodes):
        graph.nodes = [graph.nodes[i] for i in order]
    return stuck


def remove_dead(graph: Graph) -> int:
    """Drop the nodes that no output of the graph depends on; returns how many. Bodies are cleaned as well."""
    live: set[int] = set()
    stack: list[Node] = [p for t in graph.outputs for p in t.inputs]
    while stack:
        node = stack.pop()
        if id(node) in live:
            continue
        live.add(id(node))
        stack += [p for t in reads(node) for p in t.inputs if id(p) not in live]
    dead = [n for n in graph.nodes if id(n) not in live]
    graph.nodes = [n for n in graph.nodes if id(n) in live]
    for node in dead:
        detach(node)
    return len(dead) + sum(remove_dead(body) for node in graph.nodes for body in node.bodies())


def detach(node: Node) -> None:
    """Unlink a node that is no longer in any graph, with what its bodies hold, from the tensors around it."""
    for body in node.bodies():
        for inner in body.nodes:
            detach(inner)
    node.inputs.clear()
    node.outputs.clear()


def replace_uses(old: Tensor, new: Tensor, nodes: Iterable[Node] | None = None) -> None:
    """Let every node that reads ``old`` (or only ``nodes``) read ``new`` instead."""
    for node in list(old.outputs) if nodes is None else nodes:
        for i, t in enumerate(node.inputs):
            if t is old:
                node.inputs[i] = new
