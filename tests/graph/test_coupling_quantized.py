"""Quantized and fused graphs, by the proof of every cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

Halve = Callable[..., Any]
Finish = Callable[..., onnx.ModelProto]
ROW = np.linspace(0.5, 1.5, 12, dtype=np.float32)


def integers(n: Any, *shape: int, dtype: Any = np.int8) -> str:
    """A weight of integers."""
    return str(n.constant(n.rng.integers(-100 if dtype == np.int8 else 28, 100, shape), dtype))


def scales(n: Any, count: int) -> str:
    """One for each channel."""
    return str(n.constant(n.rng.uniform(0.001, 0.003, count)))


def rounded(n: Any, x: str, scale: float = 0.02) -> str:
    """QuantizeLinear and back."""
    grid = n.constant(scale), n.constant(3, np.uint8)
    return str(n.op("DequantizeLinear", n.op("QuantizeLinear", x, *grid), *grid))


def quantized_conv(n: Any, x: str, into: int, out: int, group: int = 1) -> str:
    """A convolution of a graph in QDQ form: weights and bias by channel."""
    zero = n.constant(np.zeros(out), np.int8)
    weight = n.op("DequantizeLinear", integers(n, out, into // group, 3, 3), scales(n, out), zero, axis=0)
    bias = n.op("DequantizeLinear", integers(n, out, dtype=np.int32), scales(n, out), axis=0)
    return rounded(n, n.op("Conv", x, weight, bias, group=group, pads=[1] * 4))


def test_a_quantized_graph(net: Any, halve: Halve) -> None:
    n = net(4, 3, 8, 8)
    x = n.relu(quantized_conv(n, rounded(n, "x"), 3, 12))
    y = quantized_conv(n, quantized_conv(n, x, 12, 12, group=12), 12, 12)
    x = rounded(n, n.op("Add", x, y))
    outcome = halve(n.model(quantized_conv(n, quantized_conv(n, x, 12, 8), 8, 3)))
    assert outcome.classes == 12 + 8
    dequantize = [m for m in outcome.cut.graph.nodes if m.op == "DequantizeLinear" and m.inputs[0].dtype == np.int8]
    assert [m.inputs[0].shape[:2] for m in dequantize] == [(6, 3), (6, 1), (6, 6), (4, 6), (3, 4)]
    assert [m.inputs[1].shape for m in dequantize] == [(6,), (6,), (6,), (4,), (3,)]


def test_scales_in_blocks_stay(net: Any, halve: Halve) -> None:
    n = net(4, 6)
    weight = n.op("DequantizeLinear", integers(n, 6, 12), n.constant(np.ones((3, 12)) / 99), axis=0, block_size=2)
    y = n.op("MatMul", n.op("MatMul", "x", weight), n.normal(12, 3))
    assert halve(n.model(y, 21)).classes == 0


GRID = (np.float32(0.02), np.uint8(3))


def qlinear_conv(n: Any, x: str, into: int, out: int, group: int = 1, **more: Any) -> str:
    """A convolution of integers, its weights by channel."""
    grid = [n.constant(v, v.dtype) for v in GRID]
    weight = integers(n, out, into // group, 3, 3), scales(n, out), n.constant(np.zeros(out), np.int8)
    bias = integers(n, out, dtype=np.int32)
    return str(n.op("QLinearConv", x, *grid, *weight, *grid, bias, group=group, pads=[1] * 4, **more))


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("QLinearConv", 12),
        ("QLinearAdd", 12),
        ("QLinearMul", 12),
        ("QLinearSigmoid", 12),
        ("QLinearLeakyRelu", 12),
        ("QLinearGlobalAveragePool", 12),
        ("QLinearAveragePool", 12),
        ("QLinearConcat", 24),
    ],
)
def test_integers(name: str, classes: int, net: Any, halve: Halve, finished: Finish) -> None:
    n = net(4, 3, 8, 8)
    grid = [n.constant(v, v.dtype) for v in GRID]
    x = qlinear_conv(n, n.op("QuantizeLinear", "x", *grid), 3, 12)
    if name == "QLinearConv":
        x = qlinear_conv(n, x, 12, 12, group=12)
    elif name in ("QLinearAdd", "QLinearMul"):
        x = n.op(name, x, *grid, qlinear_conv(n, x, 12, 1), *grid, *grid, domain="com.microsoft")
    elif name == "QLinearConcat":
        other = qlinear_conv(n, n.op("QuantizeLinear", "x", *grid), 3, 12)
        x = n.op(name, *grid, x, *grid, other, *grid, axis=1, domain="com.microsoft")
    else:
        more = {"channels_last": 0} if "Pool" in name else {}
        more |= {"kernel_shape": [2, 2]} if name == "QLinearAveragePool" else {}
        x = n.op(name, x, *grid, *grid, domain="com.microsoft", **more)
    y = n.op("DequantizeLinear", qlinear_conv(n, x, 24 if name == "QLinearConcat" else 12, 3), *grid)
    size = {"QLinearGlobalAveragePool": 1, "QLinearAveragePool": 7}.get(name, 8)
    assert halve(finished(n, y, 4, 3, size, size)).classes == classes


@pytest.mark.parametrize(("zero", "classes"), [(0, 12), (5, 0)])
def test_products_of_integers(zero: int, classes: int, net: Any, halve: Halve) -> None:
    n = net(4, 6)
    grid = [n.constant(v, v.dtype) for v in GRID]
    x = n.op("QuantizeLinear", "x", *grid)
    zeros = n.constant(np.zeros(12), np.int8)
    x = n.op("QLinearMatMul", x, *grid, integers(n, 6, 12), scales(n, 12), zeros, *grid)
    y = n.op("MatMulInteger", x, integers(n, 12, 3), n.constant(3, np.uint8), n.constant(zero, np.int8))
    assert halve(n.model(n.op("Cast", y, to=TensorProto.FLOAT))).classes == classes


def test_products_of_integers_that_make_floats(net: Any, halve: Halve, finished: Finish) -> None:
    n = net(4, 6)
    bias = n.constant(ROW)
    more = integers(n, 6, 12), scales(n, 12), n.constant(np.zeros(12), np.int8), bias
    y = n.op("DynamicQuantizeMatMul", "x", *more, domain="com.microsoft")
    more = integers(n, 12, 8), scales(n, 8), n.constant(np.zeros(8), np.int8)
    y = n.op("DynamicQuantizeMatMul", y, *more, domain="com.microsoft")
    assert halve(finished(n, n.op("MatMul", y, n.normal(8, 3)), 4, 3)).classes == 8


@pytest.mark.parametrize("group", [1, 2, 12])
def test_convolutions_of_integers(group: int, net: Any, halve: Halve) -> None:
    n = net(4, 3, 8, 8)
    grid = [n.constant(v, v.dtype) for v in GRID]
    x = qlinear_conv(n, n.op("QuantizeLinear", "x", *grid), 3, 12)
    weight = integers(n, 12, 12 // group, 1, 1, dtype=np.uint8)
    y = n.op("Cast", n.op("ConvInteger", x, weight, grid[1], group=group), to=TensorProto.FLOAT)
    classes = {1: 24, 2: 6 + 6, 12: 12}[group]
    assert halve(n.model(n.op("Conv", y, n.normal(3, 12, 1, 1)))).classes == classes


def test_what_is_quantized_as_a_whole_stays(net: Any, halve: Halve) -> None:
    n = net(4, 6)
    x, scale, zero = n.op("DynamicQuantizeLinear", n.dense("x", 6, 12), outputs=3)
    y = n.op("MatMulInteger", x, integers(n, 12, 8), zero)
    y = n.op("Mul", n.op("Cast", y, to=TensorProto.FLOAT), scale)
    assert halve(n.model(n.op("MatMul", y, n.normal(8, 3)))).classes == 8


@pytest.mark.parametrize(
    ("name", "bias"),
    [("Gelu", False), ("QuickGelu", False), ("FastGelu", False), ("FastGelu", True), ("BiasGelu", True)],
)
def test_fused_activation(name: str, bias: bool, net: Any, halve: Halve, finished: Finish) -> None:
    n = net(4, 6)
    more = [n.constant(ROW)] if bias else []
    y = n.op(name, n.op("MatMul", "x", n.normal(6, 12)), *more, domain="com.microsoft")
    assert halve(finished(n, n.op("MatMul", y, n.normal(12, 3)), 4, 3)).classes == 12


@pytest.mark.parametrize("group", [1, 2, 12])
def test_fused_convolution(group: int, net: Any, halve: Halve, finished: Finish) -> None:
    n = net(4, 3, 8, 8)
    x = n.conv("x", 3, 12)
    weight, bias = n.normal(12, 12 // group, 3, 3), n.constant(ROW)
    fused = {"activation": "Relu", "group": group, "pads": [1] * 4, "domain": "com.microsoft"}
    y = n.op("FusedConv", x, weight, bias, x, **fused)
    assert halve(finished(n, n.op("Conv", y, n.normal(3, 12, 1, 1)), 4, 3, 8, 8)).classes == (6 if group == 2 else 12)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_fused_product(trans_a: int, trans_b: int, net: Any, halve: Halve, finished: Finish) -> None:
    n = net(2, 5, 6)
    x = n.op("MatMul", "x", n.normal(6, 12))
    x = n.op("Transpose", x, perm=[0, 2, 1]) if trans_a else x
    weight = n.normal(8, 12) if trans_b else n.normal(12, 8)
    y = n.op("FusedMatMul", x, weight, transA=trans_a, transB=trans_b, alpha=0.5, domain="com.microsoft")
    assert halve(finished(n, n.op("MatMul", y, n.normal(8, 3)), 2, 5, 3)).classes == 20


def test_fused_gemm(net: Any, halve: Halve, finished: Finish) -> None:
    n = net(4, 6)
    y = n.op("FusedGemm", "x", n.normal(12, 6), n.constant(ROW), transB=1, activation="Relu", domain="com.microsoft")
    assert halve(finished(n, n.op("MatMul", y, n.normal(12, 3)), 4, 3)).classes == 12
