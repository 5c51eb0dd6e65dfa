"""Every kind of graph through quant and quant-dynamic: what runs in integers, how near the answers stay, or why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.core.manager import PassManager
from onnxopt.core.pass_ import Pass
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.model import Model
from onnxopt.graph.vocabulary import index_bounds
from onnxopt.passes.quant import Quant
from onnxopt.passes.quant_dynamic import QuantDynamic
from onnxopt.report.report import StepReport
from onnxopt.runtime.audit import audit
from onnxopt.runtime.session import Session

STATIC, AUTO, DYNAMIC = Quant(effort="fast", activations="static"), Quant(effort="fast"), QuantDynamic()
ROWS = "float[N,256] x"
WIDE = "float[256,256] w"
TWO = f"{WIDE}, float[256,256] v"
PICTURE = "float[N,4,8,8] x"
CONVS = "float[8,4,3,3] w, float[8,8,3,3] v"
IN_BODY = "it is in the body of an If, Loop or Scan"
CONV_DYNAMIC = "a convolution hardly gains by dynamic scales, or loses"
_LEAST_DB = 33.0


@dataclass(frozen=True)
class Made:
    """A pass's report, the kernels that run, and the least SQNR of any output on any branch."""

    report: StepReport
    kernels: Counter[str]
    sqnr_db: float

    @property
    def reasons(self) -> list[str]:
        return sorted(why for _, why in self.report.skips)


@pytest.fixture
def through(parse):
    """Run a pass, prepared as always, over a model given by its nodes; a bool input ``go`` takes both branches."""

    def run(step: Pass, nodes: str, weights: str, x: str, y: str = "float[] y", opset: int = 17, **values: Any) -> Made:
        model = Model.from_proto(parse(f"g ({x}) => ({y}) <{weights}> {{ {nodes} }}", opset, **values))
        before = model.clone()
        data = open_dataset("synthetic", model.inputs, samples=32, bounds=index_bounds(model))
        report = PassManager([step]).run(model, data).passes[-1]
        feed = next(data.batches(32))
        feeds = [feed | {"go": np.array(go)} for go in (True, False)] if "go" in feed else [feed]
        exact, rounded = Session(before), Session(model)
        pairs = [(exact.run(f), rounded.run(f)) for f in feeds]
        least = min(sqnr(a[name], b[name]) for a, b in pairs for name in a)
        return Made(report, Counter(n.kernel for n in audit(model).nodes), least)

    return run


def sqnr(exact, rounded) -> float:
    if np.array_equal(exact, rounded):
        return float("inf")
    exact, rounded = exact.astype(np.float64), rounded.astype(np.float64)
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - rounded).sum()))


def check(made: Made, kernels: dict[str, int], reasons: Sequence[str] = ()) -> None:
    assert made.kernels == kernels
    assert made.reasons == sorted(reasons)
    integer = sum(n for kernel, n in kernels.items() if "Q" in kernel or "Integer" in kernel)
    assert (made.report.changed >= integer) if integer else made.report.changed == 0
    assert made.sqnr_db > _LEAST_DB if integer else made.sqnr_db == np.inf


def branches(shape: str, first: str, second: str) -> str:
    return f"""y = If (go) <then_branch = a () => ({shape} p) {{ {first} }},
                            else_branch = b () => ({shape} q) {{ {second} }}>"""


LOOP = """Loop (n, t, h) <body = one (int64 i, bool c, float[N,256] s) => (bool d, float[N,256] o) {
    d = Identity (c) m = MatMul (s, v) k = Tanh (m) o = Add (k, h) }>"""
SCAN = """z, y = Scan <num_scan_inputs=1, body = one (float[256] s, float[256] a) => (float[256] o, float[256] e) {
    u = MatMul (a, v) o = Add (s, u) e = Identity (o) }> (start, h)"""
# (nodes, weights, input, declared output); a product outside, and one that reads it or its input in a body.
BODIES = {
    "If": (
        "h = MatMul (x, w)" + branches("float[N,256]", "p = Relu (h)", "r = MatMul (h, v) q = Add (r, x)"),
        TWO,
        f"{ROWS}, bool go",
        "float[] y",
    ),
    "If, shared weights": (
        "h = MatMul (x, w)" + branches("float[N,256]", "p = Relu (h)", "q = MatMul (h, w)"),
        WIDE,
        f"{ROWS}, bool go",
        "float[] y",
    ),
    "Loop": (f"h = MatMul (x, w) y = {LOOP}", f"{TWO}, int64 n = {{3}}, bool t = {{1}}", ROWS, "float[N,256] y"),
    "Loop in If": (
        "h = MatMul (x, w)" + branches("float[N,256]", f"p = {LOOP}", "q = Identity (h)"),
        f"{TWO}, int64 n = {{2}}, bool t = {{1}}",
        f"{ROWS}, bool go",
        "float[N,256] y",
    ),
    "Scan": (f"h = MatMul (x, w) {SCAN}", f"{TWO}, float[256] start", ROWS, "float[] y"),
}


@pytest.mark.parametrize("kind", BODIES)
def test_layers_in_bodies_with_static_scales_outside(through, kind):
    made = through(STATIC, *BODIES[kind])
    assert made.kernels["QGemm"] == 1
    assert made.reasons == [IN_BODY]
    assert made.sqnr_db > _LEAST_DB


@pytest.mark.parametrize("step", [AUTO, DYNAMIC])
@pytest.mark.parametrize("kind", BODIES)
def test_layers_in_bodies_get_dynamic_scales(through, kind, step):
    check(through(step, *BODIES[kind]), {"DynamicQuantizeMatMul": 2})


def test_a_layer_only_in_a_body(through):
    nodes = branches("float[N,256]", "p = MatMul (x, w)", "q = Relu (x)")
    check(through(AUTO, nodes, WIDE, f"{ROWS}, bool go"), {"DynamicQuantizeMatMul": 1})
    check(through(STATIC, nodes, WIDE, f"{ROWS}, bool go"), {"MatMul": 1}, [IN_BODY])


@pytest.mark.parametrize("step", [STATIC, AUTO])
def test_branches_capture_what_integer_convolutions_make(through, step):
    padded = branches("float[N,8,6,6]", "p = Relu (h)", "q = Conv <pads=[1,1,1,1]> (h, v)")
    made = through(step, f"h = Conv (x, w) {padded}", CONVS, f"{PICTURE}, bool go")
    check(made, {"QLinearConv": 1, "Conv": 1}, [IN_BODY])


@pytest.mark.parametrize("step", [STATIC, AUTO])
def test_branches_capture_tensors_between_integer_convolutions(through, step):
    captured = branches("float[N,8,6,6]", "p = Identity (r)", "q = Neg (h)")
    nodes = f"h = Conv (x, w) r = Relu (h) z = Conv (r, v) {captured}"
    check(through(step, nodes, CONVS, f"{PICTURE}, bool go", "float[] y, float[] z"), {"QLinearConv": 2})


# Nodes, weights, how many layers.
WEIGHTS = {
    "shared": ("h = MatMul (x, w) r = Relu (h) y = MatMul (r, w)", WIDE, 2),
    "shared, turned": ("h = MatMul (x, w) y = Gemm <transB=1> (h, w)", WIDE, 2),
    "shared, transposed": ("k = Transpose <perm=[1,0]> (w) h = MatMul (x, k) y = MatMul (h, w)", WIDE, 2),
    "shared with floats": ("h = MatMul (x, w) k = ReduceSum <keepdims=0> (w) y = Add (h, k)", WIDE, 1),
    "Identity": ("k = Identity (w) y = MatMul (x, k)", WIDE, 1),
    "Transpose": ("k = Transpose <perm=[1,0]> (w) y = MatMul (x, k)", WIDE, 1),
    "Reshape": ("k = Reshape (w, s) y = MatMul (x, k)", "float[65536] w, int64[2] s = {256,256}", 1),
    "Cast": ("k = Cast <to=1> (w) y = MatMul (x, k)", "double[256,256] w", 1),
    "Constant": (
        "w = Constant <value = float {0.5}> () k = Expand (w, s) y = MatMul (x, k)",
        "int64[2] s = {256,256}",
        1,
    ),
    "chain": (
        "a = Cast <to=1> (w) b = Reshape (a, s) k = Transpose <perm=[1,0]> (b) y = MatMul (x, k)",
        "double[65536] w, int64[2] s = {256,256}",
        1,
    ),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_shared_and_behind_nodes(through, kind):
    nodes, weights, layers = WEIGHTS[kind]
    check(through(STATIC, nodes, weights, ROWS), {"QGemm": layers})
    for step in (AUTO, DYNAMIC):
        check(through(step, nodes, weights, ROWS), {"DynamicQuantizeMatMul": layers})


NO_TURN = "there is no integer kernel for transA=1"
NO_COLUMN = "its bias is not one number per column"


@pytest.mark.parametrize(
    ("attributes", "c", "why"),
    [
        *(("transB=1, alpha=0.5, beta=2.0", c, "") for c in ("", "[1]", "[256]", "[1,256]", "[1,1]")),
        *(("beta=-0.5", c, NO_COLUMN) for c in ("[32,256]", "[32,1]")),
        ("transA=1", "[256]", NO_TURN),
        ("transA=1, transB=1, alpha=-3.0", "[1,256]", NO_TURN),
        ("alpha=-2.0", None, ""),
    ],
)
def test_gemm(through, attributes, c, why):
    turned = "transA" in attributes
    case = f"y = Gemm <{attributes}> (x, w{'' if c is None else ', c'})", WIDE + ("" if c is None else f", float{c} c")
    x = "float[256,32] x" if turned else "float[32,256] x"
    check(through(STATIC, *case, x), {"Gemm": 1} if why else {"QGemm": 1}, [why] if why else [])
    for step in (AUTO, DYNAMIC):
        check(through(step, *case, x), {"DynamicQuantizeMatMul": 1})


def test_gemm_that_adds_what_is_computed(through):
    case = "y = Gemm (x, w, x)", WIDE, ROWS
    check(through(STATIC, *case), {"Gemm": 1}, ["its bias is computed at run time"])
    check(through(DYNAMIC, *case), {"DynamicQuantizeMatMul": 1})


@pytest.mark.parametrize(
    ("attributes", "weights", "x"),
    [
        ("group=2", "float[8,2,3,3] w, float[8] b", PICTURE),
        ("group=4", "float[4,1,3,3] w, float[4] b", PICTURE),
        ("group=4", "float[8,1,3,3] w, float[8] b", PICTURE),
        ("strides=[2], dilations=[2]", "float[8,4,3] w, float[8] b", "float[N,4,32] x"),
        ("pads=[1,1,1,1,1,1]", "float[8,4,2,2,2] w, float[8] b", "float[N,4,6,6,6] x"),
    ],
    ids=["groups", "depthwise", "depthwise, two of each", "1-D", "3-D"],
)
def test_convolutions(through, attributes, weights, x):
    case = f"y = Conv <{attributes}> (x, w, b)", weights, x
    for step in (STATIC, AUTO):
        check(through(step, *case), {"QLinearConv": 1})
    check(through(DYNAMIC, *case), {"Conv": 1}, [CONV_DYNAMIC])


def test_transposed_convolutions_stay_float_between_integers(through):
    weights = "float[4,4,3,3] u, float[4,3,3,3] w, float[6] b, float[4,6,3,3] v"
    case = "h = Conv (x, u) r = Relu (h) t = ConvTranspose <group=2> (r, w, b) y = Conv (t, v)", weights, PICTURE
    why = "ConvTranspose has no integer kernel"
    made = through(STATIC, *case)
    assert made.kernels == {"QLinearConv": 2, "ConvTranspose": 1}
    assert made.reasons == [why]
    assert made.sqnr_db > 30
    check(through(DYNAMIC, *case), {"Conv": 2, "ConvTranspose": 1}, [CONV_DYNAMIC, CONV_DYNAMIC, why])


SEQUENCE = "float[20,N,64] x"


def test_lstm(through):
    case = (
        "y, h, c = LSTM <hidden_size=64> (x, w, r, b)",
        "float[1,256,64] w, float[1,256,64] r, float[1,512] b",
        SEQUENCE,
    )
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal((1, 256, 64)) / 8 for name in ("w", "r")}
    check(through(STATIC, *case, **values), {"LSTM": 1}, ["LSTM has integer kernels for dynamic scales only"])
    for step in (AUTO, DYNAMIC):
        check(through(step, *case, **values), {"DynamicQuantizeLSTM": 1})


@pytest.mark.parametrize(("op", "gates"), [("GRU", 3), ("RNN", 1)])
def test_other_recurrent_layers_stay_float(through, op, gates):
    weights = f"float[1,{64 * gates},64] w, float[1,{64 * gates},64] r"
    for step in (STATIC, AUTO, DYNAMIC):
        made = through(step, f"y, h = {op} <hidden_size=64> (x, w, r)", weights, SEQUENCE)
        assert made.report.changed == 0
        (why,) = made.reasons
        assert f"{op} has no integer kernel" in why


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings(through, tied):
    factor = "k = Transpose <perm=[1,0]> (t)" if tied else "k = Identity (w)"
    weights = "float[300,256] t" + ("" if tied else f", {WIDE}")
    case = f"h = Gather (t, x) {factor} y = MatMul (h, k)", weights, "int64[N,5] x"
    made = through(STATIC, *case)
    check(made, {"MatMulIntegerToFloat": 1})
    for step in (AUTO, DYNAMIC):
        made = through(step, *case)
        check(made, {"DynamicQuantizeMatMul": 1})
        assert made.report.changed == 2  # the table is integers too


NEWEST = min(onnx.defs.onnx_opset_version(), 26)


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_every_opset(through, opset):
    nodes = """h = Conv (x, w, b) r = Relu (h) p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)
               f = Flatten (p) y = Gemm <transB=1> (f, v, c)"""
    weights = "float[32,4,3,3] w, float[32] b, float[256,288] v, float[256] c"
    made = through(STATIC, nodes, weights, PICTURE, opset=opset)
    check(made, {"QLinearConv": 1, "QGemm": 1})
    assert made.report.figures.get("opset") == ([opset, 13] if opset < 13 else None)
    made = through(DYNAMIC, nodes, weights, PICTURE, opset=opset)
    check(made, {"Conv": 1, "DynamicQuantizeMatMul": 1}, [CONV_DYNAMIC])


@pytest.mark.parametrize("second", [STATIC, AUTO, DYNAMIC])
@pytest.mark.parametrize("first", [STATIC, AUTO, DYNAMIC])
def test_quantized_models_are_left_as_they_are(parse, first, second):
    proto = parse(f"g ({ROWS}) => (float[] y) <{TWO}> {{ h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }}")
    model = Model.from_proto(proto)
    data = open_dataset("synthetic", model.inputs, samples=8)
    PassManager([first]).run(model, data)
    before = Session(model).run(next(data.batches(8)))
    report = PassManager([second]).run(model, data).passes[-1]
    ((_, why),) = report.skips
    assert report.changed == 0
    assert why.startswith("the model is quantized already: it holds ")
    assert np.array_equal(before["y"], Session(model).run(next(data.batches(8)))["y"])


@pytest.mark.parametrize("kind", ["float16", "double"])
@pytest.mark.parametrize("step", [STATIC, AUTO, DYNAMIC])
def test_models_that_are_not_float32(through, step, kind):
    made = through(step, "y = MatMul (x, w)", f"{kind}[256,256] w", f"{kind}[N,256] x", f"{kind}[] y")
    named = "float64" if kind == "double" else kind
    check(made, {"MatMul": 1}, [f"its weights are {named}, not float32: start from the model in float32"])


@pytest.mark.parametrize("step", [STATIC, AUTO, DYNAMIC])
def test_parts_that_are_not_float32(through, step):
    nodes = "h = MatMul (x, w) i = Cast <to=10> (h) k = MatMul (i, v) y = Cast <to=1> (k)"
    made = through(step, nodes, f"{WIDE}, float16[256,256] v", ROWS)
    assert made.report.changed == 1
    assert made.reasons == ["its weights are float16, not float32: start from the model in float32"]
    assert made.sqnr_db > _LEAST_DB
