"""A convolutional classifier from ONNX as a PyTorch module, and back: what a user of a PyTorch pruner has to build.

The module runs the graph's nodes in their order. Back means the same graph with the weights that the module has now.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

_PARTS = {  # the inputs of a node that a module holds, and what it calls them
    "Conv": ("weight", "bias"),
    "Gemm": ("weight", "bias"),
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
}


class Net(nn.Module):
    """Computes what the graph does. Raises ValueError for an operator that it does not know."""

    def __init__(self, model: ModelProto) -> None:
        super().__init__()
        self.model = model
        self.values = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
        self.layers = nn.ModuleDict()
        for node in model.graph.node:
            if node.op_type in _PARTS:
                self.layers[_key(node)] = _layer(node, self.values)
            elif node.op_type not in _FUNCTIONS:
                raise ValueError(f"not rebuilt: operator {node.op_type}")
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        graph = self.model.graph
        known = {next(i.name for i in graph.input if i.name not in self.values): x}
        for node in graph.node:
            if node.op_type in _PARTS:
                known[node.output[0]] = self.layers[_key(node)](known[node.input[0]])
            else:
                inputs = [known.get(name, self.values.get(name)) for name in node.input]
                known[node.output[0]] = _FUNCTIONS[node.op_type](inputs, _attributes(node))
        return known[graph.output[0].name]

    def products(self) -> Iterator[nn.Module]:
        """Convolutions and matrix products in the order of the graph."""
        return (m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Linear))

    def to_onnx(self) -> ModelProto:
        """The graph with the module's weights."""
        model = copy.deepcopy(self.model)
        slots = {w.name: w for w in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type not in _PARTS:
                continue
            layer = self.layers[_key(node)]
            inner = layer[-1] if isinstance(layer, nn.Sequential) else layer
            for name, part in zip(node.input[1:], _PARTS[node.op_type], strict=False):
                array = np.ascontiguousarray(getattr(inner, part).detach().numpy())
                slots[name].CopyFrom(numpy_helper.from_array(array, name))
            for attribute in node.attribute:
                if attribute.name == "group":
                    attribute.i = inner.groups
        del model.graph.value_info[:]
        return model


def with_plain_shortcuts(model: ModelProto) -> ModelProto:
    """The same, with each strided Slice and Pad of channels as one 1x1 convolution that copies channels.

    A Pad of channels is what PyTorch's pruner cannot follow.
    """
    model = copy.deepcopy(model)
    graph = model.graph
    values = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    sizes = {n.output[0]: len(values[n.input[1]]) for n in graph.node if n.op_type == "Conv"}
    for node in graph.node:  # the number of channels goes through what keeps it
        if node.op_type not in ("Conv", "Gemm", "Pad") and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
        elif node.op_type == "Pad":
            sizes[node.output[0]] = sizes[node.input[0]] + int(values[node.input[1]][[1, 5]].sum())
    made = {n.output[0]: n for n in graph.node}
    for pad in [n for n in graph.node if n.op_type == "Pad"]:
        sliced = made[pad.input[0]]
        before = int(values[pad.input[1]][1])
        weight = np.eye(sizes[pad.output[0]], sizes[sliced.input[0]], -before, np.float32)[:, :, None, None]
        name = pad.output[0] + "_copy"
        graph.initializer.append(numpy_helper.from_array(weight, name))
        strides = values[sliced.input[4]].tolist()
        conv = helper.make_node("Conv", [sliced.input[0], name], [pad.output[0]], kernel_shape=[1, 1], strides=strides)
        graph.node.insert(list(graph.node).index(pad), conv)
        graph.node.remove(pad)
        graph.node.remove(sliced)
    return model


def _key(node: NodeProto) -> str:
    return node.output[0].replace(".", "_")


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _layer(node: NodeProto, values: dict[str, Any]) -> nn.Module:
    parts = [torch.from_numpy(values[name].copy()) for name in node.input[1:]]
    make = {"Conv": _conv, "Gemm": _linear, "BatchNormalization": _norm}[node.op_type]
    made = make(parts, _attributes(node))
    inner = made[-1] if isinstance(made, nn.Sequential) else made
    with torch.no_grad():
        for name, part in zip(_PARTS[node.op_type], parts, strict=False):
            getattr(inner, name).copy_(part)
    return made


def _conv(parts: list[Tensor], attributes: dict[str, Any]) -> nn.Module:
    weight, groups = parts[0], attributes.get("group", 1)
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    even = (top, left) == (bottom, right)
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=tuple(attributes.get("strides", (1, 1))),
        padding=(top, left) if even else 0,
        dilation=tuple(attributes.get("dilations", (1, 1))),
        groups=groups,
        bias=len(parts) > 1,
    )
    return conv if even else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), conv)


def _linear(parts: list[Tensor], attributes: dict[str, Any]) -> nn.Module:
    if attributes.get("transB") != 1 or attributes.get("transA", 0):
        raise ValueError("not rebuilt: a Gemm other than x W' + b")
    return nn.Linear(parts[0].shape[1], parts[0].shape[0], bias=len(parts) > 1)


def _norm(parts: list[Tensor], attributes: dict[str, Any]) -> nn.Module:
    return nn.BatchNorm2d(len(parts[0]), eps=attributes.get("epsilon", 1e-5), momentum=None)


def _pad(x: Tensor, amounts: Any) -> Tensor:
    half = len(amounts) // 2
    pairs = [(int(amounts[i]), int(amounts[i + half])) for i in reversed(range(half))]
    return functional.pad(x, [n for pair in pairs for n in pair])


def _slice(x: Tensor, starts: Any, ends: Any, axes: Any, steps: Any) -> Tensor:
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[int(axis)] = slice(int(start), min(int(end), x.shape[int(axis)]), int(step))
    return x[tuple(index)]


_FUNCTIONS: dict[str, Callable[[list[Any], dict[str, Any]], Tensor]] = {
    "Add": lambda i, a: i[0] + i[1],
    "Clip": lambda i, a: torch.clamp(i[0], float(i[1].item()), float(i[2].item())),
    "Concat": lambda i, a: torch.cat(i, a["axis"]),
    "Flatten": lambda i, a: torch.flatten(i[0], a.get("axis", 1)),
    "GlobalAveragePool": lambda i, a: functional.adaptive_avg_pool2d(i[0], 1),
    "Identity": lambda i, a: i[0],
    "MaxPool": lambda i, a: functional.max_pool2d(
        i[0], a["kernel_shape"], a.get("strides", 1), a.get("pads", (0, 0))[:2], ceil_mode=bool(a.get("ceil_mode", 0))
    ),
    "Pad": lambda i, a: _pad(i[0], i[1]),
    "Relu": lambda i, a: torch.relu(i[0]),
    "Slice": lambda i, a: _slice(*i),
}
