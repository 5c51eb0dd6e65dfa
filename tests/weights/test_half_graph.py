"""Casts where they must be, and rounding as a processor with float16 would."""

import numpy as np

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.verify import faults
from onnxopt.runtime.session import Session
from onnxopt.weights.half_graph import convert, draft, rounding, store_weights


def test_every_float16_tensor_is_rounded(build) -> None:
    model = build("a = Mul(x, k) b = Mul(a, k) c = Div(b, k) y = Div(c, k)", "float[1] k", "float[4] x")
    made = draft(model, Context(model.clone(), open_dataset(None, model.inputs)), anyway=True)
    assert [n.op for n in made.nodes()] == ["Cast", "Mul", "Mul", "Div", "Div", "Cast"]
    constant = next(c for c in made.constants() if c.dtype == np.float16)
    constant.values = np.array([1000.0], np.float16)
    feed = {"x": np.array([1, 2, 3, 0.25], np.float32)}
    assert np.isfinite(Session(made).run(feed)["y"]).all()
    assert np.isinf(Session(rounding(made), optimize=False).run(feed)["y"]).all()


def test_a_tensor_read_by_both_kinds_is_cast_once(build) -> None:
    nodes = (
        "h = MatMul(x, w) p = CumSum(h, at) q = CumSum(h, at) r = Relu(h) s = MatMul(r, w) t = Add(p, q) y = Add(t, s)"
    )
    model = build(nodes, "float[64,64] w, int64 at", "float[4,64] x", opset=13)
    next(c for c in model.constants() if c.name == "at").values = np.array(1)
    found = convert(model, Context(model.clone(), open_dataset(None, model.inputs)), samples=4, anyway=True)
    assert faults(found.model) == []
    back = [n for n in found.model.nodes() if n.op == "Cast" and n.outputs[0].name == "h"]
    assert len(back) == 1
    assert [n.op for n in back[0].outputs[0].outputs] == ["CumSum", "CumSum"]
    assert sum(n.op == "Cast" for n in found.model.nodes()) == found.casts
    assert sum(c.dtype == np.float16 for c in found.model.constants()) == 1


def test_weights_too_small_to_gain_or_too_large_to_hold_stay(build) -> None:
    model = build(
        "a = MatMul(x, w) b = MatMul(a, v) y = Mul(b, s)",
        "float[64,64] w, float[64,64] v, float[64] s",
        "float[4,64] x",
    )
    named = {c.name: c for c in model.constants()}
    named["v"].values = np.full((64, 64), 1e6, np.float32)
    count, skips = store_weights(model)
    assert count == 1
    assert [s.why for s in skips] == ["its constant 'v' reaches 1e+06, and float16 ends at 65504"]
    assert {c.name: c.dtype for c in model.constants()}["s"] == np.float32


def test_outputs_that_nobody_reads_are_left_out(build) -> None:
    weights = "float[1,64,8] w, float[1,64,16] r"
    model = build("h, c, s = LSTM<hidden_size=16>(x, w, r) y = Relu(h)", weights, "float[3,1,8] x")
    found = convert(model, Context(model.clone(), open_dataset(None, model.inputs)), samples=2, anyway=True)
    assert found.nodes == 2
    assert faults(found.model) == []


def test_a_transpose_that_would_crash_the_runtime_stays_float32(build) -> None:
    nodes = "r = Relu(x) t = Transpose<perm=[1,0,2]>(r) y = MatMul(t, w)"
    model = build(nodes, "float[64,8] w", "float[3,2,64] x")
    found = convert(model, Context(model.clone(), open_dataset(None, model.inputs)), samples=2, anyway=True)
    assert [s.node for s in found.skips if "crashes" in s.why] == ["t"]
    feed = {"x": np.ones((3, 2, 64), np.float32)}
    expected = Session(model).run(feed)["y"]
    np.testing.assert_allclose(Session(found.model).run(feed)["y"], expected, atol=0.05)
