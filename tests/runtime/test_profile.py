"""Times by node: all of a run, at the nodes that do the work."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxopt.graph.model import Model
from onnxopt.runtime.profile import profile

HEADER = '<ir_version: 8, opset_import: ["" : 13]>'


@pytest.fixture(scope="module")
def net() -> Model:
    text = f"""{HEADER} g (float[1,16,32,32] x) => (float[1,16,32,32] y, float[1,4] z)
        <float[16,16,3,3] w, float[16,4] v, int64[2] flat>
        {{
            [first] a = Conv <pads = [1,1,1,1]> (x, w)
            [relu] b = Relu (a)
            [second] c = Conv <pads = [1,1,1,1]> (b, w)
            [add] d = Add (c, x)
            [last] y = Relu (d)
            [mean] p = GlobalAveragePool (y)
            [shape] q = Reshape (p, flat)
            [dense] z = MatMul (q, v)
        }}"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    values = {
        "w": rng.normal(size=(16, 16, 3, 3)).astype(np.float32),
        "v": rng.normal(size=(16, 4)).astype(np.float32),
        "flat": np.array([1, 16]),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in values.items())
    return Model.from_proto(proto)


@pytest.fixture(scope="module")
def feed() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(1, 16, 32, 32)).astype(np.float32)}


def test_times_belong_to_the_nodes_that_do_the_work(net, feed):
    found = profile(net, feed, budget_s=0.1)
    assert {"first", "second", "dense"} <= set(found.nodes)
    assert "relu" not in found.nodes  # merged into the convolution
    assert found.nodes["first"] > 10 * found.nodes["dense"]
    assert 0.3 < found.nodes["first"] / found.nodes["second"] < 3


def test_the_parts_sum_up_to_the_whole(net, feed):
    found = profile(net, feed, budget_s=0.1)
    assert sum(found.nodes.values()) + found.overhead == pytest.approx(found.total, rel=0.3)


def test_the_model_is_left_as_it_was(net, feed):
    before = [(n.name, [t.name for t in n.outputs]) for n in net.nodes()]
    profile(net, feed, budget_s=0.01)
    assert [(n.name, [t.name for t in n.outputs]) for n in net.nodes()] == before


def test_a_body_counts_as_often_as_it_runs():
    proto = onnx.parser.parse_model(
        f"""{HEADER} g (float[64,64] x) => (float[64,64] y)
        <int64 count = {{8}}, bool go = {{1}}>
        {{
            [loop] y = Loop <body = body (int64 i, bool c, float[64,64] s) => (bool d, float[64,64] t) {{
                d = Identity (c)
                [inner] t = MatMul (s, s)
            }}> (count, go, x)
        }}"""
    )
    found = profile(Model.from_proto(proto), {"x": np.eye(64, dtype=np.float32)}, budget_s=0.05)
    assert found.nodes["loop"] > 0.5 * found.total
