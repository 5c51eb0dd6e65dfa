"""Dynamic quantization: what the runtime executes, graphs of every kind, and each reason to leave a layer float."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt.core.manager import PassManager
from onnxopt.data.dataset import open_dataset
from onnxopt.errors import ExecutionError, ModelError
from onnxopt.graph.io import load
from onnxopt.graph.model import Model
from onnxopt.passes.quant import Quant
from onnxopt.passes.quant_dynamic import QuantDynamic
from onnxopt.quantization.dynamic import quantize_layers
from onnxopt.runtime.audit import audit
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import X86_AVX2, X86_AVX512_VNNI

DYNAMIC = QuantDynamic()
SAMPLES = Path(__file__).parents[2] / "sample_models"
WIDE = "float[512,512] w, float[512] b"


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


SMALL = {"w": normal(512, 512, seed=2) / 23}


def sqnr(exact, rounded) -> float:
    if np.array_equal(exact, rounded, equal_nan=True):
        return float("inf")
    exact, rounded = exact.astype(np.float64), rounded.astype(np.float64)
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - rounded).sum()))


@pytest.fixture
def quantize(check_pass, parse):
    """Quantize a model of ``x``; the outcome, with what executes and the SQNR of each output."""

    def run(text, opset=17, step=DYNAMIC, feed=None, skipped=(), changed=None, **values):
        feed = {"x": normal(4, 512)} if feed is None else feed
        outcome = check_pass(step, parse(text, opset, **values), feed=feed, skipped=skipped, changed=changed)
        after = Session(outcome.model).run(feed)
        kernels = Counter(n.kernel for n in audit(outcome.model).nodes)
        return outcome, kernels, {k: sqnr(v, after[k]) for k, v in outcome.before.items()}

    return run


def test_layers_that_read_one_tensor_share_its_quantization(quantize):
    outcome, kernels, found = quantize(
        """g (float[N,512] x) => (float[] y) <float[512,512] q, float[512,512] k, float[512] b> {
            h = MatMul (x, q) i = MatMul (x, k) j = Add (i, b) y = Add (h, j) }""",
        changed=2,
    )
    assert kernels == {"MatMulIntegerToFloat": 2}
    assert found["y"] > 36
    assert outcome.result.figures["layers"] == outcome.result.figures["integer_kernels"] == 2
    assert outcome.result.figures["weight_bytes"][1] < 0.26 * outcome.result.figures["weight_bytes"][0]


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 21, 23])
def test_every_opset(quantize, opset):
    outcome, kernels, found = quantize(
        f"g (float[N,512] x) => (float[] y) <{WIDE}> {{ y = Gemm <transB=1, alpha=0.5, beta=2.0> (x, w, b) }}", opset
    )
    assert kernels == {"DynamicQuantizeMatMul": 1}
    assert found["y"] > 36
    assert outcome.result.figures.get("opset") == ([opset, 11] if opset < 11 else None)


def test_an_opset_that_cannot_be_converted(quantize, monkeypatch):
    def fail(self, opset):
        raise ModelError(f"cannot convert the model from opset {self.opset} to {opset}: no")

    monkeypatch.setattr(Model, "upgrade", fail)
    skipped = ["cannot convert the model from opset 9 to 11", "takes dynamic scales from opset 11 on"]
    text = f"g (float[N,512] x) => (float[] y) <{WIDE}> {{ y = MatMul (x, w) }}"
    outcome, _, _ = quantize(text, 9, skipped=skipped, changed=0)
    assert outcome.model.opset == 9


@pytest.mark.parametrize("go", [True, False])
def test_branches_read_captured_tensors_and_weights(quantize, go):
    _, kernels, found = quantize(
        """g (float[N,512] x, bool p) => (float[] y) <float[512,512] w, float[512,512] v, float[512] b> {
            h = MatMul (x, w)
            r = Relu (x)
            z = If (p) <
                then_branch = t () => (float[N,512] a) { i = MatMul (r, w) a = Add (i, b) },
                else_branch = e () => (float[N,512] c) { c = MatMul (x, v) }>
            y = Add (h, z) }""",
        feed={"x": normal(4, 512), "p": np.array(go)},
        changed=3,
    )
    assert kernels == {"DynamicQuantizeMatMul": 3}
    assert found["y"] > 36


def test_loop(quantize):
    outcome, kernels, found = quantize(
        """g (float[N,512] x) => (float[N,512] y) <float[512,512] w, int64 n = {3}, bool c = {1}> {
            y = Loop (n, c, x) <body = b (int64 i, bool on, float[N,512] s) => (bool go, float[N,512] t) {
                go = Identity (on) m = MatMul (s, w) k = MatMul (x, w) q = Add (m, k) t = Tanh (q) }> }""",
        changed=2,
        **SMALL,
    )
    assert kernels == {"DynamicQuantizeMatMul": 2}
    assert found["y"] > 33
    assert sum(c.dtype == np.int8 and c.values.size > 1 for c in outcome.model.constants()) == 1


def test_scan(quantize):
    _, kernels, found = quantize(
        """g (float[4,512] x) => (float[] y, float[] z) <float[512,512] w, float[512] s> {
            i = Identity (s)
            y, z = Scan <num_scan_inputs=1, body = b (float[512] p, float[512] v) => (float[512] t, float[512] o) {
                m = MatMul (v, w) t = Add (p, m) o = MatMul (p, w) }> (i, x) }""",
        changed=2,
        **SMALL,
    )
    assert kernels == {"DynamicQuantizeMatMul": 2}
    assert min(found.values()) > 33


def test_weights_behind_other_nodes(parse):
    text = """g (float[N,512] x) => (float[] y) <float[512,512] w, float16[512] h> {
        t = Transpose (w) i = Identity (t) s = Reshape (i, d) c = Cast <to=1> (h) d = Constant <value_ints=[512,512]> ()
        m = MatMul (x, s) y = Add (c, m) }"""
    lines = text.replace("d = Constant <value_ints=[512,512]> ()", "").replace(
        "{\n", "{ d = Constant <value_ints=[512,512]> ()\n"
    )
    model = Model.from_proto(parse(lines))
    PassManager([DYNAMIC]).run(model, open_dataset("synthetic", model.inputs, samples=2))
    assert audit(model).operators == {"DynamicQuantizeMatMul": 1}


def test_embeddings(quantize):
    text = "g (int64[N,M] x) => (float[] y) <float[500,64] e> { y = Gather (e, x) }"
    feed = {"x": np.arange(-5, 7).reshape(3, 4)}
    outcome, _, found = quantize(text, feed=feed, changed=1, e=normal(500, 64) * np.exp(3 * normal(500, 1)))
    assert found["y"] > 38
    assert outcome.result.figures["embeddings"] == 1
    assert outcome.result.figures["weight_bytes"] == [128_000, 34_000]
    quantize(text, feed=feed, step=QuantDynamic(embeddings=False), skipped=["embeddings=false"], changed=0)


def test_lstm(quantize):
    text = """g (float[S,1,64] x) => (float[] y) <float[1,512,64] w, float[1,512,128] r> {
        y, h, c = LSTM <hidden_size=128> (x, w, r) }"""
    weights = {"w": normal(1, 512, 64) / 8, "r": normal(1, 512, 128) / 11}
    outcome, kernels, found = quantize(text, feed={"x": normal(9, 1, 64)}, changed=1, **weights)
    assert kernels == {"DynamicQuantizeLSTM": 1}
    assert found["y"] > 33
    assert outcome.model.opset_of("com.microsoft") == 1


def test_what_stays_float(quantize):
    nodes = """h = Conv (x, k) a = MatMul (h, s) g, c = GRU <hidden_size=8> (z, u, u) t = MatMul (a, a)
        v = MatMul (a, w) y = MatMul (v, w)"""
    weights = "float[1,1,1,1] k, float[8,8] s, float[3,1,8] z, float[1,24,8] u, float[8,8] w"
    text = f"g (float[1,1,8,8] x) => (float[] y, float[] t, float[] c) <{weights}> {{ {nodes} }}"
    why = [
        "exclude names no node",
        "hardly gains",
        "too small to gain",
        "GRU has no integer kernel",
        "run time",
        "too small",
        "excluded",
    ]
    quantize(text, feed={"x": normal(1, 1, 8, 8)}, step=QuantDynamic(exclude="nothing+y"), skipped=why, changed=0)


def test_float16_models_are_left_alone(quantize):
    text = "g (float16[N,512] x) => (float16[N,512] y) <float16[512,512] w> { y = MatMul (x, w) }"
    quantize(text, feed={"x": normal(2, 512).astype(np.float16)}, skipped=["float16, not float32"], changed=0, w=0.01)


@pytest.mark.parametrize("worst", [np.inf, np.nan])
def test_weights_that_are_not_finite(quantize, worst):
    weight = normal(512, 512)
    weight[3, 4] = worst
    text = "g (float[N,512] x) => (float[N,512] y) <float[512,512] w> { y = MatMul (x, w) }"
    quantize(text, skipped=["not all finite"], changed=0, w=weight)


@pytest.mark.parametrize("step", [DYNAMIC, Quant()])
def test_models_that_are_quantized_already(check_pass, parse, step):
    text = f"g (float[N,512] x) => (float[N,512] y) <{WIDE}> {{ y = MatMul (x, w) }}"
    once = check_pass(DYNAMIC, parse(text), feed={"x": normal(2, 512)}, changed=1).model.to_proto()
    outcome = check_pass(step, once, feed={"x": normal(2, 512)}, changed=0, skipped=None)
    assert "the model is quantized already: it holds" in outcome.reasons[0]


def test_nodes_without_names_and_with_one_name(check_pass, parse):
    proto = parse(
        """g (float[N,512] x, bool p) => (float[] y) <float[512,512] w, float[512,512] v, float[512,8] u> {
            a = MatMul (x, w)
            y = If (p) <
                then_branch = t () => (float[N,8] c) { c = MatMul (a, u) },
                else_branch = e () => (float[N,8] d) { r = MatMul (x, v) d = Slice (r, o, i, j) }> }""".replace(
            "float[512,8] u", "float[512,8] u, int64[1] o = {0}, int64[1] i = {8}, int64[1] j = {1}"
        )
    )
    branches = [a.g for a in proto.graph.node[1].attribute]
    branches[0].node[0].name = branches[1].node[0].name = "twin"
    feed = {"x": normal(2, 512), "p": np.array(False)}
    outcome = check_pass(DYNAMIC, proto, feed=feed, changed=2, skipped=None)
    assert outcome.reasons == ["it is too small to gain: it would take 0.5 us more in integers"]
    assert Counter(n.kernel for n in audit(outcome.model).nodes) == {"DynamicQuantizeMatMul": 2, "MatMul": 1}


def test_a_layer_that_the_runtime_leaves_float_is_undone(quantize, monkeypatch):
    """Were there an operator without a kernel after all."""
    from onnxopt.runtime import audit as module

    monkeypatch.setattr(module, "INTEGER_KERNELS", module.INTEGER_KERNELS - {"DynamicQuantizeLSTM"})
    text = """g (float[S,1,512] x) => (float[] y, float[] z)
        <float[1,512,512] w, float[1,512,128] r, float[512,512] m> {
        z, h, c = LSTM <hidden_size=128> (x, w, r) y = MatMul (x, m) }"""
    feed = {"x": normal(3, 1, 512)}
    monkeypatch.setattr(module, "PRODUCTS", (*module.PRODUCTS, "DynamicQuantizeLSTM"))
    _, kernels, _ = quantize(text, feed=feed, skipped=None, changed=1)
    assert kernels == {"LSTM": 1, "DynamicQuantizeMatMul": 1}


def test_a_model_that_fails_in_integers_is_left_float(quantize, monkeypatch):
    from onnxopt.core.context import Context

    def fail(*_args, **_options):
        raise ExecutionError("ONNX Runtime cannot load the model: no")

    monkeypatch.setattr(Context, "activations", fail)
    text = f"g (float[N,512] x) => (float[N,512] y) <{WIDE}> {{ y = MatMul (x, w) }}"
    quantize(text, skipped=["left float as a whole, because in integers: ONNX Runtime cannot load"], changed=0)


@pytest.mark.parametrize(("target", "reduced"), [(X86_AVX2, 512), (X86_AVX512_VNNI, None)])
def test_targets_that_add_products_in_pairs(parse, target, reduced):
    model = Model.from_proto(parse(f"g (float[N,512] x) => (float[N,512] y) <{WIDE}> {{ y = MatMul (x, w) }}", w=1))
    report = PassManager([DYNAMIC]).run(model, open_dataset("synthetic", model.inputs, samples=2), target=target)
    assert report.passes[-1].figures.get("reduced_channels") == reduced


def test_beside_layers_with_static_scales(parse):
    model = Model.from_proto(
        parse(
            """g (float[4,8,8,8] x) => (float[] y) <float[8,8,3,3] k, float[512,512] w, float[512,512] v> {
                c = Conv <pads=[1,1,1,1]> (x, k) r = Relu (c) f = Flatten (r)
                [first] a = MatMul (f, w) t = Tanh (a) [second] y = MatMul (t, v) }""",
            **SMALL,
        )
    )
    for node in model.graph.nodes:
        node.name = node.name or node.outputs[0].name
    exact = Session(model)
    dataset = open_dataset("synthetic", model.inputs, samples=8)
    layers = [n.name for n in model.graph.nodes if n.op == "MatMul"]
    PassManager([Quant(exclude="+".join(layers), effort="fast", activations="static")]).run(model, dataset)
    quantize_layers(model, layers)
    assert Counter(n.kernel for n in audit(model).nodes) == {"QLinearConv": 1, "DynamicQuantizeMatMul": 2}
    feed = next(iter(dataset.batches(4)))
    assert sqnr(exact.run(feed)["y"], Session(model).run(feed)["y"]) > 28


def test_sample_transformer():
    original = load(SAMPLES / "digits_transformer.onnx")
    model = original.clone()
    dataset = open_dataset(SAMPLES / "digits_test.npz", original.inputs, samples=64)
    outcome = PassManager([DYNAMIC]).run(model, dataset)
    assert outcome is not None
    feed = next(iter(dataset.batches(64)))
    assert sqnr(*(Session(m).run(feed)["logits"] for m in (original, model))) > 45
    kernels = Counter(n.kernel for n in audit(model).nodes if n.integer)
    assert kernels == {"MatMulIntegerToFloat": 6, "DynamicQuantizeMatMul": 6}
    onnx.checker.check_model(model.to_proto(), full_check=True)
