"""Which nodes are placed in integers: each condition of a kernel, and the cut where cost decides."""

from __future__ import annotations

from math import inf

import numpy as np
import onnx
import pytest

from onnxopt.core.eligible import clamp_limits, fault
from onnxopt.core.kernels import KERNELS, Kind
from onnxopt.core.placement import place
from onnxopt.graph import shapes
from onnxopt.graph.model import Model


def model(nodes, weights="", x="float[1,8,16,16] x", y="float[] y", opset=17):
    """A model from its nodes; undeclared sizes are inferred, weights are drawn."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x}) => ({y}) <{weights}> {{ {nodes} }}'
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for value in list(proto.graph.value_info):
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        array = rng.standard_normal([d.dim_value for d in tensor.shape.dim]).astype(dtype)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        proto.graph.value_info.remove(value)
    for value in proto.graph.output:
        value.ClearField("type")
    inferred = onnx.shape_inference.infer_shapes(proto)
    return Model.from_proto(inferred)


def placed(net, **kwargs):
    specs = shapes.specs(net)
    sizes = {name: s.shape for name, s in specs.items() if s.shape is not None}
    return place(net, sizes, specs, **kwargs)


def ops(placement):
    return [u.node.op for u in placement.units]


CONVS = "float[8,8,3,3] w, float[8,8,3,3] v"
FIRST, LAST = "h = Conv <pads=[1,1,1,1]> (x, w)", "y = Conv <pads=[1,1,1,1]> (z, v)"


def between(nodes, weights="", **kwargs):
    return model(f"{FIRST} {nodes} {LAST}", f"{CONVS}, {weights}".rstrip(", "), **kwargs)


@pytest.mark.parametrize(
    "nodes",
    [
        "z = Add (h, x)",
        "z = Mul (h, h)",
        "t = Sigmoid (h) z = Mul (h, t)",
        "z = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (h)",
        "z = Transpose <perm=[0,1,3,2]> (h)",
        "z = Identity (h)",
        "a, b = Split <axis=1> (h) z = Concat <axis=1> (b, a)",
    ],
)
def test_light_operators_between_layers_run_in_integers(nodes):
    placement = placed(between(nodes))
    assert len(placement.units) == 2 + nodes.count(" = ")
    assert set(placement.roots) == set(placement.read) | set(placement.made)


@pytest.mark.parametrize("nodes", ["z = Add (x, x) y = Exp (z)", "z = Sigmoid (x) y = Mul (z, x)", "y = Transpose (x)"])
def test_light_operators_alone_stay_float(nodes):
    assert ops(placed(model(nodes))) == []


def test_a_light_operator_between_a_layer_and_float_readers_stays_float():
    nodes = "h = Gemm (x, w) a = Add (h, x) y = Exp (a)"
    assert ops(placed(model(nodes, "float[16,16] w", "float[64,16] x"))) == ["Gemm"]


def test_an_expensive_float_operator_is_surrounded():
    placement = placed(between("t = Tanh (h) z = Add (t, h)"))
    assert "Tanh" not in ops(placement)
    assert {"h", "x", "y"} <= set(placement.roots)


def test_what_moves_numbers_shares_a_scale():
    pool, turn = "MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]>", "Transpose <perm=[0,1,3,2]>"
    placement = placed(between(f"a = Relu (h) p = {pool} (a) z = {turn} (p)"))
    assert placement.roots["z"] == placement.roots["p"] == placement.roots["a"] == "a"
    assert "h" not in placement.roots  # the quantizer stands behind the Relu
    assert placement.units[0].clamp.op == "Relu"


@pytest.mark.parametrize(
    ("clamp", "taken"),
    [
        ("Relu (h)", True),
        ("Clip (h, lo, hi)", True),
        ("Clip (h, , hi)", True),
        ("Clip (h)", True),
        ("Clip (h, hi)", False),
        ("Clip (h, m)", False),
        ("LeakyRelu (h)", False),
    ],
)
def test_clamps(clamp, taken):
    net = between(f"m = ReduceMax <keepdims=0> (x) z = {clamp}", "float lo = {-1.0}, float hi = {6.0}")
    unit = placed(net).units[0]
    assert (unit.clamp is not None) == taken
    assert unit.writes[0].name == ("z" if taken else "h")


def test_a_clamp_that_others_read_around_is_not_taken():
    assert placed(between("a = Relu (h) z = Add (a, h)")).units[0].clamp is None


def test_limits_of_clamps_of_old_opsets():
    net = between("z = Clip <min=-2.0> (h)", opset=10)
    assert clamp_limits(next(n for n in net.graph.nodes if n.op == "Clip")) == (-2.0, inf)


PADS = "int64[8] p = {0,0,1,1,0,0,1,1}"


@pytest.mark.parametrize(
    ("node", "weights", "why"),
    [
        ("z = Exp (h)", "", "Exp has no integer kernel"),
        ('z = Resize <mode="linear"> (h, , s)', "float[4] s = {1.0,1.0,2.0,2.0}", "no integer kernel for mode=linear"),
        ('z = Pad <mode="reflect"> (h, p)', PADS, "no integer kernel for mode=reflect"),
        ("z = Pad (h, p, c)", PADS + ", float c = {2.0}", "it pads with something else than zero"),
        ("z = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (h)", "", "it does not count what it pads"),
        ("z = AveragePool <kernel_shape=[3,3], ceil_mode=1> (h)", "", "no integer kernel for ceil_mode=1"),
        ("i = Shape (h) z = Add (i, i)", "", "'i' is int64, not float32"),
        ("z = Add (h, k)", "float[0] k", "'k' is empty or not finite"),
        ("z = Custom (h)", "", "Custom has no integer kernel"),
    ],
)
def test_why_operators_stay_float(node, weights, why):
    net = model(f"{FIRST} {node}", f"float[8,8,3,3] w, {weights}".rstrip(", "), y="float[] z")
    specs = shapes.specs(net)
    sizes = {name: s.shape for name, s in specs.items() if s.shape is not None}
    assert why in fault(net.graph.nodes[-1], sizes, specs, net.opset)


def test_old_opsets_lack_the_integer_form():
    net = between("z = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (h)", opset=11)
    placement = placed(net)
    assert ops(placement) == ["Conv", "Conv"]
    specs = shapes.specs(net)
    assert fault(net.graph.nodes[1], {}, specs, 11) == "MaxPool takes integers from opset 12 on"


def test_tensors_of_unknown_type_or_size():
    net = model("y = Conv (x, w)", "float[8,8,3,3] w")
    specs = shapes.specs(net)
    assert fault(net.graph.nodes[0], {}, specs, 17) == "'x' is empty or of unknown size"
    assert fault(net.graph.nodes[0], {}, {}, 17) == "'x' is of unknown type"


def test_left_out_and_unfit():
    net = between("z = Relu (h)")
    label = next(n for n in net.graph.nodes if n.outputs[0].name == "y").outputs[0].name
    assert [s.why for s in placed(net, left_out={label: "excluded"}).skips] == ["excluded"]
    unfit = placed(net, unfit={"z": "is zero"})
    assert [s.why for s in unfit.skips] == ["'z' is zero", "'z' is zero"]
    assert not unfit.units


def test_placing_twice_gives_the_same():
    net = between("a = Relu (h) t = Tanh (a) b = Add (t, a) z = Concat <axis=1> (b, x)", "float[8,16,3,3] u")
    net.graph.nodes[-1].inputs[1] = next(c for c in net.constants() if c.name == "v")
    first, second = placed(net), placed(net)
    assert [u.node for u in first.units] == [u.node for u in second.units]
    assert first.roots == second.roots


def test_every_mover_reads_its_numbers_from_the_first_input():
    assert all(k.activations == (0,) for k in KERNELS.values() if k.kind is Kind.MOVE)
