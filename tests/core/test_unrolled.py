"""Layers as matrix products: rows times weights give what ONNX Runtime gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxopt.core import unrolled
from onnxopt.graph.ir import Node
from onnxopt.graph.model import Model
from onnxopt.runtime.session import Session

LAYERS: dict[str, Callable[[Any], str]] = {
    "conv": lambda n: n.conv("x", 4, 6),
    "strided and dilated": lambda n: n.op(
        "Conv", "x", n.normal(6, 4, 3, 2), strides=[2, 1], dilations=[1, 2], pads=[1, 0, 2, 1]
    ),
    "same upper": lambda n: n.op("Conv", "x", n.normal(6, 4, 3, 2), strides=[2, 3], auto_pad="SAME_UPPER"),
    "same lower": lambda n: n.op("Conv", "x", n.normal(6, 4, 2, 2), auto_pad="SAME_LOWER"),
    "valid": lambda n: n.op("Conv", "x", n.normal(6, 4, 3, 3), auto_pad="VALID"),
    "groups": lambda n: n.conv("x", 4, 6, group=2),
    "transposed": lambda n: n.op("ConvTranspose", "x", n.normal(4, 6, 3, 2), n.constant(np.arange(6)), strides=[2, 3]),
    "transposed and cropped": lambda n: n.op(
        "ConvTranspose",
        "x",
        n.normal(4, 6, 3, 3),
        strides=[2, 2],
        pads=[1, 1, 0, 2],
        output_padding=[1, 0],
        dilations=[2, 1],
    ),
    "transposed and cropped far": lambda n: n.op(
        "ConvTranspose", "x", n.normal(4, 6, 1, 1), strides=[2, 2], pads=[1, 2, 1, 0]
    ),
    "transposed in groups": lambda n: n.op("ConvTranspose", "x", n.normal(4, 3, 2, 2), group=2, strides=[2, 2]),
    "matmul": lambda n: n.op("MatMul", "x", n.normal(8, 5)),
    "matmul and bias": lambda n: n.op("Add", n.op("MatMul", "x", n.normal(8, 5)), n.constant(np.arange(5))),
    "gemm": lambda n: n.dense(n.op("Flatten", "x", axis=3), 8, 5),
    "scaled gemm": lambda n: n.op(
        "Gemm", n.op("Flatten", "x", axis=3), n.normal(8, 5), n.constant(np.arange(5)), alpha=0.5, beta=3.0
    ),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest, net: Any) -> tuple[Model, Node]:
    n = net(3, 4, 7, 8)
    model = Model.from_proto(n.model(LAYERS[request.param](n)))
    return model, next(node for node in model.graph.nodes if node.op in unrolled.LAYERS)


def run(model: Model, layer: Node) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = layer.inputs[0].name, layer.outputs[0].name
    feed = {"x": np.random.default_rng(0).standard_normal((3, 4, 7, 8)).astype(np.float32)}
    found = Session(model, outputs=[x, y, model.graph.outputs[0].name], optimize=False).run(feed)
    return found[x], found[y], found[model.graph.outputs[0].name]


def test_rows_times_weights_are_targets(layer: tuple[Model, Node]) -> None:
    model, node = layer
    assert unrolled.fault(node) == ""
    x, y, _ = run(model, node)
    weight, bias = unrolled.read(node)
    rows, targets = unrolled.Rows(node, x), unrolled.targets(node, y)
    assert rows.count == len(targets)
    at = np.arange(0, rows.count, 3)
    made = np.einsum("ngi,goi->ngo", rows.at(at).reshape(len(at), len(weight), -1), weight) + bias
    np.testing.assert_allclose(made.reshape(len(at), -1), targets[at], atol=1e-5)


def test_a_bias_arrives_whatever_the_layer(layer: tuple[Model, Node]) -> None:
    model, node = layer
    before, name = run(model, node)[2], node.outputs[0].name
    weight, bias = unrolled.read(node)
    unrolled.write(model, node, weight, bias + 1)
    model.tidy()
    assert name in model.variables()
    np.testing.assert_allclose(run(model, node)[2], before + 1, atol=2e-5)


def test_weights_are_read_as_they_were_written(layer: tuple[Model, Node]) -> None:
    model, node = layer
    weight, bias = unrolled.read(node)
    unrolled.write(model, node, 2 * weight, bias)
    np.testing.assert_allclose(unrolled.read(node)[0], 2 * weight, rtol=1e-6)


FAULTS: dict[str, tuple[Callable[[Any], str], str]] = {
    "shared": (
        lambda n: n.op("Add", n.op("MatMul", "x", w := n.normal(8, 8)), n.op("MatMul", "x", w)),
        "shares its weights",
    ),
    "wide": (
        lambda n: n.op("MatMul", n.op("Tile", "x", n.ints(1, 1, 1, 800)), n.normal(6400, 2)),
        "sums over 6400 inputs",
    ),
    "bias": (
        lambda n: n.op("Gemm", n.op("Flatten", "x", axis=3), n.normal(8, 2), n.normal(84, 2)),
        "not one number per channel",
    ),
    "column": (
        lambda n: n.op("Gemm", n.op("Flatten", "x", axis=3), n.normal(8, 84), n.normal(84, 1)),
        "not one number per channel",
    ),
    "transA": (lambda n: n.op("Gemm", n.op("Flatten", "x", axis=1), n.normal(3, 2), transA=1), "transposes its input"),
    "pads": (lambda n: n.op("ConvTranspose", "x", n.normal(4, 2, 2, 2), auto_pad="SAME_UPPER"), "pads automatically"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str, net: Any) -> None:
    build, why = FAULTS[name]
    n = net(3, 4, 7, 8)
    model = Model.from_proto(n.model(build(n)))
    assert why in unrolled.fault(next(node for node in model.graph.nodes if node.op in unrolled.LAYERS))
