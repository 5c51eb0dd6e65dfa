"""Static quantization: what becomes an integer kernel, how close the answers stay, and each reason to leave a node."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxopt.core.context import Context
from onnxopt.core.manager import PassManager
from onnxopt.data.dataset import open_dataset
from onnxopt.errors import ModelError
from onnxopt.graph.io import load
from onnxopt.graph.model import Model
from onnxopt.graph.verify import faults
from onnxopt.passes.quant import Quant
from onnxopt.quantization.eligible import is_layer
from onnxopt.runtime.audit import audit
from onnxopt.runtime.session import Session

QUANT = Quant(effort="fast", activations="static")


@pytest.fixture
def quantize(check_pass, parse) -> Callable[..., Any]:
    """Quantize a model of ``x`` given by its nodes; what came of it, what executes, and the SQNR of each output."""

    def run(nodes, weights, x="float[N,4,8,8]", step=QUANT, y="float[] y", opset=17, skipped=(), feed=None, **values):
        text = f"g ({x} x) => ({y}) <{weights}> {{ {nodes} }}"
        before = parse(text, opset=opset, **values)
        outcome = check_pass(step, before, skipped=skipped, size=32, feed=feed)
        after = Session(outcome.model).run(outcome.feed)
        executed = audit(outcome.model)
        kernels = Counter(n.kernel for n in executed.nodes)
        return SimpleNamespace(
            outcome=outcome,
            audit=executed,
            kernels=kernels,
            figures=outcome.result.figures,
            sqnr={name: sqnr(value, after[name]) for name, value in outcome.before.items()},
        )

    return run


def sqnr(exact, rounded) -> float:
    if np.array_equal(exact, rounded, equal_nan=True):
        return float("inf")
    exact, rounded = exact.astype(np.float64), rounded.astype(np.float64)
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - rounded).sum()))


CONV = "float[8,4,3,3] w, float[8] b, float[8,8,3,3] v, float[8] c"
TOKENS = "float[N,3,16]"
DENSE = "float[16,24] w, float[24] b, float[24,8] v, float[8] c"


@pytest.mark.parametrize(
    ("nodes", "weights", "x", "kernels", "others", "least"),
    [
        ("h = Conv <pads=[1,1,1,1]> (x, w, b) r = Relu (h) y = Conv (r, v, c)", CONV, None, {"QLinearConv": 2}, [], 35),
        ("y = Conv (x, w)", CONV, None, {"QLinearConv": 1}, [], 36),
        ("y = Conv <group=4> (x, w, b)", "float[8,1,3,3] w, float[8] b", None, {"QLinearConv": 1}, [], 36),
        ("y = Conv (x, w, b)", "float[8,4,3] w, float[8] b", "float[N,4,16]", {"QLinearConv": 1}, [], 36),
        ("y = Conv (x, w, b)", "float[8,4,2,2,2] w, float[8] b", "float[N,4,4,4,4]", {"QLinearConv": 1}, [], 36),
        ("y = Gemm (x, w, b)", DENSE, "float[N,16]", {"QGemm": 1}, [], 38),
        (
            "y = Gemm <transB=1, alpha=-0.5, beta=3.0> (x, w, b)",
            "float[24,16] w, float b",
            "float[N,16]",
            {"QGemm": 1},
            [],
            38,
        ),
        ("h = Gemm (x, w, b) r = Relu (h) y = Gemm (r, v, c)", DENSE, "float[N,16]", {"QGemm": 2}, [], 36),
        ("h = MatMul (x, w) y = Add (b, h)", DENSE, "float[N,16]", {"QGemm": 1}, [], 38),
        ("h = MatMul (x, w) y = Add (h, x)", "float[16,16] w", "float[N,16]", {"QGemm": 1}, ["Add"], 38),
        ("h = MatMul (x, w) y = Add (h, k)", DENSE + ", float k", TOKENS, {"MatMulIntegerToFloat": 1}, ["Add"], 38),
        ("h = MatMul (x, w) y = Add (h, b)", DENSE, TOKENS, {"MatMulIntegerToFloat": 1}, ["Add"], 38),
        ("h = MatMul (x, w) y = Add (h, x)", "float[16,16] w", TOKENS, {"MatMulIntegerToFloat": 1}, ["Add"], 38),
        (
            "h = MatMul (x, w) a = Add (h, b) r = Relu (a) k = MatMul (r, v) y = Add (c, k)",
            DENSE,
            TOKENS,
            {"MatMulIntegerToFloat": 2},
            ["Add", "Add"],
            36,
        ),
    ],
)
def test_layers_become_integer_kernels(quantize, nodes, weights, x, kernels, others, least):
    done = quantize(nodes, weights, x or "float[N,4,8,8]")
    assert done.kernels == kernels
    assert sorted(done.audit.operators.keys() & {"Add", "Relu"}) == sorted(set(others))
    assert done.sqnr["y"] > least
    assert done.figures["layers"] == done.figures["integer_kernels"] == sum(kernels.values())
    assert done.figures["float_islands"] == 0


TWO = "float[8,4,3,3] w, float[8] b, float[8,8,3,3] v, float[8] c, float[8,4,1,1] u"


@pytest.mark.parametrize(
    ("between", "weights", "kernel"),
    [
        ("s = Conv <pads=[1,1,1,1]> (r, v, c) t = Add (s, r) z = Relu (t)", TWO, "QLinearAdd"),
        ("s = Conv <pads=[1,1,1,1]> (r, v, c) t = Sigmoid (s) z = Mul (s, t)", TWO, "QLinearMul"),
        ("s = Conv <pads=[1,1,1,1]> (r, v, c) z = LeakyRelu (s)", TWO, "QLinearLeakyRelu"),
        ("s = Conv (x, u) z = Concat <axis=1> (r, s)", TWO.replace("[8,8,3,3] v", "[8,16,3,3] v"), "QLinearConcat"),
        ("z = Concat <axis=1> (r, k)", TWO.replace("[8,8,3,3]", "[8,9,3,3]") + ", float[32,1,8,8] k", "QLinearConcat"),
        ("z = AveragePool <kernel_shape=[2,2]> (r)", TWO, None),
        ("z = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1> (r)", TWO, None),
        ("z = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)", TWO, "NhwcMaxPool"),
        ("z = Clip (r, lo, hi)", TWO + ", float lo = {0.0}, float hi = {6.0}", None),
        ("z = Clip (r, , hi)", TWO + ", float hi = {1.0}", None),
    ],
)
def test_operators_between_layers(quantize, between, weights, kernel):
    activation = "h" if "Clip" in between else "r = Relu (h)"
    if "Clip" in between:
        between, activation = between.replace("(r,", "(h,"), ""
    nodes = f"h = Conv <pads=[1,1,1,1]> (x, w, b) {activation} {between} y = Conv (z, v, c)"
    done = quantize(nodes, weights)
    assert done.audit.conversions == 2  # the graph's input and its output, nothing between them
    assert kernel is None or done.audit.operators[kernel] == 1
    assert done.audit.operators.keys().isdisjoint({"Relu", "Clip", "Add", "Mul", "Sigmoid", "Concat", "AveragePool"})
    assert done.sqnr["y"] > 30


def test_answers_of_layers_with_float_outputs_stay_float(quantize):
    nodes = "h = Conv (x, w, b) f = Flatten (h) y = Gemm <transB=1> (f, v)"
    done = quantize(nodes, "float[8,4,3,3] w, float[8] b, float[5,288] v")
    assert done.outcome.model.graph.outputs[0].inputs[0].op == "Gemm"
    assert done.audit.operators["QGemm"] == 1
    assert "DequantizeLinear" not in done.audit.operators


def test_only_one_quantization_of_a_tensor_with_many_readers(quantize):
    nodes = """
        a = Conv (x, w, b)
        c = Conv (x, v)
        y = Concat <axis=1> (a, c)
        d = Relu (x)
        e = ReduceMean <axes=[2,3], keepdims=0> (d)
    """
    done = quantize(nodes, "float[8,4,3,3] w, float[8] b, float[6,4,3,3] v", y="float[] y, float[] e")
    assert sum(n.op == "QuantizeLinear" for n in done.outcome.model.graph.nodes if n.inputs[0].name == "x") == 1
    relu = next(n for n in done.outcome.model.graph.nodes if n.op == "Relu")
    assert relu.inputs[0].name == "x"  # a float reader of a float tensor keeps it as it is
    assert done.sqnr["e"] > 100


def test_weights_that_two_layers_share_are_stored_once(quantize):
    done = quantize("h = Conv <pads=[1,1,1,1]> (x, w) r = Relu (h) y = Conv (r, w)", "float[4,4,3,3] w")
    assert done.kernels == {"QLinearConv": 2}
    assert sum(c.dtype == np.int8 and len(c.shape) == 4 for c in done.outcome.model.constants()) == 1


def test_every_inner_output_keeps_its_name(quantize):
    nodes = "r = Conv (x, w, b) s = Relu (r) t = Transpose <perm=[0,2,3,1]> (s) y = MatMul (t, m)"
    done = quantize(nodes, "float[8,4,3,3] w, float[8] b, float[8,5] m", y="float[] y, float[] r, float[] s, float[] t")
    assert set(done.sqnr) == {"y", "r", "s", "t"}
    assert min(done.sqnr.values()) > 33


def test_movers_carry_integers(quantize):
    nodes = """
        h = Conv <pads=[1,1,1,1]> (x, w, b)
        p = Pad (h, pads)
        s = Slice (p, starts, ends, axes)
        l, r = Split <axis=1> (s, parts)
        c = Concat <axis=1> (r, l)
        t = Transpose <perm=[0,2,3,1]> (c)
        f = Reshape (t, shape)
        y = MatMul (f, m)
    """
    done = quantize(
        nodes,
        "float[8,4,3,3] w, float[8] b, float[8,5] m, int64[8] pads = {0,0,1,1,0,0,1,1}, int64[1] starts = {1},"
        "int64[1] ends = {9}, int64[1] axes = {2}, int64[2] parts = {2,6}, int64[3] shape = {0,-1,8}",
    )
    assert done.audit.conversions == 1
    assert done.sqnr["y"] > 34
    pad = next(n for n in done.outcome.model.graph.nodes if n.op == "Pad")
    zero_point = pad.inputs[0].inputs[0].inputs[2].values
    assert pad.inputs[2].values == zero_point > 0  # what is padded in stands for zero


def test_weights_and_bias_are_within_half_a_step(quantize):
    rng = np.random.default_rng(3)
    exact = {"w": rng.standard_normal((8, 4, 3, 3)) * rng.uniform(0.01, 3, (8, 1, 1, 1)), "b": rng.standard_normal(8)}
    step = Quant(bias_correction=False, effort="fast", activations="static")
    done = quantize("y = Conv (x, w, b)", "float[8,4,3,3] w, float[8] b", step=step, **exact)
    conv = next(n for n in done.outcome.model.graph.nodes if n.op == "Conv")
    scales = [np.asarray(t.inputs[0].inputs[1].values) for t in conv.inputs]
    assert np.array_equal(scales[0] * scales[1], scales[2])
    for tensor, value in zip(conv.inputs[1:], exact.values(), strict=True):
        integers, scale, zero_point = (np.asarray(t.values, np.float64) for t in tensor.inputs[0].inputs)
        shape = (-1, *[1] * (value.ndim - 1))
        assert not zero_point.any()
        assert (np.abs(integers * scale.reshape(shape) - value) <= scale.reshape(shape) * 0.5001).all()


@pytest.mark.parametrize(("channels", "stored"), [(1, 1), (2, 4), (3, 4), (4, 4), (5, 8), (6, 8)])
def test_colours_are_filled_up_to_four_channels(quantize, channels, stored):
    weights = f"float[8,{channels},3,3] w, float[8] b, float[8,8,3,3] v"
    done = quantize("h = Conv (x, w, b) r = Relu (h) y = Conv (r, v)", weights, f"float[N,{channels},8,8]")
    assert done.kernels == {"QLinearConv": 2}
    assert done.sqnr["y"] > 33
    conv = next(n for n in done.outcome.model.graph.nodes if n.op == "Conv")
    integers = conv.inputs[1].inputs[0].inputs[0].values
    assert integers.shape == (8, stored, 3, 3)
    assert not integers[:, channels:].any()
    assert ("Pad" in done.outcome.ops) == (stored > channels)


def test_rows_of_zeros_and_tiny_weights_with_a_large_bias(quantize):
    w = np.random.default_rng(0).standard_normal((8, 4, 3, 3))
    w[2] = 0
    w[5] *= 1e-9
    weights = "float[8,4,3,3] w, float[8] b, float[4,8,1,1] v"
    done = quantize("h = Conv (x, w, b) r = Relu (h) y = Conv (r, v)", weights, w=w)
    assert done.kernels == {"QLinearConv": 2}
    assert done.sqnr["y"] > 33


@pytest.mark.parametrize(
    ("nodes", "weights", "shape"),
    [
        ("y = Gemm (x, w)", "float[64,16] w", (256, 64)),
        ("h = MatMul (x, w) y = Add (b, h)", "float[64,16] w, float[16] b", (64, 4, 64)),
        ("y = Conv (x, w, b)", "float[16,64,1,1] w, float[16] b", (64, 64, 2, 2)),
    ],
)
def test_bias_correction_takes_the_mean_error_out(quantize, nodes, weights, shape):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((16, 64, 1, 1) if "Conv" in nodes else (64, 16)) + 0.5
    feed = {"x": np.abs(rng.standard_normal(shape)).astype(np.float32)}
    x = f"float[{','.join(map(str, shape))}]"
    others = (0, 2, 3) if "Conv" in nodes else tuple(range(len(shape) - 1))
    shift = {}
    for correct in (False, True):
        step = Quant(bias_correction=correct, per_channel=False, effort="fast", activations="static")
        outcome = quantize(nodes, weights, x, step=step, feed=feed, w=w).outcome
        shift[correct] = np.abs((outcome.after["y"] - outcome.before["y"]).mean(axis=others)).max()
    assert shift[True] < 0.1 * shift[False]


def test_one_scale_for_each_weight(quantize):
    w = np.random.default_rng(0).standard_normal((8, 4, 3, 3)) * np.geomspace(0.01, 1, 8).reshape(-1, 1, 1, 1)
    args = ("h = Conv (x, w, b) y = Relu (h)", "float[8,4,3,3] w, float[8] b")
    one, each = (
        quantize(*args, step=Quant(per_channel=p, effort="fast", activations="static"), w=w) for p in (False, True)
    )
    assert one.kernels == each.kernels == {"QLinearConv": 1}
    assert (one.figures["per_channel"], each.figures["per_channel"]) == (False, True)
    assert all(c.shape in ((), (8,)) or c.dtype == np.int8 for c in one.outcome.model.constants())
    assert one.sqnr["y"] < each.sqnr["y"]


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_each_way_of_taking_ranges(quantize, method):
    nodes = "h = Conv (x, w, b) r = Relu (h) y = Conv (r, v, c)"
    done = quantize(nodes, CONV, step=Quant(calibration=method, effort="fast", activations="static"))
    assert done.sqnr["y"] > 20


def test_old_opsets_are_converted(quantize):
    nodes = "h = Conv (x, w, b) r = Clip <min=0.0, max=6.0> (h) s = Squeeze <axes=[3]> (r) y = MatMul (s, m)"
    done = quantize(nodes, "float[8,4,1,8] w, float[8] b, float[8,5] m", opset=10)
    assert done.figures["opset"] == [10, 13]
    assert done.outcome.model.opset == 13
    assert done.kernels == {"QLinearConv": 1, "MatMulIntegerToFloat": 1}
    assert done.sqnr["y"] > 35


def test_an_opset_that_cannot_be_converted(quantize, monkeypatch):
    def refuse(model, opset):
        raise ModelError("cannot convert the model from opset 11 to 13: no adapter")

    monkeypatch.setattr(Model, "upgrade", refuse)
    nodes, weights = "h = Conv (x, w, b) y = Relu (h)", "float[8,4,3,3] w, float[8] b"
    done = quantize(nodes, weights, opset=11, skipped=["no adapter; weights get one scale each"])
    assert done.figures["per_channel"] is False
    assert done.kernels == {"QLinearConv": 1}
    assert quantize(nodes, weights, opset=9, skipped=["no adapter"]).outcome.result.changed == 0


IF = """
g (float[N,4,8,8] x, bool go) => (float[] y) <float[4,4,3,3] w, float[4] b, float[4,4,3,3] v, float[4,4,3,3] u> {
    h = Conv <pads=[1,1,1,1]> (x, w, b)
    r = Relu (h)
    s = If (go) <
        then_branch = yes () => (float[N,4,8,8] t) { t = Relu (r) },
        else_branch = no () => (float[N,4,8,8] e) { e = Conv <pads=[1,1,1,1]> (r, u) }
    >
    y = Conv (s, v)
}
"""


@pytest.mark.parametrize("go", [True, False])
def test_a_tensor_captured_by_a_branch_is_read_rounded(check_pass, parse, go):
    feed = {"x": np.random.default_rng(0).standard_normal((16, 4, 8, 8)).astype(np.float32), "go": np.array(go)}
    outcome = check_pass(QUANT, parse(IF), feed=feed, skipped=["it is in the body of an If, Loop or Scan"])
    after = Session(outcome.model).run(feed)
    assert sqnr(outcome.before["y"], after["y"]) > 33
    assert Counter(n.kernel for n in audit(outcome.model).nodes) == {"QLinearConv": 2, "Conv": 1}


C4 = "float[4,4,3,3] w, float[4] b"


@pytest.mark.parametrize(
    ("nodes", "weights", "x", "why"),
    [
        ("w = Mul (x, x) y = Conv (x, w)", "float[1] u", "float[4,4,3,3]", "its weights are computed at run time"),
        ("c = ReduceMax <axes=[0,2,3],keepdims=0> (x) y = Conv (x, w, c)", C4, None, "its bias is computed"),
        ("y = Conv (k, x)", "float[1,4,8,8] k", "float[5,4,3,3]", "its weights are computed at run time"),
        ("y = MatMul (x, w)", "float[4,8,5] w", None, "its weights have 3 axes, not 2"),
        ("y = Gemm (x, w, b)", "float[16,5] w, float[32,1] b", "float[32,16]", "its bias is not one number per column"),
        ("y = Gemm <transA=1> (x, w)", "float[16,5] w", "float[16,N]", "there is no integer kernel for transA=1"),
        ("y = ConvTranspose (x, w)", "float[4,4,3,3] w", None, "ConvTranspose has no integer kernel"),
        ("y = LSTM <hidden_size=3> (x, w, r)", "float[1,12,4] w, float[1,12,3] r", "float[2,N,4]", "dynamic scales"),
        ("z = Sub (x, x) y = Conv (z, w)", C4, None, "'z' is zero on all of the calibration data"),
        ("z = Mul (x, big) y = Conv (z, w)", C4 + ", float big = {1e30}", None, "'z' holds values as large as 4e+30"),
        ("z = Log (x) y = Conv (z, w)", C4, None, "'z' holds NaN or infinite values"),
    ],
)
def test_layers_that_stay_float(quantize, nodes, weights, x, why):
    done = quantize(nodes, weights, x or "float[N,4,8,8]", skipped=[why])
    assert done.outcome.result.changed == 0
    assert done.sqnr["y"] > 100


def test_infinite_weights(quantize):
    w = np.zeros((4, 4, 3, 3))
    w[0, 0] = np.inf
    done = quantize("y = Conv (x, w)", "float[4,4,3,3] w", skipped=["its weights are not all finite"], w=w)
    assert done.outcome.result.changed == 0


def test_excluded_nodes(quantize):
    nodes = "[first] h = Conv (x, w, b) r = Relu (h) [second] y = Conv (r, v, c)"
    told = ["exclude names no node: none is called so", "excluded"]
    done = quantize(nodes, CONV, step=Quant(exclude="sec*+third", effort="fast", activations="static"), skipped=told)
    assert done.kernels == {"QLinearConv": 1, "Conv": 1}
    assert [s.node for s in done.outcome.result.skips] == ["third", "second"]


def test_a_product_that_the_runtime_fuses_otherwise_is_left_float(quantize):
    nodes = "v = ReduceMean <axes=[0,1], keepdims=0> (x) h = MatMul (x, w) a = Add (h, v) y = MatMul (a, w)"
    why = "ONNX Runtime leaves it float: the Add behind it is fused with it"
    done = quantize(nodes, "float[16,16] w", "float[2,3,16]", skipped=[why])
    assert done.kernels == {"Gemm": 1, "MatMulIntegerToFloat": 1}
    assert done.figures["layers"] == 1


def test_float16_models_are_left_alone(quantize):
    why = "its weights are float16, not float32"
    done = quantize("y = Conv (x, w)", "float16[4,4,3,3] w", "float16[N,4,8,8]", skipped=[why])
    assert done.outcome.result.changed == 0


def test_models_that_are_quantized_already(check_pass, parse):
    nodes = "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)"
    text = f"g (float[N,4] x) => (float[] y) <float s = {{0.1}}, uint8 z = {{3}}> {{ {nodes} }}"
    outcome = check_pass(QUANT, parse(text), skipped=["the model is quantized already: it holds QuantizeLinear"])
    assert outcome.result.changed == 0


def test_nothing_to_quantize_leaves_the_opset(quantize):
    done = quantize("y = Relu (x)", "float[1] w", opset=11)
    assert done.outcome.model.opset == 11


def test_every_graph_of_the_zoo(zoo_model):
    original = Model.from_proto(zoo_model)
    model, dataset = original.clone(), open_dataset("synthetic", original.inputs, samples=48)
    calibration, held_out = dataset.split(1 / 3)
    outcome = QUANT.run(model, Context(original, calibration))
    model.tidy()
    assert faults(model) == []
    executed = audit(model)
    assert outcome.changed == outcome.figures["layers"] <= len(executed.integer)
    assert outcome.changed + len(outcome.skips) == sum(map(is_layer, original.nodes()))
    feed = next(iter(held_out.batches(16)))
    before, after = (Session(m).run(feed) for m in (original, model))
    assert min(sqnr(before[name], after[name]) for name in before) > 20


@pytest.mark.skipif("ONNXOPT_ZOO" not in os.environ, reason="ONNXOPT_ZOO names no folder of models")
@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "layers"), [("cifar10_resnet20", 20), ("in1k_squeezenet1.1", 26), ("in1k_mobilenetv2_1.0", 53)]
)
def test_published_nets_run_in_integers_throughout(name, layers):
    original = load(Path(os.environ["ONNXOPT_ZOO"]) / f"{name}.onnx")
    dataset = open_dataset("synthetic", original.inputs, samples=16)
    model = original.clone()
    PassManager([QUANT]).run(model, dataset)
    executed = audit(model)
    assert len(executed.integer) == len(executed.nodes) == layers
    assert executed.conversions <= 2
    feed = next(iter(dataset.batches(8)))
    (before,), (after,) = (list(Session(m).run(feed).values()) for m in (original, model))
    assert sqnr(before, after) > 15


def test_what_loads_but_does_not_run_in_integers_is_left_float(check_pass, parse):
    """ONNX Runtime moves the channels last between integer convolutions, and forgets to move the axes of a Pad."""
    before = parse(
        """g (float[1,8,8,8] x) => (float[1,8,10,10] y)
            <float[8,8,1,1] v, float[8,8,1,1] w, int64[4] pads = {1, 1, 1, 1}, int32[2] k = {2, 3}> {
            h = Conv (x, v)
            r = Relu (h)
            axes = Cast <to = 7> (k)
            p = Pad (r, pads, , axes)
            y = Conv (p, w)
        }""",
        opset=18,
    )
    outcome = check_pass(QUANT, before, changed=0, skipped=["left float as a whole, because in integers"])
    assert outcome.deviation() == 0


def test_what_loads_not_even_in_integers_is_left_float(check_pass, parse):
    before = parse(
        """g (float[1,8,H,8] x) => (float[] y) <float[8,8,1,1] v, float[8,8,1,1] w, int64[2] sizes = {16, 16}> {
            h = Conv (x, v)
            r = Resize <axes = [2, 3], mode = "nearest"> (h, , , sizes)
            y = Conv (r, w)
        }""",
        opset=18,
    )
    check_pass(QUANT, before, changed=0, skipped=["left float as a whole, because in integers"])


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ('z = Resize <axes = [-2, 3], mode = "nearest"> (r, , scales)', "float[2] scales = {2, 2}"),
        ('z = Resize <axes = [3, 2], mode = "nearest"> (r, , , sizes)', "int64[2] sizes = {7, 20}"),
        ("z = Pad (r, pads, , axes)", "int64[4] pads = {1, 2, 0, 1}, int64[2] axes = {3, -2}"),
    ],
)
def test_nodes_that_name_some_axes_run_between_integer_layers(quantize, nodes, weights):
    layers = "h = Conv <pads=[1,1,1,1]> (x, w, b) r = Relu (h) {} y = Conv (z, v, c)"
    done = quantize(layers.format(nodes), f"{CONV}, {weights}", opset=18)
    assert done.kernels == {"QLinearConv": 2}
    assert done.sqnr["y"] > 30


@pytest.mark.parametrize(
    "node",
    [
        "z = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (r)",
        "z = AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1, count_include_pad=1> (r)",
        "z = Softmax (r)",
        "p = Softmax (r) z = Transpose <perm=[0,1,3,2]> (p)",
    ],
)
def test_floats_between_integers_are_kept_apart_where_the_integer_kernel_is_bad(quantize, node):
    done = quantize(f"h = Conv <pads=[1,1,1,1]> (x, w, b) r = Relu (h) {node} y = Conv (z, v, c)", CONV)
    assert done.kernels == {"QLinearConv": 2}
    assert not {"QLinearAveragePool", "QLinearSoftmax"} & set(done.audit.operators)
    assert done.sqnr["y"] > 30


def test_a_concat_of_boxes_and_scores_keeps_the_scores(quantize):
    heads = (
        "h = Conv (x, w, b) r = Relu (h) m = Conv (r, big) s = Conv (r, v) p = Sigmoid (s) y = Concat <axis=1> (m, p)"
    )
    big = np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32) * 1000
    said = ["on one scale an input would lose its bits"]
    done = quantize(heads, f"{CONV}, float[8,8,3,3] big", big=big, skipped=said)
    assert "QLinearConcat" not in done.audit.operators
    assert done.kernels == {"QLinearConv": 3}


def test_a_concat_that_a_layer_reads_is_quantized_anyway(quantize):
    nodes = "h = Conv (x, w, b) k = Conv (x, small, b) z = Concat <axis=1> (h, k) y = Conv (z, u)"
    small = np.full((8, 4, 3, 3), 1e-6, np.float32)
    done = quantize(nodes, f"{CONV}, float[8,4,3,3] small, float[8,16,3,3] u", small=small)
    assert "QLinearConcat" in done.audit.operators
