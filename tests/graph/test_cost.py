"""Costs are counted by hand here and by the engine."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.cost import Cost, cost
from onnxopt.graph.io import load
from onnxopt.graph.model import Model
from onnxopt.runtime.session import Session

HEAD = '<ir_version: 9, opset_import: ["" : 21, "com.microsoft" : 1, "own" : 1]>'


def count(text: str, feed: dict[str, np.ndarray] | None = None) -> Cost:
    """Cost of a model from text, with the shapes that a run gives (or those in the text alone)."""
    model = Model.from_proto(onnx.parser.parse_model(HEAD + text))
    shapes = {c.name: tuple(c.shape) for c in model.constants()}
    if feed is not None:
        names = [t.name for n in model.graph.nodes for t in n.outputs if t.name and t.name not in shapes]
        values = Session(model, outputs=[*names, *feed], optimize=False).run(feed)
        shapes |= {name: np.shape(v) for name, v in values.items()}
    return cost(model, shapes)


def zeros(**shapes: tuple[int, ...]) -> str:
    """Float initializers of zeros as text."""
    return ", ".join(f"float[{','.join(map(str, s))}] {n} = {{{','.join(['0'] * prod(s))}}}" for n, s in shapes.items())


def f32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("node", "weights", "feed", "parameters", "macs"),
    [
        pytest.param(
            "y = Conv <pads = [1,1,1,1], group = 2> (x, w, b)",
            {"w": (6, 2, 3, 3), "b": (6,)},
            f32(2, 4, 5, 5),
            6 * 2 * 9 + 6,
            2 * 6 * 25 * 2 * 9,
            id="grouped Conv",
        ),
        pytest.param(
            "y = ConvTranspose <strides = [2,2]> (x, w)",
            {"w": (4, 3, 2, 2)},
            f32(1, 4, 5, 5),
            48,
            100 * 12,
            id="ConvTranspose",
        ),
        pytest.param("y = Gemm <transB = 1> (x, w)", {"w": (7, 4)}, f32(3, 4), 28, 84, id="Gemm"),
        pytest.param("y = Gemm <transA = 1> (x, w)", {"w": (4, 7)}, f32(4, 3), 28, 84, id="Gemm, A transposed"),
        pytest.param("y = MatMul (x, w)", {"w": (4, 7)}, f32(2, 5, 3, 4), 28, 2 * 5 * 3 * 7 * 4, id="batched MatMul"),
        pytest.param("y = MatMul (x, x)", {}, f32(2, 4, 4), 0, 2 * 64, id="MatMul of activations"),
        pytest.param("y = MatMul (x, w)", {"w": (4,)}, f32(4), 4, 4, id="inner product"),
        pytest.param(
            'y = Einsum <equation = "btd,dhk->bthk"> (x, w)', {"w": (4, 2, 3)}, f32(2, 5, 4), 24, 240, id="Einsum"
        ),
        pytest.param(
            "y, h, c = LSTM <hidden_size = 3> (x, w, r)",
            {"w": (1, 12, 2), "r": (1, 12, 3)},
            f32(5, 4, 2),
            60,
            1200,
            id="LSTM",
        ),
        pytest.param(
            "y, h = GRU <hidden_size = 3> (x, w, r)", {"w": (1, 9, 2), "r": (1, 9, 3)}, f32(5, 4, 2), 45, 900, id="GRU"
        ),
        pytest.param(
            "y, h = RNN <hidden_size = 3> (x, w, r)", {"w": (1, 3, 2), "r": (1, 3, 3)}, f32(5, 4, 2), 15, 300, id="RNN"
        ),
        pytest.param("y = Relu (x)", {}, f32(5, 4), 0, 0, id="no matrix"),
    ],
)
def test_float_operators(
    node: str, weights: dict[str, tuple[int, ...]], feed: np.ndarray, parameters: int, macs: int
) -> None:
    shape = ",".join(map(str, feed.shape))
    found = count(f"g (float[{shape}] x) => (float y) <{zeros(**weights)}> {{ {node} }}", {"x": feed})
    assert found.total.parameters == parameters
    assert found.total.weight_bytes == 4 * parameters
    assert found.total.macs == macs


QDQ = """g (float[1,2,4,4] x) => (float y) <float s = {0.1}, uint8 zx = {128}, float[3] sw = {1,1,1},
  int8[3] zw = {0,0,0}, int8[3,2,1,1] w = {1,2,3,4,5,6}, int32[3] b = {0,0,0}> {
  q = QuantizeLinear (x, s, zx)
  d = DequantizeLinear (q, s, zx)
  dw = DequantizeLinear <axis = 0> (w, sw, zw)
  db = DequantizeLinear <axis = 0> (b, sw)
  y = Conv (d, dw, db) }"""


def test_weights_behind_dequantize_count_for_the_convolution() -> None:
    found = count(QDQ, {"x": f32(1, 2, 4, 4)})
    conv = next(o for o in found.operators if o.op == "Conv")
    assert (found.total.parameters, conv.parameters, conv.macs) == (9, 9, 16 * 3 * 2)
    assert conv.weight_bytes == 6 + 3 * 4 + 3 * 4 + 3  # weights, bias, their scales and zero points
    assert found.total.weight_bytes == conv.weight_bytes + 4 + 1
    assert [o.op for o in found.operators] == ["Conv", "QuantizeLinear", "DequantizeLinear"]


def test_integer_operators() -> None:
    conv = """g (uint8[1,2,4,4] x) => (uint8 y) <float s = {1}, uint8 z = {0}, int8[3,2,1,1] w = {1,2,3,4,5,6},
      int8 zw = {0}> { y = QLinearConv (x, s, z, w, s, zw, s, z) }"""
    assert count(conv, {"x": np.zeros((1, 2, 4, 4), np.uint8)}).total.macs == 16 * 3 * 2
    matmul = """g (uint8[5,2] x) => (int32 y) <int8[2,3] w = {1,2,3,4,5,6}> { y = MatMulInteger (x, w) }"""
    found = count(matmul, {"x": np.zeros((5, 2), np.uint8)})
    assert (found.total.macs, found.total.parameters, found.total.weight_bytes) == (30, 6, 6)


def test_four_bit_weights_count_one_by_one() -> None:
    text = f"""g (float[3,32] x) => (float y) <uint8[2,1,16] w = {{{",".join(["0"] * 32)}}}, float[2] s = {{1, 1}}>
      {{ y = com.microsoft.MatMulNBits <K = 32, N = 2, bits = 4, block_size = 32> (x, w, s) }}"""
    found = count(text, {"x": f32(3, 32)})
    assert (found.total.parameters, found.total.weight_bytes, found.total.macs) == (64, 40, 3 * 64)


def test_weights_are_followed_through_all_that_only_carries_them() -> None:
    text = """g (float[5,2] x) => (float y) <int8[3,2] w = {1,2,3,4,5,6}, float s = {1}> {
      d = DequantizeLinear (w, s)
      t = Transpose (d)
      y = MatMul (x, t) }"""
    found = count(text, {"x": f32(5, 2)})
    assert {o.op: o.parameters for o in found.operators} == {"MatMul": 6, "DequantizeLinear": 0, "Transpose": 0}


def test_shared_constants_count_once_but_work_twice() -> None:
    found = count(
        f"g (float[2,3] x) => (float y) <{zeros(w=(3, 3))}> {{ a = MatMul (x, w)  y = MatMul (a, w) }}",
        {"x": f32(2, 3)},
    )
    assert (found.total.parameters, found.total.weight_bytes, found.total.macs) == (9, 36, 36)
    assert [n.parameters for n in found.nodes] == [9, 0]


def test_shape_arithmetic_is_no_parameter() -> None:
    found = count("g (float[2,3] x) => (float y) <int64[2] s = {3, 2}> { y = Reshape (x, s) }", {"x": f32(2, 3)})
    assert (found.total.parameters, found.total.weight_bytes) == (0, 16)


def test_attention_counts_scores_and_values() -> None:
    model = Model.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 23]> '
            "g (float[2,4,5,8] q, float[2,2,7,8] k, float[2,2,7,6] v) => (float[2,4,5,6] y) { y = Attention (q, k, v) }"
        )
    )
    assert cost(model, {}).total.macs == 2 * 4 * 5 * 7 * (8 + 6)


def test_attention_sees_what_went_before() -> None:
    model = Model.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 23]> g (float[1,2,3,8] q, float[1,2,4,8] k, float[1,2,4,8] v, '
            "float[1,2,6,8] pk, float[1,2,6,8] pv) => (float[1,2,3,8] y, float[1,2,10,8] nk, float[1,2,10,8] nv) "
            "{ y, nk, nv = Attention (q, k, v, , pk, pv) }"
        )
    )
    assert cost(model, {}).total.macs == 2 * 3 * 10 * (8 + 8)


@pytest.mark.parametrize(
    "node",
    [
        'y = Einsum <equation = "...d,dk->...k"> (x, w)',
        "y = own.Unknown (x, w)",
        "y = com.microsoft.MultiHeadAttention <num_heads = 1> (x, w)",
    ],
)
def test_what_cannot_be_counted_is_none(node: str) -> None:
    found = count(f"g (float[3,4] x) => (float[3,4] y) <{zeros(w=(4, 4))}> {{ {node} }}")
    assert found.total.macs is None
    assert found.operators[0].macs is None
    assert found.total.parameters == 16


def test_unknown_shapes_give_none() -> None:
    text = f"g (float[N,4] x) => (float y) <{zeros(w=(4, 4))}> {{ a = Relu (x)  y = MatMul (a, w) }}"
    assert [n.macs for n in count(text).nodes] == [0, None]
    assert count(text, {"x": f32(3, 4)}).total.macs == 48


def test_bodies_count_with_their_weights() -> None:
    text = f"""g (bool c, float[2,3] x) => (float[2,3] y) <{zeros(w=(3, 3))}> {{
      y = If (c) <then_branch = t () => (float[2,3] a) {{ a = MatMul (x, w) }},
                  else_branch = e () => (float[2,3] b) {{ b = Relu (x) }}> }}"""
    found = count(text, {"c": np.array(True), "x": f32(2, 3)})
    assert (found.total.parameters, found.total.macs) == (9, 18)
    assert {o.op for o in found.operators} == {"If", "MatMul", "Relu"}


def test_constants_that_are_outputs_count_in_the_total() -> None:
    found = count(f"g (float[2,3] x) => (float y, float[2,2] k) <{zeros(k=(2, 2))}> {{ y = Relu (x) }}")
    assert (found.total.parameters, found.total.weight_bytes, found.nodes[0].weight_bytes) == (4, 16, 0)


def test_weights_that_only_go_out_again_count_where_they_are_read() -> None:
    text = """g (float[2] x) => (float y, float[2] z) <int8[2] w = {1, 2}, float s = {1}>
      { y = DequantizeLinear (w, s)  z = Relu (x) }"""
    assert {n.op: n.parameters for n in count(text).nodes} == {"DequantizeLinear": 2, "Relu": 0}


@pytest.mark.skipif("ONNXOPT_ZOO" not in os.environ, reason="ONNXOPT_ZOO names no folder of models")
@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "macs", "parameters"),
    [("cifar10_resnet20", 40_551_040, 271_098), ("in1k_squeezenet1.1", 349_151_936, 1_235_496)],
)
def test_published_nets(name: str, macs: int, parameters: int) -> None:
    model = load(Path(os.environ["ONNXOPT_ZOO"]) / f"{name}.onnx")
    shapes = Context(model, open_dataset("synthetic", model.inputs, samples=1)).shapes(model)
    found = cost(model, shapes).total
    assert (found.macs, found.parameters) == (macs, parameters)
