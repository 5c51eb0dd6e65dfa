"""What ONNX Runtime makes of a model: every product found again, and the reason when it is not an integer kernel."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxopt.errors import ExecutionError
from onnxopt.graph.model import Model
from onnxopt.runtime.audit import audit

RNG = np.random.default_rng(0)


def model(nodes, x="float[1,4,8,8] x", y="float[] y", **constants):
    """A model from its nodes; q(...) and d(...) stand for QuantizeLinear and DequantizeLinear with scale s, zero z."""
    for short, op in (("q(", "QuantizeLinear("), ("d(", "DequantizeLinear(")):
        nodes = nodes.replace(f" {short}", f" {op}")
    constants = {"s": np.float32(0.02), "z": np.uint8(128), **constants}
    text = f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g ({x}) => ({y}) {{ {nodes} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    proto.graph.output[0].ClearField("type")
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return Model.from_proto(proto)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


READ = "xq = q(x, s, z) xd = d(xq, s, z) wd = d(w, ws, wz)"
WEIGHT = {
    "w": RNG.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8),
    "ws": np.float32(0.01),
    "wz": np.int8(0),
    "b": RNG.integers(-99, 99, 4).astype(np.int32),
    "bs": np.float32(0.02) * np.float32(0.01),
    "bz": np.int32(0),
}
WRITE = "hq = q(h, s, z) y = d(hq, s, z)"


def only(net):
    (node,) = audit(net).nodes
    return node


def test_an_integer_convolution_is_named_with_its_kernel():
    found = audit(model(f"{READ} bd = d(b, bs, bz) [here] h = Conv (xd, wd, bd) {WRITE}", **WEIGHT))
    (node,) = found.nodes
    assert (node.node, node.op, node.kernel, node.why, node.integer) == ("here", "Conv", "QLinearConv", "", True)
    assert found.integer == (node,)
    assert found.islands == ()
    assert found.conversions == 2
    assert found.operators["QLinearConv"] == 1


@pytest.mark.parametrize(
    ("nodes", "more", "why"),
    [
        ("y = Conv (x, f)", {"f": floats(4, 4, 3, 3)}, "its input 'x' is float"),
        (f"{READ} y = Conv (xd, f)", {"f": floats(4, 4, 3, 3)}, "its weight 'f' is float"),
        (f"{READ} y = Conv (xd, wd)", {}, "its output is read as float"),
        (
            f"{READ} f = ReduceMax <axes=[0,2,3],keepdims=0> (x) h = Conv (xd, wd, f) {WRITE}",
            {},
            "its bias 'f' is float",
        ),
        (f"{READ} bd = d(b, s, bz) h = Conv (xd, wd, bd) {WRITE}", {}, "the scale of its bias is not that of"),
        ("y = ConvTranspose (x, f)", {"f": floats(4, 4, 3, 3)}, "no integer kernel for ConvTranspose"),
        (f"{READ} f = MatMul (xd, m) y = Add (f, x)", {"m": floats(8, 8)}, "its weight 'm' is float"),
        (f"{READ} t = Exp (x) y = MatMul (xd, t)", {}, "its second input 't' is float"),
    ],
)
def test_why_a_product_stays_float(nodes, more, why):
    node = only(model(nodes, **WEIGHT, **more))
    assert why in node.why
    assert node.kernel in ("Conv", "ConvTranspose", "MatMul", "FusedConv")
    assert not node.integer


def test_a_product_that_is_fused_before_integer_kernels_are_looked_for():
    constants = {"m": RNG.integers(-127, 128, (8, 8)).astype(np.int8), "ms": np.float32(0.01), "mz": np.int8(0)}
    nodes = "xq = q(x, s, z) xd = d(xq, s, z) md = d(m, ms, mz) f = MatMul (xd, md) y = Add (f, v)"
    node = only(model(nodes, x="float[2,4,8] x", v=floats(8), **constants))
    assert node.kernel == "Gemm"
    assert node.why.startswith("the Add behind it is fused with it")


def test_fused_activations_do_not_hide_a_float_convolution():
    net = model("h = Conv (x, f) r = Relu (h) k = Conv (r, f) y = Sigmoid (k)", f=floats(4, 4, 3, 3))
    assert [n.kernel for n in audit(net).nodes] == ["Conv", "Conv"]


def test_bodies_are_looked_at():
    branch = "() => (float[N,4,8,8] {0}) {{ {0} = Conv <pads=[1,1,1,1]> (x, f) }}"
    nodes = f"y = If (go) <then_branch = yes {branch.format('t')}, else_branch = no {branch.format('e')}>"
    found = audit(model(nodes, x="float[N,4,8,8] x, bool go", f=floats(4, 4, 3, 3)))
    assert Counter(n.kernel for n in found.nodes) == {"Conv": 2}


def test_integer_operators_of_the_model_itself():
    nodes = "xq, xs, xz = DynamicQuantizeLinear (x) h = MatMulInteger (xq, w, xz) y = Cast <to=1> (h)"
    node = only(model(nodes, x="float[4,8] x", w=RNG.integers(-9, 9, (8, 5)).astype(np.int8)))
    assert (node.kernel, node.integer) == ("MatMulInteger", True)


def test_products_of_constants_are_folded_away():
    found = audit(model("c = MatMul (f, f) y = Add (x, c)", x="float[4,4] x", f=floats(4, 4)))
    assert [n.kernel for n in found.nodes] == [""]
    assert found.integer == found.islands == ()


def test_unnamed_nodes_are_called_after_their_output():
    assert only(model("y = Conv (x, f)", f=floats(4, 4, 3, 3))).node == "y"


def test_the_model_is_left_as_it_was():
    net = model("[a] h = Conv (x, f) y = Relu (h)", f=floats(4, 4, 3, 3))
    before = net.to_proto().SerializeToString(deterministic=True)
    audit(net)
    assert net.to_proto().SerializeToString(deterministic=True) == before


def test_a_model_that_cannot_be_loaded():
    net = model("y = Nonsense (x)")
    with pytest.raises(ExecutionError, match="cannot load the model"):
        audit(net)


def test_a_tensor_that_a_body_captures_is_not_fused_into_it():
    """A DequantizeLinear outside of the body is not looked at; inside, it is."""
    write = "{0}q = QuantizeLinear ({0}h, s, z) {0} = DequantizeLinear ({0}q, s, z)"
    outside = "{0} () => (float[N,4,6,6] {0}) {{ [{0}] {0}h = Conv (xd, wd) " + write + " }}"
    inside = outside.replace("{{ ", "{{ {0}x = DequantizeLinear (xq, s, z) {0}w = DequantizeLinear (w, ws, wz) ")
    inside = inside.replace("(xd, wd)", "({0}x, {0}w)")
    for body, kernel in ((outside, "Conv"), (inside, "QLinearConv")):
        bodies = f"then_branch = {body.format('t')}, else_branch = {body.format('e')}"
        net = model(f"{READ} y = If (go) <{bodies}>", x="float[N,4,8,8] x, bool go", **WEIGHT)
        found = [n for n in audit(net).nodes if n.op == "Conv"]
        assert [n.kernel for n in found] == [kernel, kernel]
        for node in found:
            assert kernel == "QLinearConv" or node.why == "its input 'xd' is dequantized outside of the body"


def test_steps_say_whether_they_are_left():
    found = audit(model(f"{READ} bd = d(b, bs, bz) h = Conv (xd, wd, bd) {WRITE}", **WEIGHT))
    assert {n.node: n.kernel for n in found.steps} == {
        "xq": "QuantizeLinear", "xd": "", "wd": "", "bd": "", "hq": "", "y": "DequantizeLinear",
    }  # fmt: skip
    assert (found.quantizations, found.dequantizations, found.conversions) == (1, 1, 2)
    assert [n.op for n in found.every] == [
        *["QuantizeLinear"],
        *["DequantizeLinear"] * 3,
        "Conv",
        *("QuantizeLinear",),
        "DequantizeLinear",
    ]


def test_dynamic_quantization_within_a_kernel_is_not_left():
    constants = {"w": RNG.integers(-9, 9, (8, 5)).astype(np.int8), "ws": np.float32(0.1)}
    nodes = "xq, xs, xz = DynamicQuantizeLinear (x) h = MatMulInteger (xq, w, xz) c = Cast <to=1> (h)"
    found = audit(model(f"{nodes} k = Mul (xs, ws) y = Mul (c, k)", x="float[4,8] x", **constants))
    (node,) = found.nodes
    assert (node.kernel, node.integer, found.conversions) == ("DynamicQuantizeMatMul", True, 0)


def test_shares_of_the_work():
    constants = {"f": floats(4, 4, 3, 3), **WEIGHT}
    nodes = f"{READ} h = Conv (xd, wd) hq = q(h, s, z) hd = d(hq, s, z) y = Conv (hd, f)"
    net = model(nodes, **constants)
    assert audit(net).integer_share is None
    sizes = {"h": (1, 4, 6, 6), "y": (1, 4, 4, 4), "xd": (1, 4, 8, 8), "wd": (4, 4, 3, 3), "f": (4, 4, 3, 3)}
    found = audit(net, shapes_of=sizes)
    assert [n.macs for n in found.nodes] == [144 * 36, 64 * 36]
    assert found.integer_share == 144 / 208
