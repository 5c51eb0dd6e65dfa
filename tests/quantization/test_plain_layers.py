"""Layers in the form that integer kernels take: the same numbers, and which form."""

import numpy as np
import pytest

from onnxopt.graph import shapes
from onnxopt.numerics.tolerance import deviation
from onnxopt.quantization.plain_layers import make_plain
from onnxopt.runtime.session import Session

DENSE = "float[8,5] w, float[5] b"


@pytest.fixture
def plain(build):
    """The nodes of a model after ``make_plain``, which must not have changed its numbers."""

    def run(nodes, weights=DENSE, x="float[4,8] x", left_out=()):
        net = build(nodes, weights, x)
        feed = {"x": np.random.default_rng(1).standard_normal(net.inputs[0].shape).astype(np.float32)}
        before = Session(net, optimize=False).run(feed)["y"]
        specs = shapes.specs(net)
        sizes = {name: s.shape for name, s in specs.items() if s.shape is not None}
        make_plain(net, sizes, specs, dict.fromkeys(left_out, "excluded"))
        assert deviation(before, Session(net, optimize=False).run(feed)["y"]) < 1e-6
        return net.graph.nodes

    return run


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ("y = Gemm <alpha=0.5, beta=-2.0> (x, w, b)", DENSE),
        ("y = Gemm <beta=3.0> (x, w, b)", "float[8,5] w, float[1,5] b"),
        ("y = Gemm <transB=1, alpha=2.0> (x, w)", "float[5,8] w"),
        ("y = MatMul (x, w)", DENSE),
        ("h = MatMul (x, w) y = Add (h, b)", DENSE),
        ("h = MatMul (x, w) y = Add (b, h)", "float[8,5] w, float[1] b"),
    ],
)
def test_products_of_matrices_become_a_plain_gemm(plain, nodes, weights):
    (node,) = plain(nodes, weights)
    assert node.op == "Gemm"
    assert not node.attrs.keys() & {"alpha", "beta"}
    assert all(tuple(bias.shape) == (5,) for bias in node.inputs[2:])
    assert node.name


def test_a_vector_added_to_a_product_gets_as_many_axes(plain):
    product, add = plain("h = MatMul (x, w) y = Add (b, h)", x="float[2,4,8] x")
    assert product.op == "MatMul"
    assert tuple(add.inputs[0].shape) == (1, 1, 5)


@pytest.mark.parametrize(
    ("nodes", "ops"),
    [
        ("h = MatMul (x, w) y = Add (h, k)", ["Gemm", "Add"]),
        ("h = MatMul (x, w) r = Relu (h) y = Add (h, r)", ["Gemm", "Relu", "Add"]),
    ],
)
def test_what_is_no_bias_stays(plain, nodes, ops):
    assert [n.op for n in plain(nodes, DENSE + ", float[4,5] k")] == ops


def test_nodes_that_are_left_out_stay(plain):
    (node,) = plain("y = Gemm <alpha=0.5> (x, w, b)", left_out=["y"])
    assert node.attrs["alpha"] == 0.5


def test_a_constant_of_more_axes_than_the_product_stays_an_addition(plain):
    ops = [node.op for node in plain("h = MatMul (x, w) y = Add (h, k)", weights="float[8,5] w, float[1,1,5] k")]
    assert ops == ["Gemm", "Add"]


def test_a_convolution_of_one_pixel_becomes_gemm(plain):
    nodes = plain(
        "p = GlobalAveragePool (x) [one] c = Conv (p, w, b) y = Relu (c)",
        "float[6,8,1,1] w, float[6] b",
        "float[3,8,5,7] x",
    )
    assert [n.op for n in nodes] == ["GlobalAveragePool", "Flatten", "Gemm", "Reshape", "Relu"]
    assert nodes[2].name == "one"


@pytest.mark.parametrize("attributes", ["pads=[1,1,1,1]", "group=2"])
def test_other_convolutions_stay(plain, attributes):
    inputs = 4 if "group" in attributes else 8
    nodes = plain(
        f"p = GlobalAveragePool (x) y = Conv <{attributes}> (p, w)", f"float[6,{inputs},1,1] w", "float[1,8,5,7] x"
    )
    assert nodes[-1].op == "Conv"
