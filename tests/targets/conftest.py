"""Models whose answers tell which kernels ran."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.graph.signature import Feed

# 8 pairs of 255 * 127 + 255 * 127, and what is left of them where a pair has 16 bits.
EXACT, SATURATED = 8 * 2 * 255 * 127, 8 * 32767


@pytest.fixture(scope="session")
def telltale(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product of integers that saturates in 16 bits, and one of floats whose last bits show the order of its sums."""
    size = 16
    weights = np.random.default_rng(0).standard_normal((size, 37, size)).astype(np.float32)[0]
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["sum"]), helper.make_node("MatMul", ["v", "weights"], ["dot"])],
        "telltale",
        [
            helper.make_tensor_value_info("x", TensorProto.UINT8, [size, size]),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [5, 37]),
        ],
        [
            helper.make_tensor_value_info("sum", TensorProto.INT32, [size, size]),
            helper.make_tensor_value_info("dot", TensorProto.FLOAT, [5, size]),
        ],
        [
            helper.make_tensor("w", TensorProto.INT8, [size, size], [127] * size**2),
            numpy_helper.from_array(weights, "weights"),
        ],
    )
    path = tmp_path_factory.mktemp("telltale") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.fixture(scope="session")
def feed() -> Feed:
    """What the telltale is asked."""
    vector = np.random.default_rng(1).standard_normal((5, 37)).astype(np.float32)
    return {"x": np.full((16, 16), 255, np.uint8), "v": vector}
