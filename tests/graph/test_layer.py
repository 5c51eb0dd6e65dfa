"""One view of the weights of four operators: scaling channels and answering constants, against ONNX Runtime."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.graph.layer import bias, fault, layout
from onnxopt.graph.model import Model
from onnxopt.runtime.session import Session


def model(op, x, w, y, **attrs):
    node = onnx.helper.make_node(op, ["x", "w"], ["y"], **attrs)
    values = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("x", x), ("y", y))]
    weight = onnx.numpy_helper.from_array(np.random.default_rng(0).standard_normal(w).astype(np.float32), "w")
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight])
    return Model.from_proto(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    )


layers = st.one_of(
    st.builds(
        lambda g, m, c: ("Conv", (1, g * c, 3, 3), (g * m, c, 3, 3), (1, g * m, 1, 1), {"group": g}),
        *[st.integers(1, 3)] * 3,
    ),
    st.builds(
        lambda g, m, c: ("ConvTranspose", (1, g * c, 1, 1), (g * c, m, 2, 2), (1, g * m, 2, 2), {"group": g}),
        *[st.integers(1, 3)] * 3,
    ),
    st.builds(lambda k, n: ("MatMul", (1, k), (k, n), (1, n), {}), *[st.integers(1, 5)] * 2),
    st.builds(lambda k, n: ("Gemm", (1, k), (k, n), (1, n), {}), *[st.integers(1, 5)] * 2),
    st.builds(lambda k, n: ("Gemm", (1, k), (n, k), (1, n), {"transB": 1}), *[st.integers(1, 5)] * 2),
)


@settings(deadline=None, max_examples=40)
@given(layers, st.integers(0, 99))
def test_scaled_channels_and_constant_inputs(drawn, seed):
    op, x, w, y, attrs = drawn
    subject = model(op, x, w, y, **attrs)
    node, rng = subject.graph.nodes[0], np.random.default_rng(seed)
    view, weight = layout(node), node.inputs[1].values
    assert (view.outputs, view.inputs) == (y[1], x[1])
    spread = (1, -1, *[1] * (len(x) - 2))
    into, out = rng.standard_normal(x[1]), rng.standard_normal(y[1])
    feed = np.broadcast_to(into.reshape(spread), x).astype(np.float32)

    before = Session(subject).run({"x": feed})["y"]
    if op != "ConvTranspose":  # whose outputs each see only some of the kernel
        np.testing.assert_allclose(before.reshape(-1), view.respond(weight, into), rtol=1e-4, atol=1e-5)

    node.inputs[1] = subject.constant("v", view.scale(weight, out, view.out))
    scaled = Session(subject).run({"x": feed})["y"]
    np.testing.assert_allclose(scaled, before * out.reshape(spread), rtol=1e-4, atol=1e-5)

    node.inputs[1] = subject.constant("u", view.scale(weight, into, view.into))
    ones = Session(subject).run({"x": np.ones(x, np.float32)})["y"]
    np.testing.assert_allclose(ones, before, rtol=1e-4, atol=1e-5)


def test_a_scaled_weight_keeps_its_type_and_is_rounded_once():
    node = model("MatMul", (1, 3), (3, 4), (1, 4)).graph.nodes[0]
    weight = np.full((3, 4), 1.0, np.float16)
    scaled = layout(node).scale(weight, np.array([1 / 3, 1, 2, 1e-4]), 2)
    np.testing.assert_array_equal(scaled, np.array([[1 / 3, 1, 2, 1e-4]] * 3).astype(np.float16))
    assert (weight == 1).all()


def test_a_layer_without_bias_adds_zeros():
    node = model("Conv", (1, 2, 3, 3), (5, 2, 3, 3), (1, 5, 1, 1)).graph.nodes[0]
    np.testing.assert_array_equal(bias(node), np.zeros(5))
    assert fault(node) == ""


@pytest.mark.parametrize(
    ("values", "reason"), [(np.ones((3, 4), np.int32), "of type int32"), (np.ones((2, 3, 4), "f"), "not a matrix")]
)
def test_faults(values, reason):
    subject = model("MatMul", (1, 3), (3, 4), (1, 4))
    node = subject.graph.nodes[0]
    node.inputs[1] = subject.constant("v", values)
    assert reason in fault(node)
