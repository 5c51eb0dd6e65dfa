"""Layers in the bodies of an If: their channels go by their weights, and they are left as they are otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import TensorProto, helper

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.model import Model
from onnxopt.passes.prune import Prune


@pytest.mark.parametrize("criterion", ["obs", "l1"])
def test_layers_in_branches_are_pruned_and_not_repaired(net: Any, criterion: Any) -> None:
    n = net()
    x = n.relu(n.conv(n.relu(n.conv("x", 3, 16)), 16, 16))
    condition = n.op("Greater", n.op("ReduceMean", x, keepdims=0), n.constant(0.3))
    bodies = []
    for _ in range(2):
        start = len(n.nodes)
        made = n.relu(n.conv(n.relu(n.conv(x, 16, 16)), 16, 16))
        output = helper.make_tensor_value_info(made, TensorProto.FLOAT, None)
        bodies.append(helper.make_graph(n.nodes[start:], "branch", [], [output]))
        n.within += len(n.nodes) - start
        del n.nodes[start:]
    y = n.op("If", condition, then_branch=bodies[0], else_branch=bodies[1])
    model = Model.from_proto(n.head(y, 16))
    context = Context(model.clone(), open_dataset(None, model.inputs, samples=16))
    result = Prune(ratio=0.5, criterion=criterion).run(model, context)
    assert result.figures["channels"] == {f"Conv{k}": [16, 8] for k in (2, 6, 8, 10, 12)}
    why = "not repaired: it lies in the body of an If, Loop or Scan"
    assert {s.node for s in result.skips if s.why == why} == {f"Conv{k}" for k in (6, 8, 10, 12)}
