"""Where a difference begins, found on masked processors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.check.departure import Departure, cuts, find_departure
from onnxopt.graph.model import Model
from onnxopt.runtime.exchange import Answer, Job
from onnxopt.runtime.probe import saturates
from onnxopt.runtime.target import NATIVE, TARGETS
from onnxopt.targets.masked import Masked, find_mask
from onnxopt.targets.way import Unavailable, Way

SIZE = 16
FEED = {"x": np.ones((4, SIZE), np.float32)}


class Net:
    """Writes a graph down."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        made = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [made], name=name or f"{op}{len(self.nodes)}", **attributes))
        return made

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), f"c{len(self.weights)}"))
        return str(self.weights[-1].name)

    def quantize(self, tensor: str, signed: bool = False) -> str:
        step = self.constant(1 / 255), self.constant(-128, np.int8) if signed else self.constant(0, np.uint8)
        return self.op("DequantizeLinear", self.op("QuantizeLinear", tensor, *step), *step)

    def dense(self, tensor: str, name: str, value: int = 64, signed: bool = False) -> str:
        """A layer that keeps ones ones; with a weight of 127, pairs overflow."""
        step = self.constant(1 / (SIZE * value)), self.constant(0, np.int8)
        weight = self.op("DequantizeLinear", self.constant(np.full((SIZE, SIZE), value), np.int8), *step)
        return self.quantize(self.op("MatMul", tensor, weight, name=name), signed)

    def model(self, *outputs: str) -> Model:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, SIZE])],
            [onnx.ValueInfoProto(name=y) for y in outputs],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return Model.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


@dataclass
class Counted:
    """A way that remembers what was asked of it."""

    way: Way
    jobs: list[Job] = field(default_factory=list)
    how: str = ""
    timed: bool = False
    slowdown: float = 1
    slowdown_int8: float = 1

    def run(self, job: Job) -> Answer:
        self.jobs.append(job)
        return self.way.run(job)


def masked(name: str) -> Masked:
    found = find_mask(TARGETS[name])
    if isinstance(found, Unavailable):
        pytest.skip(f"{name} cannot be shown: {found}")
    if saturates(NATIVE):
        pytest.skip("this processor adds in pairs itself")
    return found


def chain(bad: set[int], count: int = 100, signed: bool = False) -> Model:
    net = Net()
    tensor = net.quantize("x", signed)
    for i in range(count):
        tensor = net.dense(tensor, f"layer{i}", 127 if i in bad else 64, signed)
    return net.model(tensor)


@pytest.mark.parametrize("bad", [{0}, {41, 77}, {99}])
def test_the_first_of_many_layers_is_found_in_few_runs(bad: set[int]) -> None:
    way = Counted(masked("x86-64-avx2"))
    found = find_departure(chain(bad), FEED, way)
    assert found is not None
    assert found.node == f"layer{min(bad)}"
    assert found.op == "MatMul"
    assert found.steps
    assert found.share == 1
    assert 100 < found.largest < 160  # half of 255
    assert len(way.jobs) <= 3


def test_looking_at_signed_tensors_does_not_make_the_difference_go_away() -> None:
    """They are made unsigned when the model is loaded, but not where they are outputs of it."""
    model = chain({2}, 4, signed=True)
    before = model.digest()
    found = find_departure(model, FEED, masked("x86-64-avx2"))
    assert found is not None
    assert found.node == "layer2"
    assert model.digest() == before


@pytest.mark.parametrize("target", ["x86-64-sse42", "x86-64-avx"])
def test_where_nothing_differs_nothing_is_found(target: str) -> None:
    way = Counted(masked(target))
    assert find_departure(chain({3}, 6), FEED, way) is None
    assert len(way.jobs) == 1


def test_a_branch_that_differs_is_told_from_one_that_does_not() -> None:
    net = Net()
    x = net.dense(net.quantize("x"), "stem")
    left, right = net.dense(x, "left"), net.dense(net.dense(x, "wrong", 127), "right")
    found = find_departure(net.model(net.quantize(net.op("Mul", left, right))), FEED, masked("x86-64-avx2"))
    assert found is not None
    assert found.node == "wrong"


def test_the_layer_is_named_by_its_output_if_it_has_no_name() -> None:
    model = chain({0}, 1)
    for node in model.graph.nodes:
        node.name = ""
    found = find_departure(model, FEED, masked("x86-64-avx2"))
    assert found is not None
    assert found.node == next(n.outputs[0].name for n in model.graph.nodes if n.op == "MatMul")


def floats(op: str) -> Model:
    rng = np.random.default_rng(0)
    net = Net()
    x = net.op("Softmax", net.op("MatMul", "x", net.constant(rng.standard_normal((SIZE, 64))), name="first"))
    if op == "MatMulNBits":
        packed = net.constant(rng.integers(0, 256, (SIZE, 2, 16)), np.uint8), net.constant(rng.random(SIZE * 2))
        attributes = {"K": 64, "N": SIZE, "bits": 4, "block_size": 32, "accuracy_level": 4, "domain": "com.microsoft"}
        x = net.op(op, x, *packed, name="second", **attributes)
    else:
        x = net.op(op, x, net.constant(rng.standard_normal((64, SIZE))), name="second")
    return net.model(net.op("MatMul", net.op("Relu", x), net.constant(rng.standard_normal((SIZE, SIZE))), name="third"))


def test_floats_depart_where_they_differ_by_more_than_rounding() -> None:
    feed = {"x": np.random.default_rng(1).standard_normal((4, SIZE)).astype(np.float32)}
    way = masked("x86-64-sse42")
    assert find_departure(floats("MatMul"), feed, way) is None
    found = find_departure(floats("MatMulNBits"), feed, way)
    assert found is not None
    assert (found.node, found.op) == ("second", "MatMulNBits")
    assert not found.steps
    assert 1e-4 < found.largest < 0.05
    assert 0 < found.share <= 1


def test_only_tensors_that_can_be_read_without_a_change_are_read() -> None:
    """Not what a layer hands to its own clamp or quantizer, nor what is made of constants."""
    net = Net()
    step = net.constant(0.1), net.constant(0, np.int8)
    weight = net.op("DequantizeLinear", net.op("QuantizeLinear", net.constant(np.ones((SIZE, SIZE))), *step), *step)
    hidden = net.op("Relu", net.op("MatMul", net.quantize("x"), weight))
    quantized = net.quantize(hidden)
    inner = net.op("Tanh", net.op("MatMul", quantized, net.constant(np.ones((SIZE, SIZE)))))
    found = cuts(net.model(net.op("MatMul", inner, net.constant(np.ones((SIZE, SIZE))))).graph)
    makers = {net.nodes[i].op_type for i in range(len(net.nodes)) if net.nodes[i].output[0] in found}
    assert makers == {"QuantizeLinear", "Tanh"}
    assert len(found) == 3


@pytest.mark.parametrize(
    ("departure", "text"),
    [
        (Departure("a", "t", 0.5, 1, "Add"), "Add 'a': 50 % differ, by up to 1 step"),
        (Departure("a", "t", 0.001, 12, "Conv"), "Conv 'a': 0.1 % differ, by up to 12 steps"),
        (Departure("a", "t", 1, 0.0123, "MatMul", False), "MatMul 'a': 100 % differ, by up to 0.012 of the largest"),
    ],
)
def test_a_departure_reads_as_a_line(departure: Departure, text: str) -> None:
    assert str(departure) == text
