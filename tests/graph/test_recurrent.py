"""The weights behind hidden units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxopt.graph import recurrent
from onnxopt.graph.ir import Node
from onnxopt.graph.model import Model


def layer(n: Any, weight: str, state: str) -> Node:
    y, *_ = n.op("GRU", "x", weight, state, outputs=2, hidden_size=5, direction="bidirectional")
    found: Node = next(node for node in Model.from_proto(n.model(y)).graph.nodes if node.op == "GRU")
    return found


def test_filters_are_of_all_gates_and_directions(net: Any) -> None:
    n = net(4, 1, 3)
    w, r = np.arange(2 * 15 * 3).reshape(2, 15, 3), -np.arange(2 * 15 * 5).reshape(2, 15, 5)
    node = layer(n, n.constant(w), n.constant(r))
    assert recurrent.is_recurrent(node)
    assert recurrent.units(node) == 5
    assert recurrent.output(node) == 0
    assert recurrent.fault(node) == ""
    for unit, found in enumerate(recurrent.filters(node)):
        np.testing.assert_array_equal(found, np.concatenate([w[:, unit::5].ravel(), r[:, unit::5].ravel()]))


@pytest.mark.parametrize("computed", ["w", "r"])
def test_weights_that_are_computed_tell_nothing(computed: str, net: Any) -> None:
    n = net(4, 1, 3)
    names = {"w": n.normal(2, 15, 3), "r": n.normal(2, 15, 5)}
    names[computed] = n.op("Abs", names[computed])
    assert recurrent.fault(layer(n, names["w"], names["r"])) == "has weights that are not constant"


def test_weights_of_another_type(net: Any) -> None:
    node = layer(n := net(4, 1, 3), n.normal(2, 15, 3), n.normal(2, 15, 5))
    node.inputs[2].values = node.inputs[2].values.astype(np.int8)
    assert recurrent.fault(node) == "has weights of type int8"
