"""Noise by layer: what scales of channels explain is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.check.layer_noise import layer_noise
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.model import Model


def net(scale: float = 1.0, noise: float = 0.0, name: str = "c1", ends: str = "Relu") -> Model:
    """Two convolutions: the first makes ``scale`` times as much, the second takes that back; ``noise`` is added."""
    rng = np.random.default_rng(0)
    factors = np.array([scale, 1, 1 / scale, 1], np.float32)
    one = rng.standard_normal((4, 3, 3, 3)).astype(np.float32) * factors[:, None, None, None]
    two = rng.standard_normal((2, 4, 3, 3)).astype(np.float32) / factors[None, :, None, None]
    one += noise * np.abs(one).max() * np.sign(rng.standard_normal(one.shape)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "one"], [name]),
        helper.make_node("Relu", [name], ["r"]),
        helper.make_node("Conv", ["r", "two"], ["c2"]),
        helper.make_node(ends, ["c2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in (("one", one), ("two", two))],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Model.from_proto(proto)


def noise(a: Model, b: Model, samples: int = 20) -> dict[str, float]:
    return {n.tensor: n.sqnr_db for n in layer_noise(a, b, open_dataset(None, a.inputs, samples=samples))}


def test_equal() -> None:
    found = noise(net(), net())
    assert list(found) == ["c1", "r", "c2", "y"]
    assert set(found.values()) == {math.inf}


def test_scales_are_no_noise() -> None:
    assert min(noise(net(), net(scale=8.0)).values()) > 100


def test_noise_is() -> None:
    few, much = noise(net(), net(noise=1e-3)), noise(net(), net(noise=1e-2))
    assert all(math.isfinite(db) for db in few.values())
    assert [few[k] - much[k] for k in few] == pytest.approx([20] * 4, abs=1.0)


def test_only_what_both_have() -> None:
    assert list(noise(net(), net(name="other"))) == ["r", "c2", "y"]


def test_a_model_that_does_not_run_tells_nothing() -> None:
    odd = net()
    odd.graph.nodes[-1].op = "NoSuchOperator"
    assert noise(net(), odd) == {}
