"""How much of a model can be reached: at least what a plain coupling of channels by Add and Concat reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.ir import Node, is_constant
from onnxopt.graph.model import Model

# The share of a graph that is reached, where it is not all but the last layer's bias.
PARTLY = {"attention": 0.90}
_BY_CHANNEL = ("Relu", "BatchNormalization", "Clip", "Sigmoid", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool",
               "Identity", "Mul", "Dropout")  # fmt: skip


class Plain:
    """Channels (axis 1) of Conv and Gemm, tied by Add, passed on by what works channel by channel, joined by Concat.

    ``channels`` gives for each tensor a list of labels. What another operator reads, or the model gives back, stays.
    """

    def __init__(self, model: Model) -> None:
        self.parent: list[int] = [0]
        self.channels: dict[str, list[int]] = {}
        self.model = model
        for node in model.graph.nodes:
            self.visit(node)
        for tensor in model.graph.outputs:
            self.freeze(self.channels.get(tensor.name, []))

    def find(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def tie(self, a: list[int], b: list[int]) -> None:
        if len(a) != len(b):
            self.freeze([*a, *b])
            return
        for i, j in zip(a, b, strict=True):
            i, j = sorted((self.find(i), self.find(j)))
            self.parent[j] = i

    def freeze(self, labels: list[int]) -> None:
        self.tie(labels, [0] * len(labels))

    def new(self, number: int) -> list[int]:
        self.parent += range(len(self.parent), len(self.parent) + number)
        return list(range(len(self.parent) - number, len(self.parent)))

    def visit(self, node: Node) -> None:
        read = [self.channels.get(t.name) for t in node.inputs if not is_constant(t)]
        known = [labels for labels in read if labels is not None]
        out = node.outputs[0].name
        if is_plain_layer(node):
            self.channels[out] = self.new(widths(node)[0])
        elif node.op == "Add" and len(known) == len(node.inputs):
            self.tie(*known)
            self.channels[out] = known[0]
        elif node.op == "Concat" and len(known) == len(node.inputs) and node.attrs["axis"] == 1:
            self.channels[out] = [label for labels in known for label in labels]
        elif node.op in _BY_CHANNEL and len(known) == 1 and len(read) == 1:
            self.channels[out] = known[0]
        else:
            for labels in known:
                self.freeze(labels)

    def reach(self) -> float:
        """Parameters of plain layers in a row or column that can go, as a share of all of the model's."""
        reached = 0
        for node in filter(is_plain_layer, self.model.graph.nodes):
            rows = np.array([self.find(c) > 0 for c in self.channels[node.outputs[0].name]])
            inner = self.channels.get(node.inputs[0].name, [0] * widths(node)[1])
            columns = np.array([self.find(c) > 0 for c in inner])
            rest = node.inputs[1].values.size // (rows.size * columns.size)
            reached += int((rows[:, None] | columns).sum()) * rest
            reached += int(rows.sum()) if len(node.inputs) > 2 else 0
        return reached / parameters(self.model)


def is_plain_layer(node: Node) -> bool:
    if node.op not in ("Conv", "Gemm") or not is_constant(node.inputs[1]):
        return False
    return bool(node.attrs.get("group", 1) == 1 if node.op == "Conv" else not node.attrs.get("transA", 0))


def widths(layer: Node) -> tuple[int, int]:
    """Channels made and read."""
    out, read = layer.inputs[1].shape[:2]
    return (out, read) if layer.op == "Conv" or layer.attrs.get("transB", 0) else (read, out)


def parameters(model: Model) -> int:
    return sum(c.values.size for c in model.constants() if np.issubdtype(c.dtype, np.floating))


def reach(model: Model) -> float:
    """The share of parameters that lie on an axis, at an index, that can be removed."""
    context = Context(model, open_dataset(None, model.inputs, samples=4))
    coupling = Coupling(model, context.shapes(model), context.free_axes(model))
    able: dict[int, Any] = {}
    for node in model.nodes():
        for slot, tensor in enumerate(node.inputs):
            if is_constant(tensor) and np.issubdtype(tensor.dtype, np.floating):
                found = able.setdefault(id(tensor), np.zeros(tensor.shape, bool))
                for k in range(found.ndim):
                    goes = coupling.input(node, slot, k) > 0
                    found |= goes.reshape([-1 if axis == k else 1 for axis in range(found.ndim)])
    return sum(int(found.sum()) for found in able.values()) / parameters(model)


def test_at_least_what_add_and_concat_reach(zoo: dict[str, Callable[[], onnx.ModelProto]]) -> None:
    for name, build in zoo.items():
        model = Model.from_proto(build())
        found = reach(model)
        assert found >= Plain(model).reach(), name
        assert found > PARTLY.get(name, 0.998), name


def test_batch_normalization_written_out(net: Any) -> None:
    n = net()
    x, width = "x", 3
    for out in (16, 32):
        x, width = n.conv(x, width, out), out
        mean, spread, scale, shift = (n.constant(np.full((out, 1, 1), v)) for v in (0.1, 1.2, 0.9, -0.2))
        x = n.relu(n.op("Add", n.op("Mul", n.op("Div", n.op("Sub", x, mean), spread), scale), shift))
    model = Model.from_proto(n.head(x, 32))
    assert Plain(model).reach() == 0
    assert reach(model) > 0.998


def test_a_residual_spine(net: Any) -> None:
    n = net()
    x = n.conv("x", 3, 16)
    for _ in range(3):
        x = n.op("Add", x, n.conv(n.relu(n.conv(n.relu(x), 16, 16)), 16, 16))
    model = Model.from_proto(n.head(n.relu(x), 16))
    assert reach(model) >= Plain(model).reach() > 0.95
