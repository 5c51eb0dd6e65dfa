"""The time of a model by how many channels stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.errors import ExecutionError, PassError
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.model import Model
from onnxopt.pruning import latency as module
from onnxopt.pruning.costs import Costs
from onnxopt.runtime.layer_times import Layer, LayerTimes
from onnxopt.runtime.target import NATIVE

MEASURED = 0.01


def in_proportion(layer: Layer) -> float:
    """A millisecond for each million multiply-accumulates, and for each sample."""
    return 1e-9 * layer.input[0] * float(np.prod(layer.weight)) * float(np.prod(layer.input[2:]))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that takes just as long as we say."""
    monkeypatch.setattr(module, "seconds", lambda session, feed: MEASURED)
    monkeypatch.setattr(LayerTimes, "measure", lambda self, layers: [in_proportion(x) for x in layers])
    monkeypatch.setattr(LayerTimes, "seconds", lambda self, layer: in_proportion(layer))


def costs(proto: onnx.ModelProto, *widths: int, batch: int = 1) -> Costs:
    """The cost by the blocks of these widths, in this order."""
    model = Model.from_proto(proto)
    data = open_dataset(None, model.inputs, samples=8)
    context = Context(model, data, target=replace(NATIVE, channel_step=8), latency_batch=batch)
    shapes = context.shapes(model)
    coupling = Coupling(model, shapes, context.free_axes(model))
    blocks = [next(b for b in coupling.blocks() if len(b) == n) for n in widths]
    return module.latency(model, coupling, blocks, shapes, context)


def row(net: Any) -> onnx.ModelProto:
    n = net()
    x = n.relu(n.conv("x", 3, 16))
    x = n.relu(n.conv(x, 16, 32))
    proto: onnx.ModelProto = n.model(n.conv(x, 32, 4))
    return proto


def test_a_layer_takes_the_product_of_what_its_sides_take(net: Any) -> None:
    found = costs(row(net), 16, 32)
    assert found.total(found.full) == pytest.approx(MEASURED)
    first, second, third = (9 * 64e-9 * n for n in (3 * 16, 16 * 32, 32 * 4))
    assert found.fixed == pytest.approx(MEASURED - first - second - third)
    np.testing.assert_allclose(
        found.saved(found.full, [0], np.array([[16.0], [8.0]])), [0, (first + second) / 2], atol=1e-12
    )
    np.testing.assert_allclose(
        found.saved(found.full, [1], np.array([[24.0], [8.0]])), (second + third) * np.array([0.25, 0.75])
    )
    assert found.total(np.array([8.0, 8.0])) == pytest.approx(found.fixed + first / 2 + second / 8 + third / 4)


def test_times_are_of_a_whole_batch(net: Any) -> None:
    one, four = (costs(row(net), 16, 32, batch=n) for n in (1, 4))
    level = np.array([[8.0]])
    np.testing.assert_allclose(four.saved(four.full, [0], level), 4 * one.saved(one.full, [0], level))


def test_layers_never_take_longer_together_than_the_model(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerTimes, "seconds", lambda self, layer: 100 * in_proportion(layer))
    found = costs(row(net), 16, 32)
    assert found.fixed == 0
    assert found.total(found.full) == pytest.approx(MEASURED)


def test_a_depthwise_layer_shrinks_once(net: Any) -> None:
    n = net()
    x = n.conv(n.conv("x", 3, 16, 1), 16, 16, group=16)
    found = costs(n.model(n.conv(x, 16, 4, 1)), 16)
    sides, depthwise = 64e-9 * (3 * 16 + 16 * 4), 64e-9 * 16 * 9
    np.testing.assert_allclose(found.saved(found.full, [0], np.array([[8.0]])), (sides + depthwise) / 2)


def test_more_channels_never_take_less(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count in between that was measured too long takes what the next one does."""
    slow = [16, 8]
    monkeypatch.setattr(
        LayerTimes, "seconds", lambda self, layer: 1e-4 * (9 if layer.outputs in slow else layer.outputs / 4)
    )
    found = costs(row(net), 32)
    saved = found.saved(found.full, [0], np.array([[24.0], [16.0], [8.0]]))
    assert (np.diff(saved) >= 0).all()
    assert (saved >= 0).all()


def test_without_layers_that_can_be_timed_all_is_fixed(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    n = net("N", 8, 4)
    proto = n.model(n.op("MatMul", n.op("Relu", "x"), n.op("Transpose", "x", perm=[0, 2, 1])))
    assert costs(proto).total(np.zeros(0)) == MEASURED

    def refuse(self: LayerTimes, layers: object) -> None:
        raise ExecutionError("no such kernel")

    monkeypatch.setattr(LayerTimes, "measure", refuse)
    with pytest.raises(PassError, match="cannot be timed on this machine: no such kernel; ask for macs instead"):
        costs(row(net), 16)
