"""Layers with scales found at every run: the reasons against, the numbers, and what is stored once."""

import os
from math import inf
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.core.pass_ import label
from onnxopt.graph.io import load
from onnxopt.graph.model import Model
from onnxopt.quantization.dynamic import quantize_layers
from onnxopt.quantization.dynamic_eligible import fault, is_candidate, loss
from onnxopt.runtime.audit import audit
from onnxopt.runtime.session import Session

pytestmark = pytest.mark.filterwarnings("error")
LSTM = "float[1,32,8] w, float[1,32,8] r"


@pytest.fixture
def make(build):
    """A model of ``x``; weights are those given, the others drawn."""

    def run(nodes, weights, x, y="float[] y", opset=17, **values):
        model = build(nodes, weights, f"{x} x", y, opset)
        for constant in model.constants():
            if constant.name in values:
                constant.values = np.broadcast_to(values[constant.name], constant.shape).astype(constant.dtype)
        return model

    return run


@pytest.fixture
def dynamic(make):
    """Quantize every layer of a model that can be; both models, and what each answers to a feed."""

    def run(nodes, weights, feed, x="float[N,16]", y="float[] y", opset=17, **values):
        before = make(nodes, weights, x, y, opset=opset, **values)
        after = before.clone()
        quantize_layers(after, {label(n) for n in before.nodes() if is_candidate(n)})
        onnx.checker.check_model(after.to_proto(), full_check=True)
        return SimpleNamespace(
            before=Session(before, optimize=False).run({"x": feed}),
            after=Session(after).run({"x": feed}),
            plain=Session(after, optimize=False).run({"x": feed}),
            model=after,
            audit=audit(after),
        )

    return run


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def bound(x, w):
    """How far (rows, inputs) times (inputs, outputs) can be off: half a step of either factor, times the other."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    steps = np.abs(w).max(axis=0) / 127
    # The zero point is rounded too, so that an end of the range can be off by another half.
    return step * np.abs(w).sum(axis=0) + np.abs(x).sum(axis=1, keepdims=True) * steps / 2 + x.shape[1] * step * steps


PRODUCTS = [
    ("y = MatMul (x, w)", "float[16,8] w"),
    ("y = Gemm (x, w)", "float[16,8] w"),
    ("y = Gemm <transB=1, alpha=-0.5> (x, w)", "float[8,16] w"),
    ("y = Gemm <transB=1, beta=3.0> (x, w, b)", "float[8,16] w, float[8] b"),
    ("y = Gemm (x, w, b)", "float[16,8] w, float[1,8] b"),
    ("y = Gemm (x, w, b)", "float[16,8] w, float[5,1] b"),
    ("y = Gemm <beta=2.0> (x, w, b)", "float[16,8] w, float b"),
    ("c = ReduceMean <axes=[1]> (x) y = Gemm <beta=-2.0> (x, w, c)", "float[16,8] w"),
    ("c = ReduceMean <axes=[1]> (x) y = Gemm (x, w, c)", "float[16,8] w"),
    ("y = Gemm <beta=0.0> (x, w, b)", "float[16,8] w, float[8] b"),
    ("h = MatMul (x, w) y = Add (b, h)", "float[16,8] w, float[8] b"),
    ("t = Transpose (x) y = Gemm <transA=1> (t, w)", "float[16,8] w"),
    ("w = Transpose <perm=[1,0]> (v) y = MatMul (x, w)", "float[8,16] v"),
    ("w = Transpose (v) y = Gemm <transB=1> (x, w)", "float[16,8] v"),
]


@pytest.mark.parametrize(("nodes", "weights"), PRODUCTS)
def test_products_stay_within_half_a_step_of_each_factor(dynamic, nodes, weights):
    x = normal(5, 16)
    done = dynamic(nodes, weights, x)
    stored = np.random.default_rng(0).standard_normal((16, 8) if "[16,8]" in weights else (8, 16)).astype(np.float32)
    w = (stored if "[16,8]" in weights else stored.T) * (0.5 if "alpha" in nodes else 1)
    assert (np.abs(done.before["y"] - done.after["y"]) <= bound(x, w) + 1e-5).all()
    np.testing.assert_allclose(done.plain["y"], done.after["y"], rtol=1e-4, atol=1e-5)
    assert [n.kernel for n in done.audit.nodes] == ["DynamicQuantizeMatMul"]
    if "v" not in weights.split()[-1]:
        assert done.audit.operators.get("Add", 0) == ("c)" in nodes or "[5,1]" in weights or "float b" in weights)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 9),
    st.floats(-3, 3),
    st.integers(-20, 20),
    st.integers(0, 99),
)
def test_the_bound_holds_for_all_sizes_and_ranges(inputs, outputs, rows, offset, power, seed):
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal((inputs, outputs)) * 2.0**power).astype(np.float32)
    w[:, rng.random(outputs) < 0.2] = 0
    x = (rng.standard_normal((rows, inputs)) + offset).astype(np.float32)
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", d])
        for n, d in (("x", inputs), ("y", outputs))
    ]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [onnx.numpy_helper.from_array(w, "w")])
    model = Model.from_proto(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    )
    quantize_layers(model, {"y"})
    y = Session(model).run({"x": x})["y"]
    assert y.shape == (rows, outputs)
    if rows:
        exact = x.astype(np.float64) @ w
        assert (np.abs(y - exact) <= bound(x, w) + 1e-5 * np.abs(x) @ np.abs(w)).all()


@pytest.mark.parametrize(
    ("weights", "x"),
    [
        ("float[16,8] w", "float[3,5,16]"),
        ("float[16,8] w", "float[2,3,5,16]"),
        ("float[16,8] w", "float[16]"),
        ("float[3,16,8] w", "float[3,5,16]"),
        ("float[2,3,16,8] w", "float[5,16]"),
        ("float[3,16,1] w", "float[2,3,5,16]"),
    ],
)
def test_products_of_many_axes(dynamic, weights, x):
    shape = [int(d) for d in x[6:-1].split(",")]
    feed = normal(*shape)
    done = dynamic("y = MatMul (x, w)", weights, feed, x)
    assert [n.kernel for n in done.audit.nodes] == ["DynamicQuantizeMatMul"]
    assert done.before["y"].shape == done.after["y"].shape
    noise = np.square(done.after["y"] - done.before["y"]).sum() / np.square(done.before["y"]).sum()
    assert noise < 10**-3.2


def test_layers_of_one_tensor_share_its_integers_and_equal_weights_are_stored_once(dynamic):
    done = dynamic(
        "a = MatMul (x, w) r = Relu (x) b = Gemm <alpha=2.0> (r, w) c = MatMul (x, v) d = Add (a, b) y = Add (d, c)",
        "float[16,8] w, float[16,8] v",
        normal(5, 16),
    )
    ops = [n.op for n in done.model.nodes()]
    assert ops.count("DynamicQuantizeLinear") == 2
    assert done.audit.operators["MatMulIntegerToFloat"] == 2  # of the tensor that two layers read
    assert done.audit.operators["DynamicQuantizeMatMul"] == 1
    assert sum(c.dtype == np.int8 and c.values.size > 1 for c in done.model.constants()) == 2
    np.testing.assert_allclose(done.after["y"], done.before["y"], atol=0.4)


def test_a_table_that_is_looked_up_and_multiplied_with(dynamic):
    nodes = "h = Gather (e, x) t = Transpose <perm=[1,0]> (e) y = MatMul (h, t)"
    scales = np.exp(normal(64, 1))
    done = dynamic(nodes, "float[64,16] e", np.arange(-6, 6).reshape(3, 4), "int64[N,M]", e=normal(64, 16) * scales)
    assert all(c.values.size <= 64 for c in done.model.constants() if c.dtype == np.float32)
    table = normal(64, 16) * scales
    error = np.abs(done.after["y"] - done.before["y"])
    largest = np.abs(table).max(axis=1)
    # Each row to half a step of its own, then the product as above.
    read = table[np.arange(-6, 6)].astype(np.float64)
    own = np.abs(read).max(axis=1, keepdims=True) / 254 * np.abs(table).sum(axis=1)
    assert (error.reshape(12, 64) <= own + 1.02 * bound(read, table.T)).all()
    assert largest.max() > 20 * largest.min()  # one scale for the whole table would not have done


@pytest.mark.parametrize(("direction", "count"), [("forward", 1), ("reverse", 1), ("bidirectional", 2)])
def test_lstm(dynamic, direction, count):
    nodes = f"""y, h, c = LSTM <hidden_size=8, direction="{direction}", clip=5.0> (x, w, r, b, , h0, , p)"""
    weights = (
        f"float[{count},32,4] w, float[{count},32,8] r, float[{count},64] b, float[{count},2,8] h0, float[{count},24] p"
    )
    parts = {"w": normal(count, 32, 4) * np.exp(normal(count, 32, 1)), "r": normal(count, 32, 8) / 3}
    done = dynamic(nodes, weights, normal(7, 2, 4), "float[S,2,4]", "float[] y, float[] h, float[] c", **parts)
    assert [n.kernel for n in done.audit.nodes] == ["DynamicQuantizeLSTM"]
    for name, value in done.before.items():
        noise = np.square(done.after[name] - value).sum() / np.square(value).sum()
        assert noise < 10**-3, name


@pytest.mark.parametrize(
    ("nodes", "weights", "x", "channels"),
    [
        ("y = MatMul (x, w)", "float[7,5] w", "float[3,7]", 5),
        ("y = Gemm <transB=1> (x, w)", "float[5,7] w", "float[3,7]", 5),
        ("y = MatMul (x, w)", "float[2,7,5] w", "float[2,3,7]", 5),
        ("y, h, c = LSTM <hidden_size=2> (x, w, r)", "float[1,8,7] w, float[1,8,2] r", "float[3,1,7]", 16),
    ],
)
def test_no_pair_of_products_overflows_where_that_matters(make, nodes, weights, x, channels):
    """Weights of one sign and nearly of one size: every pair is too heavy."""
    rng = np.random.default_rng(0)
    model = make(nodes, weights, x, w=1, r=1)
    for constant in model.constants():
        constant.values = rng.uniform(0.7, 1, constant.shape).astype(np.float32)
    free = model.clone()
    assert quantize_layers(free, {"y"}) == 0
    assert quantize_layers(model, {"y"}, guard=True) == channels
    for quantized, most in ((free, 254), (model, 128)):
        stored = [c.values for c in quantized.constants() if c.dtype == np.int8 and c.values.any()]
        heaviest = max(int((v[..., :-1:2, :].astype(int) + v[..., 1::2, :]).max()) for v in stored)
        assert most // 2 < heaviest <= most


def test_names_stay_and_a_second_domain_is_named_once(dynamic):
    nodes = "a, h, c = LSTM <hidden_size=8> (x, w, r) s = Squeeze (a, i) y, d, e = LSTM <hidden_size=8> (s, w, r)"
    done = dynamic(nodes, LSTM + ", int64[1] i = {1}", normal(3, 1, 8), "float[S,1,8]")
    assert [o.domain for o in done.model.header.opset_import].count("com.microsoft") == 1
    assert sum(c.dtype == np.int8 and c.values.any() for c in done.model.constants()) == 2


@pytest.mark.parametrize(
    ("node", "weights", "reason"),
    [
        ("y = Conv (x, w)", "float[4,3,1,1] w", "a convolution hardly gains by dynamic scales, or loses"),
        ("y = ConvTranspose (x, w)", "float[3,4,1,1] w", "ConvTranspose has no integer kernel"),
        ("y = MatMul (x, x)", "", "its weights are computed at run time"),
        ("y = MatMul (w, x)", "float[8,8] w", "its constant is the first factor"),
        ("y = MatMul (x, w)", "float[8] w", "its weights are a vector"),
        ("y = MatMul (x, w)", "float[8,0] w", "its weights are empty"),
        ("y = MatMul (x, w)", "float[8,8] w = {1e-19}", "its weights are too small: 1e-19 at most"),
        ("i = Cast <to=7> (x) y = Gather (w, i)", "float[8,4] w = {inf}", "its table is not all finite"),
        ("i = Cast <to=7> (x) y = Gather <axis=1> (w, i)", "float[8,4] w", "it looks up columns, not rows"),
        ("i = Cast <to=7> (x) g = Gather (w, i) y = Add (g, w)", "float[8,8] w", "its table is read as float by 'y'"),
        ("d = Cast <to=11> (x) y = MatMul (d, w)", "double[8,8] w", "its weights are float64, not float32"),
    ],
)
def test_reasons(make, node, weights, reason):
    head, _, fill = weights.partition(" = ")
    values = {"w": float(fill.strip("{}"))} if fill else {}
    net = make(node, head, "float[2,3,8,8]", opset=17, **values)
    found = [fault(n, net.opset) for n in net.nodes() if is_candidate(n)]
    assert len(found) == 1
    assert reason in found[0]


@pytest.mark.parametrize("op", ["GRU", "RNN"])
def test_recurrent_layers_without_a_kernel(make, op):
    gates = {"GRU": 3, "RNN": 1}[op]
    weights = f"float[1,{8 * gates},8] w, float[1,{8 * gates},8] r"
    net = make(f"y, h = {op} <hidden_size=8> (x, w, r)", weights, "float[S,1,8]")
    assert fault(net.graph.nodes[0], 17) == f"{op} has no integer kernel"


def test_other_reasons(make):
    net = make("y, h, c = LSTM <hidden_size=8, layout=1> (x, w, r)", LSTM, "float[1,S,8]")
    assert fault(net.graph.nodes[0], 17) == "there is no integer kernel for layout=1"
    net = make("y, h, c = LSTM <hidden_size=8> (x, w, r)", LSTM, "float[S,1,8]", w=inf)
    assert fault(net.graph.nodes[0], 17) == "its weights are not all finite"
    net = make("y = MatMul (x, w)", "float[16,8] w", "float[N,16]", opset=9)
    assert fault(net.graph.nodes[0], net.opset) == "MatMul takes dynamic scales from opset 11 on"
    table = np.zeros((8, 4096), np.float32)
    table[:, 0], table[:, 1:] = 1, 1e-3
    net = make("i = Cast <to=7> (x) y = Gather (w, i)", "float[8,4096] w", "float[N]", w=table)
    assert fault(net.graph.nodes[1], 17) == "8 bits hold its table to 24 dB only"
    assert not is_candidate(make("y = Relu (x)", "", "float[N]").graph.nodes[0])
    assert not is_candidate(make("s = Shape (x) y = Gather (s, i)", "int64 i = {0}", "float[N]").graph.nodes[1])


def test_what_is_too_small_to_gain(make):
    net = make("y = MatMul (x, w)", "float[32,32] w", "float[N,32]")
    assert loss(net.graph.nodes[0], {}) == "it is too small to gain: it would take 0.6 us more in integers"
    assert loss(net.graph.nodes[0], {"y": (10**4, 32)}) == ""
    wide = make("y = Gemm <transB=1> (x, w)", "float[512,512] w", "float[N,512]").graph.nodes[0]
    assert loss(wide, {"y": (1, 512)}) == ""
    thin = make("y = Gemm <transB=1> (x, w)", "float[8,512] w", "float[N,512]").graph.nodes[0]
    assert "too small" in loss(thin, {"y": (1, 8)})
    net = make("y, h, c = LSTM <hidden_size=8> (x, w, r)", LSTM, "float[S,1,8]").graph.nodes[0]
    assert "too small" in loss(net, {"x": (50, 1, 8)})
    big = "float[1,256,64] w, float[1,256,64] r"
    net = make("y, h, c = LSTM <hidden_size=64> (x, w, r)", big, "float[S,1,64]").graph.nodes[0]
    assert loss(net, {"x": (50, 1, 64)}) == ""
    net = make("i = Cast <to=7> (x) y = Gather (w, i)", "float[8,4] w", "float[N]")
    assert loss(net.graph.nodes[1], {}) == "its table is small: 32 numbers"


@pytest.mark.skipif("ONNXOPT_ZOO" not in os.environ, reason="ONNXOPT_ZOO names no folder of models")
@pytest.mark.zoo
def test_published_nets_with_lstm():
    model = load(f"{os.environ['ONNXOPT_ZOO']}/nnsplit_en.onnx")
    after = model.clone()
    quantize_layers(after, {label(n) for n in model.nodes() if n.op == "LSTM"})
    feed = {"input": np.frombuffer(b"This is a sentence. Here is one more, and it ends here. " * 4, np.uint8)[None]}
    exact, rounded = (Session(m).run(feed)["output"] for m in (model, after))
    assert np.square(exact).sum() > 10**3.5 * np.square(exact - rounded).sum()
