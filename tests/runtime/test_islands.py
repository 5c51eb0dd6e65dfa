"""The rules by which ONNX Runtime makes integer kernels, each against what it does; and that what mends, mends."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.graph.ir import Scope
from onnxopt.graph.model import Model
from onnxopt.runtime.audit import audit
from onnxopt.runtime.islands import obstacle
from onnxopt.runtime.session import Session

SCALE, WEIGHT_SCALE = np.float32(0.02), np.float32(0.01)
TYPES = {"u8": np.uint8, "s8": np.int8, "u16": np.uint16, "s16": np.int16}
ZERO = {"u8": 128, "s8": 0, "u16": 2**15, "s16": 0}
INPUT = {"Conv": [1, 4, 8, 8], "Gemm": [4, 8], "MatMul": [2, 4, 8]}
WEIGHT = {"Conv": (4, 4, 3, 3), "Gemm": (8, 8), "MatMul": (8, 8)}


class Written:
    """A graph being written down."""

    def __init__(self) -> None:
        self.nodes, self.constants, self.outputs = [], {}, []

    def constant(self, name, value):
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def op(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def quantize(self, x, output, kind, zero=None):
        zero = self.constant(f"z_{output}", TYPES[kind](ZERO[kind] if zero is None else zero))
        return self.op("QuantizeLinear", [x, self.constant("s", SCALE), zero], output)

    def dequantize(self, x, output, kind, zero=None):
        zero = self.constant(f"z_{output}", TYPES[kind](ZERO[kind] if zero is None else zero))
        return self.op("DequantizeLinear", [x, self.constant("s", SCALE), zero], output)

    def read(self, tensor):
        """One more reader, of floats."""
        self.outputs.append(self.op("Exp", [tensor], f"read{len(self.nodes)}"))

    def model(self, shape):
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
        outputs = [helper.make_tensor_value_info(y, TensorProto.FLOAT, None) for y in dict.fromkeys(self.outputs)]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, list(self.constants.values()))
        return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def net(
    op="Conv", act="u8", weight="s8", out="u8", *, axis=None, bias="", behind="", end=None, twice=(), give=(), **attrs
):
    """One product named ``product`` between quantizers. ``bias``: int32, odd (another scale) or float; ``behind``: what
    stands between it and its quantizer, whose zero point is ``end``. ``twice``: tensors that have a second reader (of
    "q" and "d" those that the input's quantizer and dequantizer make, "h" the product's); ``give``: outputs as well."""
    g = Written()
    g.quantize("x", "q", act)
    g.dequantize("q", "d", act)
    if "q" in twice:
        g.read(g.dequantize("q", "d2", act))
    if "d" in twice:
        g.read("d")
    size = () if axis is None else WEIGHT[op][axis]
    g.constant("w", np.random.default_rng(0).integers(0, 100, WEIGHT[op]).astype(TYPES[weight]))
    g.constant("ws", np.full(size, WEIGHT_SCALE))
    g.constant("wz", np.zeros(size, TYPES[weight]))
    g.op("DequantizeLinear", ["w", "ws", "wz"], "wd", **({} if axis is None else {"axis": axis}))
    channels = WEIGHT[op][0]
    if bias == "float":
        g.constant("b", np.ones(channels, np.float32))
    elif bias:
        g.constant("bi", np.ones(channels, np.int32))
        g.constant("bs", np.full(size, SCALE * WEIGHT_SCALE * (3 if bias == "odd" else 1)))
        g.op("DequantizeLinear", ["bi", "bs"], "b", **({} if axis is None else {"axis": 0}))
    h = g.op(op, ["d", "wd", *(["b"] if bias else [])], "product", **attrs)
    last = g.op(behind, [h], "behind") if behind else h
    if out:
        last = g.dequantize(g.quantize(last, "oq", out, end), "y", out, end)
        if "y" in twice:
            g.read(last)
    g.read(last)
    if "h" in twice:
        g.read("product")
    g.outputs += give
    return g.model(INPUT[op])


def the_product(model, rules="native"):
    return next(n for n in audit(model, rules=rules).nodes if n.node == "product")


def check(model, rules):
    """A rule is broken where the kernel is float, and only there: without one, the reason would be the general one."""
    node = next(n for n in model.graph.nodes if n.name == "product")
    found = obstacle(node, Scope(model.graph), rules)
    assert the_product(model, rules).integer == (found is None), found


@pytest.mark.parametrize("rules", ["native", "arm"])
@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
@pytest.mark.parametrize("act", ["u8", "s8", "u16"])
def test_types_and_readers(op, act, rules):
    for weight, out, twice in product(("s8", "u8"), ("u8", "s8", ""), ((), "q", "d", "h", "y")):
        if out or twice != "y":
            check(net(op, act, weight, out, twice=twice), rules)


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
@pytest.mark.parametrize("kind", ["u8", "s8"])
def test_biases(op, kind):
    for out, bias, axis in product((kind, ""), ("int32", "odd", "float"), (None, 0, 1)):
        check(net(op, kind, out=out, bias=bias, axis=axis), "native")


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
@pytest.mark.parametrize("kind", ["u8", "s8"])
def test_what_stands_behind(op, kind):
    for out, behind in product((kind, ""), ("Relu", "Clip", "Sigmoid", "Transpose", "Identity")):
        for end in (None, np.iinfo(TYPES[kind]).min):
            check(net(op, kind, out=out, behind=behind, end=end), "native")


@pytest.mark.parametrize("attributes", [{"alpha": 2.0}, {"beta": 2.0}, {"transB": 1}, {"beta": 2.0, "bias": "int32"}])
def test_attributes(attributes):
    for out in ("u8", ""):
        check(net("Gemm", out=out, **attributes), "native")


@pytest.mark.parametrize(
    ("broken", "why", "mend", "mended"),
    [
        ({"act": "u16"}, "input is uint16", "quantize its input to 8 bits", {"act": "u8"}),
        ({"weight": "s16"}, "weight is int16", "quantize its weight to 8 bits", {"weight": "s8"}),
        ({"out": ""}, "output is read as float", "put a QuantizeLinear behind it", {"out": "u8"}),
        ({"twice": "h"}, "read by others", "let them read behind that QuantizeLinear", {"twice": "y"}),
        ({"behind": "Relu"}, "the Relu behind it does more", "where the Relu ends", {"end": 0}),
        ({"bias": "odd"}, "scale of its bias", "give the bias the scale input x weight", {"bias": "int32"}),
        ({"bias": "float", "axis": 1}, "its bias 'b' is float", "give it as int32", {"bias": "int32"}),
        ({"act": "s8", "out": "s8", "twice": "d"}, "stays so", "unsigned", {"act": "u8", "out": "u8"}),
        ({"act": "s8", "twice": "q"}, "is signed", "quantize activations unsigned (uint8)", {"act": "u8"}),
        ({"out": "s8", "twice": "y"}, "in uint8, its output in int8", "unsigned", {"out": "u8"}),
        ({"op": "Gemm", "bias": "float", "out": ""}, "its bias 'b' is float", "as int32", {"bias": "int32"}),
        ({"op": "Gemm", "bias": "int32", "beta": 2.0}, "beta is 2", "multiply the bias by beta", {"beta": 1.0}),
        (
            {"op": "Gemm", "act": "s8", "weight": "u8", "out": "", "twice": "q"},
            "its input is signed, but its weight is not",
            "quantize its weight signed (int8)",
            {"weight": "s8"},
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_said_to_mend_it_does(broken, why, mend, mended):
    found = the_product(net(**broken))
    assert (found.integer, why in found.why, mend in found.mend) == (False, True, True), found
    assert the_product(net(**{**broken, **mended})).integer


def test_arm_takes_signed_numbers_as_they_are():
    signed, mixed = net(act="s8", out="s8", twice="d"), net(act="u8", out="s8")
    assert [the_product(signed, rules).integer for rules in ("native", "arm")] == [False, True]
    assert [the_product(mixed, rules).integer for rules in ("native", "arm")] == [True, False]
    assert the_product(mixed, "arm").mend == "quantize all activations in one type"


@pytest.mark.parametrize(
    ("op", "axis", "out"), [("Conv", 1, "u8"), ("Gemm", 0, ""), ("Gemm", 0, "u8"), ("MatMul", 0, "")]
)
def test_scales_along_the_wrong_axis(op, axis, out):
    found, right = the_product(net(op, axis=axis, out=out)), the_product(net(op, axis=1 - axis, out=out))
    assert found.integer
    assert found.why.startswith("WRONG: its weight scales")
    assert found.mend == "give its weight one scale for each output channel"
    assert (right.integer, right.why, right.mend) == (True, "", "")


def test_a_bias_that_is_read_on_another_scale():
    found = the_product(net("Gemm", bias="odd"))
    assert found.integer
    assert found.why.startswith("WRONG: its bias is not on the scale")
    assert found.mend == "give the bias the scale input x weight"


@pytest.mark.parametrize(
    ("op", "out", "integer"), [("Conv", "u8", True), ("Conv", "", False), ("Gemm", "u8", True), ("MatMul", "u8", False)]
)
def test_a_float_weight_between_quantized_tensors(op, out, integer):
    model = net(op, out=out)
    node = next(n for n in model.graph.nodes if n.name == "product")
    node.inputs[1] = model.constant("float", np.random.default_rng(0).standard_normal(WEIGHT[op]).astype(np.float32))
    model.tidy()
    found = the_product(model)
    assert found.integer == integer
    if integer:
        assert found.why == "its weight is float in the file, but is quantized when the model is loaded"
        assert found.mend == "quantize its weight, or let it write floats"
    else:
        assert (found.why, found.mend) == ("its weight 'float' is float", "quantize its weight")


def test_the_flaws_are_real():
    """The kernels that are called wrong do give other numbers than the same file without fusions."""
    x = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
    for flawed, arguments in ((True, {"axis": 0}), (False, {"axis": 1})):
        model = net("Gemm", out="", **arguments)
        scales = next(c for c in model.constants() if c.name == "ws")
        scales.values = np.linspace(0.001, 0.01, 8, dtype=np.float32)
        plain, fused = (next(iter(Session(model, optimize=o).run({"x": x}).values())) for o in (False, True))
        assert np.allclose(plain, fused, rtol=1e-4) == (not flawed)


def test_one_scale_per_block():
    g = Written()
    g.quantize("x", "q", "u8")
    g.dequantize("q", "d", "u8")
    g.constant("w", np.ones((8, 8), np.int8))
    g.constant("ws", np.full((2, 8), WEIGHT_SCALE))
    g.op("DequantizeLinear", ["w", "ws"], "wd", axis=0, block_size=4)
    g.read(g.op("MatMul", ["d", "wd"], "product"))
    found = the_product(g.model(INPUT["MatMul"]))
    assert (found.integer, found.why.startswith("WRONG: its weight scales")) == (True, True)


@pytest.mark.parametrize(("tensors", "part"), [(("q", "d"), "input"), (("wd",), "weight")])
def test_a_gemm_without_a_zero_point(tensors, part):
    model = net("Gemm")
    for node in model.graph.nodes:
        if node.outputs[0].name in tensors:
            del node.inputs[2]
    found = the_product(model)
    assert (found.integer, found.why) == (False, f"its {part} has no zero point")
    assert found.mend == "write its zero point down, also if it is 0"


def test_a_gemm_before_a_transpose():
    found = the_product(net("Gemm", out="", behind="Transpose"))
    assert (found.kernel, found.mend) == ("Gemm", "put a QuantizeLinear between them")
    assert found.why == "the Transpose behind it is fused with it before integer kernels are looked for"
    assert the_product(net("Gemm", out="", behind="Transpose", bias="int32")).integer


def vector_added(rank, shape, integer=False):
    g = Written()
    g.quantize("x", "q", "u8")
    g.dequantize("q", "d", "u8")
    g.constant("w", np.ones((8, 8), np.int8))
    g.op("DequantizeLinear", ["w", g.constant("ws", WEIGHT_SCALE), g.constant("wz", np.int8(0))], "wd")
    if integer:
        g.constant("vi", np.ones(shape, np.int32))
        g.op("DequantizeLinear", ["vi", g.constant("vs", SCALE * WEIGHT_SCALE)], "v")
    else:
        g.constant("v", np.ones(shape, np.float32))
    g.op("MatMul", ["d", "wd"], "product")
    g.read(g.op("Add", ["product", "v"], "sum"))
    return g.model([2, 4, 8][-rank:])


@pytest.mark.parametrize(("rank", "shape"), [(2, (8,)), (3, (8,)), (2, (1, 8))])
def test_an_add_that_makes_a_gemm_of_a_product(rank, shape):
    found = the_product(vector_added(rank, shape))
    assert found.kernel == "Gemm"
    assert found.why.startswith("the Add behind it is fused with it")
    assert found.mend == "give what is added as int32 on the scale input x weight"
    assert the_product(vector_added(rank, shape, integer=True)).kernel == "QGemm"


@pytest.mark.parametrize(("rank", "shape"), [(3, (1, 1, 8)), (3, (1, 8)), (3, (1,))])
def test_an_add_that_does_not(rank, shape):
    assert the_product(vector_added(rank, shape)).kernel == "MatMulIntegerToFloat"
