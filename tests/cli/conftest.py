"""Run the command line in this process, as a shell would see it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.cli import main


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., Done]:
    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["onnxopt", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        output = capsys.readouterr()
        return Done(0 if code is None else int(code), output.out, output.err)

    return call


def small_net(seed: int = 0) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, pooling, Gemm: large enough that a run of passes has something to do."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int, low: float | None = None) -> onnx.TensorProto:
        scale = np.sqrt(2 / max(1, np.prod(shape[1:])))
        values = rng.standard_normal(shape) * scale if low is None else rng.uniform(low, 1.5, shape)
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c1", "s", "b", "m", "v"], ["n1"], name="norm"),
        helper.make_node("Relu", ["n1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], name="conv3", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c3"], ["r3"], name="relu3"),
        helper.make_node("GlobalAveragePool", ["r3"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["scores"], name="gemm", transB=1),
    ]
    weights = [weight("w1", 32, 3, 3, 3), weight("w2", 64, 32, 3, 3), weight("w3", 64, 64, 3, 3), weight("w4", 10, 64)]
    weights += [weight("b4", 10), weight("s", 32, low=0.5), weight("b", 32), weight("m", 32), weight("v", 32, low=0.5)]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little time for the clock: how fast things are is not what these tests are about."""
    monkeypatch.setattr("onnxopt.check.validate._ROUND_S", 0.2)
    monkeypatch.setattr("onnxopt.check.clock._ROUND_S", 0.1)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A model file in a folder of its own, with calibration data beside it."""
    folder = tmp_path / "work"
    folder.mkdir()
    onnx.save(small_net(), folder / "net.onnx")
    return folder / "net.onnx"
