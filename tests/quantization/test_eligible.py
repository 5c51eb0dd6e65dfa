"""What a node must be like to run in integers: each condition, with the reason that a person reads."""

from math import inf, isnan

import numpy as np
import pytest

from onnxopt.graph import shapes
from onnxopt.quantization.eligible import clamp_limits, column_bias, fault, is_layer
from onnxopt.quantization.kernels import KERNELS, Kind

FIRST = "h = Conv <pads=[1,1,1,1]> (x, w)"
PADS = "int64[8] p = {0,0,1,1,0,0,1,1}"
POOL = "z = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (h)"


@pytest.fixture
def why(build):
    """Why the last node of a model behind a convolution cannot run in integers."""

    def explain(node, weights="", opset=17):
        net = build(f"{FIRST} {node}", f"float[8,8,3,3] w, {weights}".rstrip(", "), y="float[] z", opset=opset)
        specs = shapes.specs(net)
        sizes = {name: s.shape for name, s in specs.items() if s.shape is not None}
        return fault(net.graph.nodes[-1], sizes, specs, net.opset)

    return explain


@pytest.mark.parametrize(
    ("node", "weights", "reason"),
    [
        ("z = Exp (h)", "", "Exp has no integer kernel"),
        ("z = ConvTranspose (h, w)", "", "ConvTranspose has no integer kernel"),
        ("z = Custom (h)", "", "Custom has no integer kernel"),
        ('z = Resize <mode="linear"> (h, , s)', "float[4] s = {1.0,1.0,2.0,2.0}", "no integer kernel for mode=linear"),
        ('z = Pad <mode="reflect"> (h, p)', PADS, "no integer kernel for mode=reflect"),
        ("z = Pad (h, p, c)", PADS + ", float c = {2.0}", "it pads with something else than zero"),
        ("z = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (h)", "", "it does not count what it pads"),
        ('z = AveragePool <kernel_shape=[3,3], auto_pad="SAME_UPPER"> (h)', "", "it does not count what it pads"),
        ("z = AveragePool <kernel_shape=[3,3], ceil_mode=1> (h)", "", "no integer kernel for ceil_mode=1"),
        ("i = Shape (h) z = Add (i, i)", "", "'i' is int64, not float32"),
        ("z = Add (h, k)", "float[0] k", "'k' is empty or not finite"),
        ("z = Add (w, w)", "", "its inputs are constant"),
        ("z = Conv (h, w, h)", "", "its bias is computed at run time"),
    ],
)
def test_reasons(why, node, weights, reason):
    assert reason in why(node, weights)


@pytest.mark.parametrize(
    "node",
    [
        "z = Add (h, h)",
        "z = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1> (h)",
        "z = Pad (h, p, c)",
        "z = Pad (h, p)",
        POOL,
    ],
)
def test_no_reason(why, node):
    assert why(node, PADS + ", float c = {0.0}") == ""


def test_old_opsets_lack_the_integer_form(why):
    assert why(POOL, opset=11) == "MaxPool takes integers from opset 12 on"
    assert why(POOL, opset=12) == ""


def test_tensors_of_unknown_type_or_size(build):
    net = build("y = Conv (x, w)", "float[8,8,3,3] w")
    (node,) = net.graph.nodes
    assert fault(node, {}, shapes.specs(net), 17) == "'x' is empty or of unknown size"
    assert fault(node, {}, {}, 17) == "'x' is of unknown type"


@pytest.mark.parametrize(
    ("clamp", "opset", "limits"),
    [
        ("z = Relu (h)", 17, (0.0, inf)),
        ("z = Clip (h, lo, hi)", 17, (-1.0, 6.0)),
        ("z = Clip (h, , hi)", 17, (-inf, 6.0)),
        ("z = Clip (h)", 17, (-inf, inf)),
        ("z = Clip <min=-2.0> (h)", 10, (-2.0, inf)),
    ],
)
def test_limits_of_clamps(build, clamp, opset, limits):
    net = build(f"{FIRST} {clamp}", "float[8,8,3,3] w, float lo = {-1.0}, float hi = {6.0}", y="float[] z", opset=opset)
    assert clamp_limits(net.graph.nodes[-1]) == limits


def test_limits_that_are_computed(build):
    net = build("m = ReduceMax <keepdims=0> (x) z = Clip (x, m)", y="float[] z")
    assert isnan(clamp_limits(net.graph.nodes[-1])[0])


@pytest.mark.parametrize(
    ("shape", "fits"), [("[5]", True), ("[1,5]", True), ("", True), ("[1,1]", True), ("[4,1]", False)]
)
def test_biases_along_the_columns(build, shape, fits):
    net = build("y = Gemm <beta=2.0> (x, w, b)", f"float[8,5] w, float{shape} b", "float[4,8] x")
    (node,) = net.graph.nodes
    bias = column_bias(node)
    assert (bias is not None) == fits
    if bias is not None:
        assert bias.shape == (5,)
        assert np.array_equal(bias, np.broadcast_to(2.0 * node.inputs[2].values.astype(np.float64), (1, 5))[0])


def test_layers(build):
    net = build("h = Conv (x, w) i = ConvTranspose (h, w) y = Relu (i)", "float[8,8,3,3] w")
    assert [is_layer(n) for n in net.graph.nodes] == [True, True, False]


def test_every_mover_reads_its_numbers_from_the_first_input():
    assert all(k.activations == (0,) for k in KERNELS.values() if k.kind is Kind.MOVE)
