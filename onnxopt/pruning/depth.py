"""Whole residual branches: y = x + f(x) where f does so little that its mean is as good.

What is left of a dropped branch is one number per channel, its mean over the data: of all constants the one with the
least squared error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush

import numpy as np

from onnxopt.core.context import Context
from onnxopt.core.pass_ import label
from onnxopt.graph.cost import PRODUCTS, cost
from onnxopt.graph.ir import Graph, Node, Tensor, is_constant, reads
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array


@dataclass(frozen=True)
class Branch:
    """Operand ``slot`` of the Add ``add``. ``layers`` are the labels of the layers that nothing else needs, ``macs``
    what they compute for one sample; ``axis`` is that of its channels, counted from the last, -1."""

    add: Node
    slot: int
    axis: int
    layers: tuple[str, ...]
    macs: int

    @property
    def tensor(self) -> Tensor:
        """What the branch makes."""
        made: Tensor = self.add.inputs[self.slot]
        return made


def branches(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> list[Branch]:
    """The residual branches of the main graph, in its order, those within others too.

    A branch is computed from the other operand; or, as at a projection, from what that is computed from, by more
    layers. It has layers of its own, and the shape of the sum. ``shapes`` are those of the model's tensors for one
    sample, by name; the nodes must be in order (``Model.tidy``).
    """
    ways = _Ways(model.graph)
    macs = {id(n): c.macs or 0 for n, c in zip(model.nodes(), cost(model, shapes).nodes, strict=True)}
    found = []
    for add in model.graph.nodes:
        if add.op != "Add" or not add.is_standard or any(is_constant(t) for t in add.inputs):
            continue
        a, b = add.inputs
        shape = shapes.get(add.outputs[0].name)
        if a is b or not shape or any(shapes.get(t.name) != shape for t in (a, b)):
            continue
        slot = _slot(ways, add)
        if slot is None:
            continue
        layers = _products(ways.private(add, slot))
        if layers:
            axis = 1 - len(shape) if "Conv" in layers[-1].op else -1
            found.append(Branch(add, slot, axis, tuple(map(label, layers)), sum(macs[id(n)] for n in layers)))
    return found


def means(model: Model, found: Sequence[Branch], context: Context, samples: int) -> list[Array]:
    """What each branch makes on the average, by channel, in its own type, on the first ``samples`` samples."""
    sums: list[Floats] = [np.zeros(())] * len(found)
    counts, dtypes = [0] * len(found), [np.dtype(np.float32)] * len(found)
    names = [b.tensor.name for b in found]
    for values in context.activations(model, names, samples) if found else ():
        for i, (name, branch) in enumerate(zip(names, found, strict=True)):
            rows = np.moveaxis(values[name], branch.axis, -1)
            rows = rows.reshape(-1, rows.shape[-1])
            sums[i] = sums[i] + rows.sum(0, dtype=np.float64)
            counts[i] += len(rows)
            dtypes[i] = rows.dtype
    return [(s / max(n, 1)).astype(dtype) for s, n, dtype in zip(sums, counts, dtypes, strict=True)]


def drop(model: Model, branch: Branch, mean: Array) -> None:
    """Put the mean in the branch's place. The sum keeps its name and that of what it makes; what only the branch needed
    is dead from then on.

    A constant is added to pictures by a convolution of every channel with 1: an Add would force ONNX Runtime to take
    its blocks of channels apart, here and at every sum behind.
    """
    add, stays = branch.add, branch.add.inputs[1 - branch.slot]
    if branch.axis == -3 and len(mean) % 4 == 0 and mean.dtype == np.float32:
        ones = model.constant(f"{label(add)}.weight", np.ones((len(mean), 1, 1, 1), np.float32))
        add.op, add.inputs = "Conv", [stays, ones, model.constant(f"{label(add)}.bias", mean)]
        add.attrs = {"group": len(mean), "kernel_shape": [1, 1]}
    else:
        level = mean.reshape(-1, *[1] * (-1 - branch.axis))
        add.inputs = [stays, model.constant(f"{branch.tensor.name}_mean", level)]


def without(model: Model, branch: Branch, mean: Array) -> Model:
    """A copy of the model in which a branch is dropped."""
    other = model.clone()
    drop(other, replace(branch, add=other.graph.nodes[model.graph.nodes.index(branch.add)]), mean)
    other.tidy()
    return other


def _slot(ways: _Ways, add: Node) -> int | None:
    """Which operand of a sum is a branch, if one is."""
    for slot, (own, other) in enumerate((add.inputs, add.inputs[::-1])):
        if ways.leads(other, own):
            return slot
    parts = [ways.private(add, slot) for slot in (0, 1)]
    first, second = (len(_products(part)) for part in parts)
    if first == second:
        return None
    slot = 0 if first > second else 1
    sources = ways.sources(parts[slot])
    return slot if sources and sources <= ways.sources(parts[1 - slot]) else None


class _Ways:
    """Who makes and who reads the tensors of a graph."""

    def __init__(self, graph: Graph) -> None:
        self._nodes, self._defaults = graph.nodes, graph.defaults
        self._maker = {id(t): i for i, node in enumerate(graph.nodes) for t in node.outputs}
        self._readers: dict[int, list[Node | None]] = defaultdict(list)
        for node in graph.nodes:
            for tensor in reads(node):
                self._readers[id(tensor)].append(node)
        for tensor in graph.outputs:
            self._readers[id(tensor)].append(None)

    def private(self, add: Node, slot: int) -> list[Node]:
        """The nodes that only an operand of a sum needs, in order."""
        found: list[Node] = []
        ours: set[int] = set()
        for node in self._backwards(add.inputs[slot], lambda node: id(node) in ours):
            readers = [(r, t) for t in node.outputs for r in self._readers[id(t)]]
            if all(id(r) in ours or (r is add and t is add.inputs[slot]) for r, t in readers):
                ours.add(id(node))
                found.append(node)
        return found[::-1]

    def sources(self, nodes: Sequence[Node]) -> set[int]:
        """The tensors that nodes read and do not make (their ``id``), without those that are fixed."""
        parts = [inner for node in nodes for inner in (node, *_within(node))]
        made = {id(t) for node in parts for t in node.outputs}
        return {id(t) for node in nodes for t in reads(node) if not self._is_fixed(t)} - made

    def leads(self, start: Tensor, end: Tensor) -> bool:
        """Is one tensor computed from another?"""
        first = self._maker.get(id(start), -1)
        walk = self._backwards(end, lambda node: self._maker[id(node.outputs[0])] > first)
        return any(t is start for node in walk for t in reads(node))

    def _is_fixed(self, tensor: Tensor) -> bool:
        return is_constant(tensor) or tensor.is_empty() or tensor.name in self._defaults

    def _backwards(self, tensor: Tensor, passes: Callable[[Node], bool]) -> Iterator[Node]:
        """The node that makes a tensor, and those before the nodes that ``passes`` is true of, the last ones first."""
        seen = {self._maker.get(id(tensor), -1)}
        waiting = [-i for i in seen if i >= 0]
        while waiting:
            node = self._nodes[-heappop(waiting)]
            yield node
            if passes(node):
                for i in {self._maker.get(id(t), -1) for t in reads(node)} - seen - {-1}:
                    seen.add(i)
                    heappush(waiting, -i)


def _products(nodes: Iterable[Node]) -> list[Node]:
    """The layers among nodes and in their bodies."""
    return [inner for node in nodes for inner in (node, *_within(node)) if inner.op in PRODUCTS]


def _within(node: Node) -> Iterator[Node]:
    """The nodes in a node's bodies, and in theirs."""
    for body in node.bodies():
        for inner in body.nodes:
            yield inner
            yield from _within(inner)
