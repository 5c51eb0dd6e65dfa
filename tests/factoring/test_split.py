"""A chain computes what one layer with the composed weight does, in ONNX Runtime."""

import numpy as np
import onnx
import pytest

from onnxopt.factoring.forms import Form, form
from onnxopt.factoring.site import find
from onnxopt.factoring.split import split
from onnxopt.graph.model import Model
from onnxopt.runtime.session import Session


def layer(op, x, weight, *, bias=False, dtype=np.float32, **attributes):
    """A model of one layer, its weights drawn from a normal distribution; a table's before its indices."""
    rng = np.random.default_rng(0)
    outputs = weight[0] if op == "Conv" or attributes.get("transB") else weight[1]
    shapes = {"w": weight} | ({"b": (outputs,)} if bias else {})
    constants = [onnx.numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), k) for k, s in shapes.items()]
    inputs = ["w", "x"] if op == "Gather" else ["x", *shapes]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, inputs, ["y"], "layer", **attributes)],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), x)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        constants,
    )
    opset = onnx.helper.make_opsetid("", 17)
    return onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8))


def chained(proto: onnx.ModelProto, conv: str, ranks: tuple[int, ...], bias: np.ndarray | None = None):
    """A model of one layer with composed weights, and the same as a chain."""
    whole = Model.from_proto(proto)
    (site,) = find(whole, [], tables=True)
    made = form(site, conv)
    assert isinstance(made, Form)
    factors = made.any_factors(ranks)
    weight = made.compose(factors).reshape((site.sizes[0], site.sizes[1], *site.kernel))
    stored = weight if site.by_output else weight.T
    site.node.inputs[site.at] = whole.constant("v", stored.astype(site.weight.dtype))
    chain = whole.clone()
    (site,) = find(chain, [], tables=True)
    split(chain, site, made, factors, bias)
    chain.tidy()
    onnx.checker.check_model(chain.to_proto(), full_check=True)
    return whole, chain


def same(whole: Model, chain: Model, x: np.ndarray, more: float | np.ndarray = 0.0) -> None:
    (y,), (z,) = (Session(m, optimize=False).run({"x": x}).values() for m in (whole, chain))
    assert y.shape == z.shape
    np.testing.assert_allclose(z, y + more, atol=3e-5 * np.abs(y).max())


GEOMETRY = [
    {},
    {"strides": [2, 3], "pads": [1, 2, 0, 1]},
    {"dilations": [2, 1], "pads": [2, 0, 2, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID", "strides": [1, 2]},
]


@pytest.mark.parametrize("geometry", GEOMETRY, ids=str)
@pytest.mark.parametrize(("conv", "ranks"), [("tucker", (8, 4)), ("spatial", (8,)), ("cp", (40,))])
def test_convolutions(geometry, conv, ranks):
    whole, chain = chained(layer("Conv", ("N", 24, 11, 13), (20, 24, 3, 4), bias=True, **geometry), conv, ranks)
    assert [n.op for n in chain.graph.nodes] == ["Conv"] * (2 if conv == "spatial" else 3)
    same(whole, chain, np.random.default_rng(0).standard_normal((2, 24, 11, 13)).astype(np.float32))


@pytest.mark.parametrize("conv", ["tucker", "cp"])
@pytest.mark.parametrize(("shape", "kernel"), [((2, 32, 30), (5,)), ((1, 32, 5, 6, 7), (3, 2, 3))])
def test_convolutions_of_other_dimensions(shape, kernel, conv):
    whole, chain = chained(layer("Conv", shape, (40, 32, *kernel)), conv, (8, 4) if conv == "tucker" else (24,))
    same(whole, chain, np.random.default_rng(0).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("geometry", [{}, {"strides": [2, 2], "pads": [1, 0, 1, 0]}], ids=str)
def test_convolutions_of_one_position(geometry):
    whole, chain = chained(layer("Conv", ("N", 64, 6, 5), (80, 64, 1, 1), **geometry), "none", (16,))
    assert len(chain.graph.nodes) == 2
    same(whole, chain, np.random.default_rng(0).standard_normal((2, 64, 6, 5)).astype(np.float32))


def test_tables():
    whole, chain = chained(layer("Gather", ("N", 5), (90, 64), dtype=np.int64), "none", (8,))
    assert [n.op for n in chain.graph.nodes] == ["Gather", "MatMul"]
    same(whole, chain, np.random.default_rng(0).integers(-90, 90, (3, 5)))


@pytest.mark.parametrize("bias", [False, True])
def test_a_bias_replaces_what_was_added_and_alpha_with_it(bias):
    proto = layer("Gemm", ("N", 80), (64, 80), bias=bias, transB=1, alpha=0.5, beta=2.0)
    new = np.random.default_rng(1).standard_normal(64)
    whole, chain = chained(proto, "none", (16,), new)
    (gemm,) = whole.graph.nodes
    gemm.attrs["alpha"] = 1.0
    old = 2 * gemm.inputs[2].values if bias else 0.0
    same(whole, chain, np.random.default_rng(0).standard_normal((3, 80)).astype(np.float32), new - old)


def test_a_bias_of_a_product_is_added_behind_it():
    new = np.random.default_rng(1).standard_normal(64)
    whole, chain = chained(layer("MatMul", ("N", 80), (80, 64)), "none", (16,), new)
    assert [n.op for n in chain.graph.nodes] == ["MatMul", "MatMul", "Add"]
    same(whole, chain, np.random.default_rng(0).standard_normal((3, 80)).astype(np.float32), new)


def test_kernels_of_one_row_have_no_two_sides():
    proto = layer("Conv", ("N", 64, 6, 5), (80, 64, 1, 3))
    (site,) = find(Model.from_proto(proto), [], tables=False)
    assert form(site, "spatial") == "its kernel has no two sides to part"
    assert form(site, "none") == "it is a convolution of more than one position, and conv=none"
