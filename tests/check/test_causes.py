"""Causes, each with a model that it is the cause of: on masked processors, and on emulated ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.check.causes import ACCURACY_LEVEL, FLOAT16, SATURATION, TIES, find_causes
from onnxopt.check.departure import Departure, find_departure
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Feed
from onnxopt.report.report import Cause
from onnxopt.runtime.probe import saturates
from onnxopt.runtime.target import NATIVE, TARGETS
from onnxopt.targets.find import find_way
from onnxopt.targets.spec import parse_targets
from onnxopt.targets.way import Unavailable, Way

SIZE = 64
FEED: Feed = {"x": np.random.default_rng(0).standard_normal((8, SIZE)).astype(np.float32)}


class Net:
    """Writes a graph down."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        made = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [made], name=f"{op}{len(self.nodes)}", **attributes))
        return made

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), f"c{len(self.weights)}"))
        return str(self.weights[-1].name)

    def quantize(self, tensor: str, scale: float) -> str:
        step = self.constant(scale), self.constant(128, np.uint8)
        return self.op("DequantizeLinear", self.op("QuantizeLinear", tensor, *step), *step)

    def model(self, *outputs: str) -> Model:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, FEED["x"].shape)],
            [onnx.ValueInfoProto(name=y) for y in outputs],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return Model.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def saturating(share_zero: bool = False) -> Model:
    """Two layers in a row; their zero points are one constant or two."""
    net = Net()
    zeros = [net.constant(0, np.int8) for _ in range(2)]
    tensor = net.quantize("x", 0.02)
    for i in range(2):
        weight = net.constant(np.full((SIZE, SIZE), 127), np.int8), net.constant(0.001)
        weights = net.op("DequantizeLinear", *weight, zeros[0 if share_zero else i])
        tensor = net.quantize(net.op("MatMul", tensor, weights), 0.1)
    return net.model(tensor)


def halves() -> Model:
    net = Net()
    weight = np.random.default_rng(1).standard_normal((SIZE, 16))
    half = net.op("MatMul", net.op("Cast", "x", to=TensorProto.FLOAT16), net.constant(weight, np.float16))
    return net.model(net.op("Cast", half, to=TensorProto.FLOAT))


def sums() -> Model:
    """Half of all sums lie halfway between two steps."""
    net = Net()
    two = net.quantize("x", 0.02), net.quantize(net.op("Sin", "x"), 0.02)
    return net.model(net.quantize(net.op("Add", *two), 0.04))


def four_bits(level: int = 4) -> Model:
    net = Net()
    rng = np.random.default_rng(2)
    weight = net.constant(rng.integers(0, 256, (16, 2, 16)), np.uint8), net.constant(rng.random(32))
    sizes = {"K": SIZE, "N": 16, "bits": 4, "block_size": 32}
    return net.model(net.op("MatMulNBits", "x", *weight, domain="com.microsoft", accuracy_level=level, **sizes))


def four_bits_to_be() -> Model:
    """Weights in blocks behind a DequantizeLinear."""
    net = Net()
    rng = np.random.default_rng(2)
    packed = helper.make_tensor("w", TensorProto.INT4, (SIZE, 16), rng.integers(-8, 8, SIZE * 16).tolist())
    net.weights.append(packed)
    weight = net.op("DequantizeLinear", "w", net.constant(rng.random((2, 16))), block_size=32, axis=0)
    return net.model(net.op("MatMul", "x", weight))


def way_to(name: str) -> Way:
    found = find_way(parse_targets(name)[0])
    if isinstance(found, Unavailable):
        pytest.skip(f"{name}: {found}")
    if saturates(NATIVE):
        pytest.skip("this processor adds in pairs itself")
    return found


def causes(model: Model, name: str) -> tuple[Cause, ...]:
    departure = find_departure(model, FEED, way_to(name))
    assert departure is not None
    return find_causes(model, TARGETS[name], departure)


@pytest.mark.parametrize("name", ["x86-64-avx2", "x86-64-avx512"])
def test_saturation_is_named_with_three_remedies(name: str) -> None:
    (cause,) = causes(saturating(), name)
    assert cause.name == SATURATION
    assert "'MatMul3', 'MatMul7' overflow: pairs add up to 254, and 128 is safe" in cause.why
    again, unsigned, key = cause.remedies
    assert "--target x86-64-avx2" in again.what
    assert again.price.startswith("128 of 128 channels")
    assert "uint8" in unsigned.what
    assert "session.x64quantprecision=1" in key.what


def test_the_key_is_no_remedy_where_the_model_does_not_load_with_it() -> None:
    (cause,) = causes(saturating(share_zero=True), "x86-64-avx2")
    assert len(cause.remedies) == 2


@pytest.mark.parametrize(("build", "remedy"), [(four_bits, "in these nodes"), (four_bits_to_be, "accuracy_level=1")])
def test_accuracy_levels_are_named(build: Callable[[], Model], remedy: str) -> None:
    (cause,) = causes(build(), "x86-64-sse42")
    assert cause.name == ACCURACY_LEVEL
    assert [remedy in r.what for r in cause.remedies] == [True]


def test_other_levels_are_the_same_everywhere() -> None:
    assert find_departure(four_bits(level=1), FEED, way_to("x86-64-sse42")) is None
    assert find_causes(four_bits(level=1), TARGETS["x86-64-sse42"], None) == ()


def test_float16_sums_are_named_where_they_are_made(arm64: object) -> None:
    (cause,) = causes(halves(), "arm64-cortex-a76")
    assert cause.name == FLOAT16
    assert "'MatMul1'" in cause.why


def test_ties_are_named_and_need_no_remedy(arm64: object) -> None:
    (cause,) = causes(sums(), "arm64-cortex-a53")
    assert cause.name == TIES
    assert "'Add" in cause.why
    assert len(cause.remedies) == 1


@pytest.mark.parametrize(
    ("build", "target"),
    [
        (saturating, "x86-64-avx512vnni"),
        (saturating, "x86-64-sse42"),
        (saturating, "arm64-cortex-a76"),
        (halves, "x86-64-avx2"),
        (halves, "arm64-cortex-a53"),
        (four_bits, "x86-64-avx2"),
        (sums, "x86-64-sse42"),
        (sums, "arm64-cortex-a53"),
    ],
)
def test_a_target_that_has_not_the_fault_has_not_the_cause(build: Callable[[], Model], target: str) -> None:
    """And without a departure nothing is a tie."""
    assert find_causes(build(), TARGETS[target], None) == ()


def test_without_a_departure_all_that_could_be_is_told() -> None:
    assert [c.name for c in find_causes(saturating(), TARGETS["x86-64-avx2"], None)] == [SATURATION]
    assert [c.name for c in find_causes(halves(), TARGETS["arm64-neoverse-v1"], None)] == [FLOAT16]


def test_what_lies_behind_the_departure_is_no_cause() -> None:
    earlier = Departure("QuantizeLinear0", "t0", 0.1, 1, "QuantizeLinear")
    assert find_causes(saturating(), TARGETS["x86-64-avx2"], earlier) == ()


def test_of_an_unknown_device_all_that_could_be_is_told() -> None:
    (wanted,) = parse_targets("ssh://pi@kitchen")
    assert [c.name for c in find_causes(halves(), wanted.target, None)] == [FLOAT16]
    assert [c.name for c in find_causes(saturating(), wanted.target, None)] == [SATURATION]


@pytest.mark.parametrize("steps", [2.0, 1.0])
def test_more_than_one_step_is_no_tie(steps: float) -> None:
    departure = Departure("Add6", "t6", 0.1, steps, "Add")
    assert len(find_causes(sums(), TARGETS["arm64-cortex-a53"], departure)) == (steps == 1)
