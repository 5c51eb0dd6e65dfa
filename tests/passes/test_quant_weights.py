"""Weights of few bits: forms, what the runtime executes, bytes, what stays float, and what data gains."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from onnxopt.core.context import Context
from onnxopt.core.manager import PassManager
from onnxopt.data.dataset import open_dataset
from onnxopt.errors import ExecutionError, ModelError
from onnxopt.graph.io import load
from onnxopt.graph.model import Model
from onnxopt.numerics.blocks import Format
from onnxopt.passes.quant_weights import QuantWeights
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import CORTEX_A53, NATIVE
from onnxopt.weights.weight_only import encode, find

SAMPLES = Path(__file__).parents[2] / "sample_models"
PRODUCT = "g (float[N,96] x) => (float[] y) <float[96,64] w> { y = MatMul (x, w) }"
# What is left of the numbers: 4 bits by blocks of 32, 8 bits with inputs of 8 bits.
ENOUGH = {4: 17, 8: 35}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(10 * np.log10(np.square(expected).sum() / max(np.square(expected - found).sum(), 1e-30)))


@pytest.fixture
def quantize(check_pass, parse):
    """Runs the pass without data to speak of, and gives the outcome and the SQNR of each output as the runtime makes
    it."""

    def run(text, opset=17, feed=None, skipped=(), changed=None, values=None, **options):
        feed = {"x": normal(8, 96)} if feed is None else feed
        step = QuantWeights(**{"rounding": "nearest", **options})
        outcome = check_pass(step, parse(text, opset, **(values or {})), feed=feed, skipped=skipped, changed=changed)
        after = Session(outcome.model).run(feed)
        return outcome, {k: sqnr(v, after[k]) for k, v in outcome.before.items()}

    return run


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [0, 32, 64])
@pytest.mark.parametrize("form", ["qdq", "nbits", "auto"])
@pytest.mark.parametrize("bits", [4, 8])
def test_products(quantize, bits, form, block, symmetric):
    outcome, found = quantize(PRODUCT, bits=bits, form=form, block=block, symmetric=symmetric, changed=1)
    assert found["y"] > ENOUGH[bits] - (2 if block == 0 else 0) - 1.5 * symmetric
    assert outcome.result.figures["executed"] == {"MatMulNBits": 1}
    before, after = outcome.result.figures["weight_bytes"]
    assert before == 96 * 64 * 4
    assert after < before * (bits / 32 * 4 / 3 + 0.06)
    standard = form == "qdq" or (form == "auto" and block == 0)
    assert outcome.ops == (["DequantizeLinear", "MatMul"] if standard else ["MatMulNBits"])
    opset = (13 if bits == 8 and not block else 21) if standard else 17
    assert outcome.model.opset == max(17, opset)


@pytest.mark.parametrize("form", ["qdq", "nbits"])
@pytest.mark.parametrize(
    "gemm",
    [
        "y = Gemm (x, w)",
        "y = Gemm <alpha=0.5> (x, w, b)",
        "y = Gemm <alpha=-1.5, beta=2.0> (x, w, b)",
        "y = Gemm <beta=0.0> (x, w, b)",
        "y = Gemm <transB=1> (x, v, b)",
        "y = Gemm (x, w, c)",
        "y = Gemm (x, w, z)",
    ],
)
def test_gemm(quantize, form, gemm):
    weights = "float[96,64] w, float[64,96] v, float[64] b, float[1,64] c"
    text = f"g (float[N,96] x, float[N,64] z) => (float[] y) <{weights}> {{ {gemm} }}"
    outcome, found = quantize(text, feed={"x": normal(8, 96), "z": normal(8, 64)}, form=form, changed=1)
    assert found["y"] > 17
    # The runtime makes a Gemm again of a product and what is added to it at run time, with decoded weights.
    decoded = form == "qdq" and gemm.endswith("z)")
    assert outcome.result.figures["executed"] == {"DequantizeLinear" if decoded else "MatMulNBits": 1}
    assert "Gemm" not in outcome.ops


@pytest.mark.parametrize("form", ["qdq", "nbits"])
@pytest.mark.parametrize("columns", [100, 33, 40])
def test_a_last_block_that_is_not_full(quantize, form, columns):
    text = f"g (float[N,{columns}] x) => (float[] y) <float[{columns},64] w> {{ y = MatMul (x, w) }}"
    _, found = quantize(text, feed={"x": normal(8, columns)}, form=form, changed=1)
    assert found["y"] > 17


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("shape", "attrs"), [("32,64,3,3", ""), ("32,40,1,1", ""), ("48,8,3,3", "<group=8>")])
def test_convolutions(quantize, shape, attrs, bits, block, symmetric):
    channels = int(shape.split(",")[1]) * (8 if attrs else 1)
    text = f"g (float[1,{channels},6,6] x) => (float[] y) <float[{shape}] w> {{ y = Conv {attrs} (x, w) }}"
    feed = {"x": normal(1, channels, 6, 6)}
    outcome, found = quantize(text, feed=feed, bits=bits, block=block, symmetric=symmetric, changed=1)
    assert found["y"] > {4: 14, 8: 38}[bits]
    assert outcome.result.figures["executed"] == {"DequantizeLinear": 1}
    assert "decoded at every run" in outcome.result.figures["notes"][0]
    quantize(text, feed=feed, conv=False, changed=0, skipped=["conv=false"])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "form", "columns", "op"), [
    (4, "auto", 64, "GatherBlockQuantized"), (8, "nbits", 100, "GatherBlockQuantized"), (4, "auto", 33, "Cast"),
    (4, "qdq", 64, "Cast"),
])  # fmt: skip
@pytest.mark.parametrize("block", [0, 32])
def test_tables(quantize, bits, form, columns, op, symmetric, block):
    text = f"g (int64[N,M] x) => (float[] y) <float[500,{columns}] e> {{ y = Gather (e, x) }}"
    feed = {"x": np.arange(-5, 7).reshape(3, 4)}
    outcome, found = quantize(text, feed=feed, bits=bits, form=form, symmetric=symmetric, block=block, changed=1)
    assert found["y"] > (34 if op == "Cast" or bits == 8 else 14)
    assert op in outcome.ops


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_table_and_a_product_share_their_weights(quantize, bits, symmetric):
    text = """g (int64[N,M] x) => (float[] y, float[] z) <float[500,64] e> {
        y = Gather (e, x) t = Transpose <perm=[1,0]> (e) z = MatMul (y, t) }"""
    feed = {"x": np.arange(-5, 7).reshape(3, 4)}
    outcome, found = quantize(text, feed=feed, bits=bits, symmetric=symmetric, changed=2)
    assert min(found.values()) > (34 if bits == 8 else 14)
    assert outcome.ops == ["GatherBlockQuantized", "MatMulNBits", "Reshape"]
    # Once the integers, twice the scales.
    assert outcome.result.figures["weight_bytes"][1] < 500 * 64 * bits / 8 + 500 * 2 * (2 * 4 + 2) + 100
    outcome, found = quantize(text, feed=feed, bits=bits, symmetric=symmetric, form="qdq", changed=2)
    assert min(found.values()) > (34 if bits == 8 else 14)
    assert outcome.result.figures["executed"] == {"MatMulNBits": 1}


def test_products_share_their_weights_and_bodies_are_included(quantize):
    text = """g (float[N,96] x, bool p) => (float[] y) <float[96,96] w> {
        h = MatMul (x, w) y = If (p) <
            then_branch = t () => (float[N,96] a) { a = MatMul (h, w) },
            else_branch = e () => (float[N,96] c) { c = Neg (h) }> }"""
    outcome, found = quantize(text, feed={"x": normal(8, 96), "p": np.array(True)}, changed=2)
    assert found["y"] > 14
    assert outcome.result.figures["weight_bytes"][1] < 96 * 96 * 0.7
    feed = {"x": normal(8, 96), "p": np.array(True)}
    outcome, _ = quantize(text, feed=feed, changed=2, block=0)
    assert outcome.result.figures["executed"] == {"MatMulNBits": 2}
    quantize(text, feed=feed, changed=0, form="qdq", skipped=["bodies share its weights"] * 2)


def test_what_stays_float(quantize):
    weights = """float[96,4] s, float[96,96] w, float[2,96,96] b, float[4,384,96] l, float[4,384,96] k, float[96,96] r,
        float[96,96] q, float[1,384,96] i, float[1,384,96] j"""
    text = f"""g (float[96,96] x) => (float[] y, float[] z, float[] u, float[] v, float[] o, float[] p, float[] h)
        <{weights}> {{
        a = MatMul (x, s) y = Neg (a) z = MatMul (w, x) u = MatMul (x, b) v = Gemm <transA=1> (x, r)
        o = MatMul (x, q) p = Add (q, x) c = Reshape (x, d) h, f, g = LSTM <hidden_size=96> (c, i, j) }}"""
    text = text.replace("<float[96,4] s", "<int64[3] d = {96, 1, 96}, float[96,4] s")
    why = [
        "small",
        "first factor",
        "not a matrix",
        "transposes its input",
        "read as float by 'p'",
        "no form of few bits for LSTM: quant-dynamic,",
    ]
    why += ["exclude names no node"]
    quantize(text, feed={"x": normal(96, 96)}, exclude="nothing", skipped=why, changed=0)


def test_excluded_not_finite_and_not_float32(quantize):
    quantize(PRODUCT, exclude="y", skipped=["excluded"], changed=0)
    weight = normal(96, 64)
    weight[3, 4] = np.inf
    quantize(PRODUCT, values={"w": weight}, skipped=["not all finite"], changed=0)
    feed = {"x": normal(8, 96) * np.float32(1e-16)}
    quantize(
        PRODUCT, feed=feed, values={"w": normal(96, 64) * 1e16}, skipped=["too large: they reach 4e+16"], changed=0
    )
    quantize(PRODUCT, values={"w": normal(96, 64) * 1e-20}, skipped=["too small: 4e-20 at most"], changed=0)
    half = PRODUCT.replace("float[N", "float16[N").replace("<float[", "<float16[").replace("(float[]", "(float16[]")
    feed = {"x": normal(8, 96).astype(np.float16)}
    quantize(half, feed=feed, skipped=["float16, not float32"], changed=0)
    scaled = "g (float[N,96] x, float[64] c) => (float[] y) <float[96,64] w> { y = Gemm <beta=2.0> (x, w, c) }"
    feed = {"x": normal(8, 96), "c": normal(64)}
    quantize(scaled, feed=feed, skipped=["scales a bias that is computed"], changed=0)
    given = "g (float[1,4,6,6] x, float[8,4,3,3] w) => (float[] y) { y = Conv (x, w) }"
    feed = {"x": normal(1, 4, 6, 6), "w": normal(8, 4, 3, 3)}
    quantize(given, feed=feed, skipped=["computed at run time"], changed=0)
    columns = "g (int64[N] x) => (float[] y) <float[50,64] e> { y = Gather <axis=1> (e, x) }"
    quantize(columns, feed={"x": np.arange(4)}, skipped=["columns, not rows"], changed=0)


def test_what_has_weights_of_another_kind(quantize):
    text = """g (float[1,8,6,6] x, float[N,96] c, int64[N,2] i) => (float[] y, float[] z, float[] u)
        <float[8,16,3,3] w, float[96,64] e, float[30,40] t> {
        y = ConvTranspose (x, w) z = Einsum <equation="ab,bc->ac"> (c, e) u = GatherND (t, i) }"""
    feed = {"x": normal(1, 8, 6, 6), "c": normal(2, 96), "i": np.zeros((2, 2), np.int64)}
    quantize(
        text,
        feed=feed,
        skipped=[f"no form of few bits for {op}: cl" for op in ("ConvTranspose", "Einsum", "GatherND")],
        changed=0,
    )
    text = PRODUCT.replace("MatMul", "com.microsoft.FusedMatMul").replace("float[] y", "float[N,64] y")
    header = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
    quantize(header + text, skipped=["no form of few bits for com.microsoft.FusedMatMul"], changed=0)


@pytest.mark.parametrize(("bits", "changed"), [(8, 0), (4, 1)])
def test_few_inputs_with_a_scale_each_save_nothing(quantize, bits, changed):
    text = "g (float[N,4] x) => (float[] y) <float[4,512] w> { y = MatMul (x, w) }"
    skipped = [] if changed else ["it would save nothing: 8192 bytes now, 10752 then"]
    quantize(text, feed={"x": normal(8, 4)}, bits=bits, changed=changed, skipped=skipped)


@pytest.mark.parametrize("text", [
    "{ f = DequantizeLinear (q, s, z) y = MatMul (x, f) }",
    "{ f = DequantizeLinear (q, s, z) y = Gemm <transB=1> (x, f) }",
    "{ f = DequantizeLinear (q, s, z) t = Transpose <perm=[1,0]> (f) y = MatMul (x, t) }",
    "{ a, b, c = DynamicQuantizeLinear (x) y = MatMulInteger (a, q, c, z) }",
])  # fmt: skip
def test_weights_that_are_integers_already(quantize, text):
    weights = "int8[96,96] q, float s = {0.25}, int8 z = {0}"
    quantize(f"g (float[N,96] x) => (y) <{weights}> {text}", skipped=["integers already"], changed=0)


def test_what_was_quantized_before_is_said(quantize):
    model = quantize(PRODUCT, changed=1)[0].model
    sites, left = find(model, {})
    assert not sites
    assert list(left.values()) == ["its weights are integers already"]


@pytest.mark.parametrize("rounding", ["nearest", "half-quadratic", "balanced"])
def test_rounding_takes_little_memory_beside_its_result(parse, rounding):
    model = Model.from_proto(parse("g (float[N,1024] x) => (y) <float[1024,2048] w> { y = MatMul (x, w) }"))
    (site,), _ = find(model, {})
    site.matrix()
    tracemalloc.start()
    coded, error = encode(site, Format(4, False), 32, rounding)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = coded.steps.nbytes + sum(p.nbytes for p in coded.grid)
    assert peak < size + 8e6
    difference = site.matrix() - coded.values()
    assert error == pytest.approx(np.square(difference).sum() / np.square(site.matrix()).sum(), rel=1e-4)


def test_an_opset_that_cannot_be_converted(quantize, monkeypatch):
    def fail(self, opset):
        raise ModelError(f"cannot convert the model from opset {self.opset} to {opset}: no")

    monkeypatch.setattr(Model, "upgrade", fail)
    quantize(PRODUCT, form="qdq", skipped=["opset 17 to 21: no", "needs a newer opset"], changed=0)
    quantize(PRODUCT, changed=1)


def test_a_model_that_fails_stays_as_it_is(quantize, monkeypatch):
    def fail(*_args, **_options):
        raise ExecutionError("ONNX Runtime cannot load the model: no")

    monkeypatch.setattr(Context, "activations", fail)
    quantize(PRODUCT, skipped=["ONNX Runtime cannot load"], changed=0)


@pytest.mark.parametrize(("target", "level"), [(NATIVE, 4), (CORTEX_A53, 0)])
def test_the_target_chooses_the_accuracy_level(parse, target, level):
    model = Model.from_proto(parse(PRODUCT))
    PassManager([QuantWeights(block=0)]).run(model, open_dataset("synthetic", model.inputs, samples=2), target=target)
    ops = {n.op: n for n in model.graph.nodes}
    assert ("MatMulNBits" in ops) == (level == 0)  # elsewhere the runtime makes it, always of level 4
    model = Model.from_proto(parse(PRODUCT))
    PassManager([QuantWeights()]).run(model, open_dataset("synthetic", model.inputs, samples=2), target=target)
    assert model.graph.nodes[0].attrs["accuracy_level"] == level


@pytest.mark.parametrize(("options", "message"), [
    ({"bits": 5}, "bits is 5"), ({"block": 16}, "block is 16"), ({"samples": 0}, "at least 1"),
])  # fmt: skip
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        QuantWeights(**options)


def test_data_gains():
    original = load(SAMPLES / "digits_mlp.onnx")
    calibration = open_dataset(SAMPLES / "digits_calib.npz", original.inputs, samples=64)
    feed = next(iter(open_dataset(SAMPLES / "digits_test.npz", original.inputs, samples=128).batches(128)))
    found = []
    for rounding in ("nearest", "auto"):
        model = original.clone()
        report = PassManager([QuantWeights(rounding=rounding, block=0, exclude="*layers.1*")]).run(model, calibration)
        found.append(sqnr(*(Session(m).run(feed)["logits"] for m in (original, model))))
    assert found[1] > found[0] + 1
    layers = [layer for layer in report.passes[-1].figures["layers"] if "error" in layer]
    assert layers
    assert all(layer["error"] <= layer["nearest_error"] for layer in layers)


def test_without_data_errors_cancel_behind_a_relu(parse):
    text = """g (float[N,96] x) => (float[] z) <float[96,96] w, float[96,96] v> {
        y = MatMul (x, w) r = Relu (y) z = MatMul (r, v) }"""
    original = Model.from_proto(parse(text))
    expected = Session(original).run({"x": normal(64, 96)})["z"]
    context = Context(original, open_dataset(None, original.inputs, samples=2))
    found = {}
    for rounding in ("nearest", "auto"):
        model = original.clone()
        result = QuantWeights(rounding=rounding).run(model, context)
        ways = tuple(layer["rounding"] for layer in result.figures["layers"])
        found[ways] = sqnr(expected, Session(model).run({"x": normal(64, 96)})["z"])
    assert list(found) == [("nearest", "nearest"), ("half-quadratic", "balanced")]
    plain, better = found.values()
    assert better > plain + 0.5


@pytest.mark.parametrize("block", [0, 32])
def test_narrow_products_are_not_decoded_at_every_run(quantize, block):
    text = "g (float[N,8] x) => (float[] y) <float[8,128] w> { y = MatMul (x, w) }"
    outcome, found = quantize(text, feed={"x": normal(8, 8)}, block=block, changed=1)
    assert found["y"] > 16
    assert outcome.result.figures["executed"] == {"MatMulNBits": 1}
