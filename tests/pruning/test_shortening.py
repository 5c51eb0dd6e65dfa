"""Which residual blocks go: the cheapest, while channels are dearer."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.model import Model
from onnxopt.pruning import shortening
from onnxopt.pruning.budget import Quantity
from onnxopt.pruning.shortening import Dropped, shorten

# Error rises with what is saved: slopes 1, 2, 4, and a step back.
WAY = [(1.0, 0.0), (0.9, 0.1), (0.7, 0.5), (0.5, 1.3), (0.55, 1.2)]


def blocks(net: Any) -> onnx.ModelProto:
    """Four residual blocks of one layer; the third says the least, then the first."""
    n = net()
    x = n.relu(n.conv("x", 3, 16))
    for strength in (0.1, 1.0, 1e-3, 1.0):
        x = n.relu(n.op("Add", x, n.op("Mul", n.conv(x, 16, 16), n.constant(strength))))
    made: onnx.ModelProto = n.head(x, 16)
    return made


def dropped(net: Any, price: float, limit: float, quantity: Quantity = "macs") -> list[Dropped]:
    model = Model.from_proto(blocks(net))
    model.tidy()
    context = Context(model.clone(), open_dataset(None, model.inputs, samples=24), batch=8)
    return shorten(model, context, [(1.0, 0.0), (0.0, price)], limit, quantity, 24, lambda _: True)


@pytest.mark.parametrize(
    ("share", "price"), [(0.5, 4.0), (0.7, 2.0), (0.65, 4.0), (0.95, 1.0), (1.0, 0.0), (1.2, 0.0), (0.1, 4.0)]
)
def test_the_price_is_that_of_what_is_still_to_be_saved(share: float, price: float) -> None:
    assert shortening._price(WAY, share) == pytest.approx(price)
    assert shortening._price(WAY[:1], share) == 0


def test_blocks_go_while_they_are_cheaper(net: Any) -> None:
    first = Dropped("Add12", ("Conv10",), "add12")
    second = Dropped("Add4", ("Conv2",), "add4")
    assert dropped(net, 0.0, 0.1) == []
    assert dropped(net, 1e-2, 0.1) == [first]
    assert dropped(net, 1e9, 0.8) == [first]
    assert dropped(net, 1e9, 0.6)[:2] == [first, second]
    assert len(dropped(net, 1e9, 0.0)) == 4


@pytest.mark.parametrize("quantity", ["params", "size", "latency"])
def test_savings_in_each_unit(net: Any, quantity: Quantity) -> None:
    assert [d.add for d in dropped(net, 1e9, 0.8, quantity)] == ["Add12"]
    assert [d.add for d in dropped(net, 1e9, 0.6, quantity)][:2] == ["Add12", "Add4"]


def test_without_outputs_in_floats_all_blocks_stay(net: Any) -> None:
    proto = blocks(net)
    (y,) = proto.graph.output
    proto.graph.node.append(onnx.helper.make_node("Cast", [y.name], ["whole"], to=onnx.TensorProto.INT64))
    y.CopyFrom(onnx.helper.make_tensor_value_info("whole", onnx.TensorProto.INT64, ["N", 5]))
    model = Model.from_proto(proto)
    context = Context(model, open_dataset(None, model.inputs, samples=24), batch=8)
    assert shorten(model, context, [(1.0, 0.0), (0.0, 1e9)], 0.1, "macs", 24, lambda _: True) == []
