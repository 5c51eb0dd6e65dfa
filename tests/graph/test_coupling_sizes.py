"""Numbers that operators are given as sizes, read at run time or spelled out; and values that have overflown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.cutting import Cut
from onnxopt.graph.model import Model
from onnxopt.numerics.tolerance import deviation
from onnxopt.runtime.session import Session

Halve = Callable[..., Any]


def channels(net: Any, x: str) -> str:
    """The number of channels, as a vector."""
    return str(net.op("Slice", net.op("Shape", x), net.ints(1), net.ints(2)))


def test_a_resize_that_keeps_the_aspect_ratio_changes_no_measured_size(net: Any, halve: Halve) -> None:
    n = net(4, 3, 8, 8)
    x = n.relu(n.conv("x", 3, 12))
    size = n.op("Concat", channels(n, x), channels(n, x), axis=0)
    policy = {"keep_aspect_ratio_policy": "not_larger", "axes": [2, 3]}
    y = n.op("Resize", "x", "", "", size, mode="nearest", **policy)
    z = n.op("Add", n.op("GlobalAveragePool", n.conv(x, 12, 3)), y)
    assert halve(n.model(z, 18)).classes == 0


def test_a_reshape_to_nothing(net: Any, halve: Halve) -> None:
    n = net("N", 12)
    x = n.relu(n.dense("x", 12, 12))
    nothing = n.op("Slice", x, n.ints(0), n.ints(0), n.ints(0))
    target = n.op("Concat", channels(n, x), n.ints(0), axis=0)
    y = n.op("Reshape", nothing, target, allowzero=1)
    y = n.op("Add", n.dense(x, 12, 3), n.op("Cast", n.op("ReduceSum", n.op("Shape", y)), to=TensorProto.FLOAT))
    assert halve(n.model(y)).classes == 0


def test_a_reshape_in_which_no_zero_means_a_copy(net: Any, halve: Halve) -> None:
    n = net(2, 12)
    y = n.op("Reshape", n.dense("x", 12, 12), n.ints(2, 3, 4), allowzero=1)
    assert halve(n.model(n.op("MatMul", y, n.normal(4, 3)))).classes == 4


def test_a_squeeze_does_not_take_the_last_channel(net: Any, halve: Halve) -> None:
    n = net(4, 3, 8, 8)
    x = n.op("Squeeze", n.op("GlobalAveragePool", n.conv("x", 3, 2)))
    outcome = halve(n.model(n.dense(x, 2, 3)))
    assert outcome.node("Squeeze2").inputs[1].values.tolist() == [2, 3]


def test_what_overflows_in_a_channel_that_goes_is_no_matter(net: Any) -> None:
    n = net(4, 3, 8, 8)
    x = n.op("Exp", n.op("Mul", n.conv("x", 3, 2), n.constant([[[0.1]], [[1e6]]])))
    model = Model.from_proto(n.model(n.conv(x, 2, 3)))
    context = Context(model, open_dataset(None, model.inputs, samples=4))
    coupling = Coupling(model, context.shapes(model), context.free_axes(model))
    cut = Cut(coupling, coupling.output(model.graph.nodes[0], 1)[1:])
    (feed,) = context.dataset.batches(4)
    (wanted,) = Session(cut.masked(model)).run(feed).values()
    cut.apply(model)
    (got,) = Session(model).run(feed).values()
    assert np.isfinite(wanted).all()
    assert deviation(wanted, got) < 1e-5
