"""Normalisations, in one node and written out, by the proof of every cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

Halve = Callable[..., Any]
Finish = Callable[..., onnx.ModelProto]
Op = Callable[[Any, str], str]
ROW = np.linspace(0.5, 1.5, 12, dtype=np.float32)


def one(name: str, *constants: Any, outputs: int = 1, **attributes: Any) -> Op:
    """One operator that reads the channels, then these constants."""

    def build(n: Any, x: str) -> str:
        made = n.op(name, x, *map(n.constant, constants), outputs=outputs, **attributes)
        return str(made if outputs == 1 else made[0])

    return build


def mean(n: Any, x: str, opset: int) -> str:
    """Over the channels, kept as a length of 1."""
    return str(n.op("ReduceMean", x, axes=[1]) if opset < 18 else n.op("ReduceMean", x, n.ints(1)))


def spatial_attention(n: Any, x: str) -> str:
    """A map of where to look, from the mean of all channels."""
    return str(n.op("Mul", x, n.op("Sigmoid", n.conv(mean(n, x, 17), 1, 1))))


def layer_norm(n: Any, x: str) -> str:
    """LayerNormalization of the channels, written out."""
    x = n.op("Sub", x, mean(n, x, 17))
    variance = n.op("Add", mean(n, n.op("Pow", x, n.constant(2.0)), 17), n.constant(1e-5))
    return str(n.op("Mul", n.op("Div", x, n.op("Sqrt", variance)), n.constant(ROW[:, None, None])))


def group_norm_by_instance(n: Any, x: str) -> str:
    """GroupNormalization as it was exported before it was an operator."""
    y = n.op("Reshape", x, n.ints(0, 4, -1))
    y = n.op("InstanceNormalization", y, n.constant(np.ones(4)), n.constant(np.zeros(4)))
    return str(n.op("Mul", n.op("Reshape", y, n.ints(0, 12, 8, 8)), n.constant(ROW[:, None, None])))


# What it does between two convolutions, the operator set, classes that may go.
NORMS: dict[str, tuple[Op, int, int]] = {
    "GroupNormalization by group": (one("GroupNormalization", ROW[:4], ROW[:4], num_groups=4), 18, 4),
    "GroupNormalization by channel": (one("GroupNormalization", ROW, ROW, num_groups=4), 21, 4),
    "GroupNormalization of single channels": (one("GroupNormalization", ROW, ROW, num_groups=12), 21, 12),
    "GroupNormalization of all": (one("GroupNormalization", ROW, ROW, num_groups=1), 21, 1),
    "GroupNormalization by instance": (group_norm_by_instance, 17, 4),
    "RMSNormalization": (one("RMSNormalization", ROW[:, None, None], axis=1, epsilon=0.1), 23, 12),
    "RMSNormalization with a row": (one("RMSNormalization", np.ones(8), axis=1), 23, 12),
    "RMSNormalization of rows": (one("RMSNormalization", np.ones(8), axis=-1), 23, 12),
    "LpNormalization": (one("LpNormalization", axis=1), 17, 12),
    "LpNormalization of magnitudes": (one("LpNormalization", axis=1, p=1), 17, 12),
    "LRN": (one("LRN", size=3), 17, 0),
    "MeanVarianceNormalization": (one("MeanVarianceNormalization", axes=[0, 2, 3]), 17, 12),
    "MeanVarianceNormalization of channels": (one("MeanVarianceNormalization", axes=[1]), 17, 0),
    "spatial attention": (spatial_attention, 17, 12),
    "layer norm written out": (layer_norm, 17, 12),
    "mean in a newer operator set": (lambda n, x: n.op("Sub", x, mean(n, x, 18)), 18, 12),
    **{
        f"{name} of channels": (lambda n, x, name=name: n.op("Mul", x, n.op(name, n.op("Exp", x), axes=[1])), 17, 12)
        for name in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare")
    },
    **{
        f"{name} of channels": (lambda n, x, name=name: n.op("Mul", x, n.op(name, x, axes=[1])), 17, 0)
        for name in ("ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd")
    },
}


@pytest.mark.parametrize("name", NORMS)
def test_norm(name: str, net: Any, halve: Halve, finished: Finish) -> None:
    op, opset, classes = NORMS[name]
    n = net(4, 3, 8, 8)
    y = op(n, n.conv("x", 3, 12))
    assert halve(finished(n, n.op("Conv", y, n.normal(3, 12, 1, 1)), 4, 3, 8, 8, opset=opset)).classes == classes


def test_a_mean_that_the_model_gives_back(net: Any, halve: Halve) -> None:
    n = net(4, 3, 8, 8)
    outcome = halve(n.model(n.op("ReduceMean", n.conv("x", 3, 12), axes=[1, 2, 3])))
    assert [node.op for node in outcome.cut.graph.nodes] == ["Conv", "ReduceMean", "Mul"]
    assert float(outcome.cut.graph.nodes[-1].inputs[1].values) == 0.5


def test_means_keep_their_type(net: Any, halve: Halve) -> None:
    n = net(4, 3, 8, 8)
    y = n.op("Cast", n.conv("x", 3, 12), to=TensorProto.DOUBLE)
    y = n.op("Cast", n.op("ReduceMean", y, axes=[1]), to=TensorProto.FLOAT)
    assert halve(n.model(y)).cut.graph.nodes[-2].inputs[1].dtype == np.float64


def test_simplified_layer_normalization_of_a_sum(net: Any, halve: Halve, finished: Finish) -> None:
    n = net(2, 5, 6)
    x, skip = (n.op("MatMul", "x", n.normal(6, 12)) for _ in range(2))
    made = n.op(
        "SkipSimplifiedLayerNormalization",
        x,
        skip,
        n.constant(ROW),
        n.constant(ROW - 1),
        outputs=4,
        domain="com.microsoft",
        epsilon=0.1,
    )
    n.nodes[-1].output[1] = n.nodes[-1].output[2] = ""
    y = n.op("Add", n.op("MatMul", made[0], n.normal(12, 4)), n.op("MatMul", made[3], n.normal(12, 4)))
    assert halve(finished(n, y, 2, 5, 4)).classes == 12


def test_simplified_layer_normalization(net: Any, halve: Halve, finished: Finish) -> None:
    n = net(2, 5, 6)
    y = n.op("SimplifiedLayerNormalization", n.op("MatMul", "x", n.normal(6, 12)), n.constant(ROW), epsilon=0.1)
    assert halve(finished(n, n.op("MatMul", y, n.normal(12, 4)), 2, 5, 4)).classes == 12


def test_layer_normalization_of_a_sum_needs_all(net: Any, halve: Halve, finished: Finish) -> None:
    n = net(2, 5, 6)
    x = n.op("MatMul", n.op("MatMul", n.normal(8, 5), "x"), n.normal(6, 12))
    y = n.op("SkipLayerNormalization", x, x, n.constant(ROW), domain="com.microsoft")
    y = n.op("MatMul", n.op("MatMul", n.normal(3, 8), y), n.normal(12, 4))
    assert halve(finished(n, y, 2, 3, 4)).classes == 8
