"""float16: which nodes, which numbers, how many Casts, and what is refused."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnxopt.core.context import Context
from onnxopt.graph.model import Model
from onnxopt.passes.fp16 import Fp16
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import NATIVE, TARGETS, Target

WHOLE = Fp16(anyway=True)
FAST = replace(NATIVE, float16=True)
STAY = {"s": "Sigmoid", "e": "Tanh", "y": "Softmax"}
BLOCK = """a (float[N,8,8,8] x) => (float[N,8,8,8] y) <float[16,8,3,3] w, float[16] b, float[8,16,3,3] v> {
    c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, v) y = Add(d, x) }"""


def sqnr(outcome) -> float:
    errors = [(v, outcome.after[k] - v) for k, v in outcome.before.items()]
    return 10 * np.log10(sum((v**2).sum() for v, _ in errors) / sum((e**2).sum() for _, e in errors))


def types(model: Model) -> dict[str, str]:
    """By node: the type of what it makes."""
    proto = onnx.shape_inference.infer_shapes(model.to_proto(), strict_mode=True)
    known = {v.name: v.type.tensor_type.elem_type for v in (*proto.graph.value_info, *proto.graph.output)}
    name = {1: "float32", 10: "float16"}
    return {n.op_type: name.get(known.get(n.output[0], 0), "") for n in proto.graph.node}


def test_a_cast_at_either_end_is_all_that_is_added(check_pass, parse) -> None:
    before = parse(BLOCK)
    outcome = check_pass(WHOLE, before, ops="Cast Conv Relu Conv Add Cast", changed=4)
    assert outcome.result.figures["casts"] == 2
    assert outcome.result.figures["weight_bytes"][1] * 2 == outcome.result.figures["weight_bytes"][0]
    assert types(outcome.model)["Conv"] == types(outcome.model)["Add"] == "float16"
    assert 50 < outcome.result.figures["sqnr_db"] < 75
    assert outcome.deviation() < 2e-3
    assert len(outcome.model.to_proto().SerializeToString()) < 0.6 * len(before.SerializeToString())


def test_weights_alone_keep_the_computation(check_pass, parse) -> None:
    outcome = check_pass(Fp16(weights=True), parse(BLOCK), ops="Cast Cast Conv Relu Conv Add", changed=2)
    assert types(outcome.model)["Conv"] == "float32"
    assert sqnr(outcome) > 65
    assert "makes float32 of the weights when it loads" in outcome.result.figures["notes"][0]


def test_small_weights_that_cost_much_stay_float32(check_pass, parse) -> None:
    text = """a (float[4,64] x) => (float[4,4] y) <float[64,128] w, float[128,4] v, float[64,4] t, float[64,4] u> {
        h = MatMul(x, w) g = MatMul(h, v) p = MatMul(x, t) q = MatMul(x, u) r = Sub(p, q) y = Add(r, g) }"""
    t = np.random.default_rng(0).standard_normal((64, 4)) * 3e3
    outcome = check_pass(Fp16(weights=True), parse(text, t=t, u=t + 0.01, w=0.01), changed=2)
    assert "weights below 2048 bytes stay float32" in outcome.result.figures["notes"][1]
    assert sqnr(outcome) > 40


def test_the_runtime_folds_the_casts_of_weights(check_pass, parse, tmp_path) -> None:
    outcome = check_pass(Fp16(weights=True), parse(BLOCK), changed=2)
    Session(outcome.model, save_optimized=tmp_path / "as_run.onnx")
    assert "Cast" not in {n.op_type for n in onnx.load(tmp_path / "as_run.onnx").graph.node}


def test_what_overflows_stays_float32(check_pass, parse) -> None:
    text = """a (float[4,64] x) => (float[4,8] y) <float[64,64] w, float[64,64] u, float[64,8] v> {
        h = MatMul(x, w) r = MatMul(h, u) s = Mul(r, r) q = MatMul(s, v) n = Sqrt(s) k = MatMul(n, v) y = Add(q, k) }"""
    outcome = check_pass(WHOLE, parse(text, u=300.0), skipped=None)
    assert any("'s' reaches" in why and "ends at 65504" in why for why in outcome.reasons)
    assert all(np.isfinite(v).all() for v in outcome.after.values())
    assert sqnr(outcome) > 50


def test_what_vanishes_stays_float32(check_pass, parse) -> None:
    text = """a (float[4,64] x) => (float[4,64] y) <float[64,64] w, float small, float large> {
        h = MatMul(x, w) t = Mul(h, small) s = Mul(t, small) u = Mul(s, large) y = MatMul(u, w) }"""
    outcome = check_pass(WHOLE, parse(text, small=4e-4, large=6e4), skipped=None)
    assert any("so small that float16 loses" in why for why in outcome.reasons)
    assert sqnr(outcome) > 50


def test_small_constants_that_matter_and_large_bounds(check_pass, parse) -> None:
    text = """a (float[4,64] x) => (float[4,64] y) <float[64,64] w, float eps, float low, float high> {
        h = MatMul(x, w) z = Relu(h) d = Add(z, eps) m = Clip(z, low, high) q = Div(m, d) y = MatMul(q, w) }"""
    outcome = check_pass(WHOLE, parse(text, eps=1e-12, low=-3e38, high=3e38), skipped=None)
    assert any("holds 1e-12, which float16 makes 0" in why for why in outcome.reasons)
    clip = next(n for n in outcome.model.nodes() if n.op == "Clip")
    assert [float(t.values) for t in clip.inputs[1:]] == [-65504, 65504]
    wide = parse("a (float[4,64] x) => (float[] y) <float[64,64] w> { h = MatMul(x, w) y = Relu(h) }", w=1e6)
    outcome = check_pass(WHOLE, wide, changed=0, skipped=None)
    assert any("reaches" in why for why in outcome.reasons)


def test_operators_without_float16_and_exact_inputs(check_pass, parse) -> None:
    text = """a (float[1,4,8,8] x) => (float[] y) <float[4,4,1,1] w, float[4] s> {
        c = Conv(x, w) r = Resize<mode="linear">(c, , s) p = CumSum(r, ax) y = Conv(p, w) }"""
    text = text.replace("float[4] s>", "float[4] s, int64 ax>")
    outcome = check_pass(
        WHOLE, parse(text, opset=13, s=[1, 1, 2, 2], ax=2), skipped=["no float16 CumSum in operator set 13"]
    )
    resize = next(n for n in outcome.model.nodes() if n.op == "Resize")
    assert resize.inputs[2].dtype == np.float32
    assert types(outcome.model)["Resize"] == "float16"
    assert outcome.deviation() < 5e-3


def test_bodies_stay_float32_and_read_what_they_read(check_pass, parse) -> None:
    text = """a (bool c, float[4,64] x) => (float[4,64] y) <float[64,64] w, float[64,64] v> {
        h = MatMul(x, w)
        k = If (c) <then_branch = t () => (float[4,64] y1) { y1 = MatMul(h, v) },
                    else_branch = e () => (float[4,64] y2) { y2 = Neg(h) }>
        y = MatMul(k, w) }"""
    feed = {"c": np.array(True), "x": np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)}
    outcome = check_pass(WHOLE, parse(text), feed=feed, skipped=["bodies compute stays float32"])
    assert sqnr(outcome) > 50
    assert all(c.dtype == np.float16 for c in outcome.model.constants() if c.values.size > 16)


def test_a_cast_of_integers_makes_float16_at_once(check_pass, parse) -> None:
    text = """a (int64[4,64] x) => (float[] y) <float[64,64] w> {
        f = Cast<to=1>(x) h = MatMul(f, w) i = Cast<to=7>(h) g = Cast<to=1>(i) y = MatMul(g, w) }"""
    outcome = check_pass(WHOLE, parse(text), ops="Cast MatMul Cast Cast MatMul Cast")
    assert sqnr(outcome) > 30


def test_lone_nodes_are_not_wrapped_in_casts(check_pass, parse) -> None:
    text = "a (float[4,6] x) => (float[] y) { r = Relu(x) t = Transpose(r) y = Abs(t) }"
    assert check_pass(WHOLE, parse(text), skipped=None).result.figures.get("casts", 0) <= 2
    text = "a (float[4,6] x) => (float[] y) { y = Relu(x) }"
    check_pass(WHOLE, parse(text), changed=0, ops="Relu", skipped=["it hardly gains by float16"])
    text = "a (float[4,6] x, float[4,6] z) => (float[4,6] y, float[4,6] k) { y = Add(x, z) k = Relu(y) }"
    check_pass(WHOLE, parse(text), changed=0, ops="Add Relu", skipped=["as many Casts as nodes"])


def test_sequences_types_by_attribute_and_other_domains_stay(check_pass, parse) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    a (float[4,64] x) => (float[4,64] y) <float[64,64] w, int64 at> {
        h = MatMul(x, w) s = SequenceConstruct(h, x) e = SequenceAt(s, at)
        r = EyeLike(h) q = Add(e, r) g = com.microsoft.Gelu(q) y = MatMul(g, w) }"""
    outcome = check_pass(WHOLE, parse(text, at=0), skipped=None)
    for piece in ("handles sequences", "its type is an attribute", "nothing is known of com.microsoft.Gelu"):
        assert any(piece in why for why in outcome.reasons)
    assert sqnr(outcome) > 45


def test_what_cannot_be_run_is_given_up(check_pass, parse, monkeypatch) -> None:
    monkeypatch.setattr("onnxopt.weights.half._UNABLE", {})
    text = """a (float[4,4] x) => (float[4,4] y) <int64[1,4] i, float[1,4] u> {
        r = Relu(x) m = ScatterElements<reduction="add">(r, i, u) y = Abs(m) }"""
    check_pass(WHOLE, parse(text, opset=18, i=0), changed=0, skipped=["what it becomes cannot be run: ONNX Runtime"])


def test_models_with_integers_are_refused(check_pass, parse) -> None:
    text = "a (float[1,64] x) => (float[] y) <int8[64,32] w, float s> { d = DequantizeLinear(w, s) y = MatMul(x, d) }"
    check_pass(WHOLE, parse(text, s=0.01), changed=0, skipped=["it holds integers ('d')"])


def run(model: Model, target: str | Target, step: Fp16, data):
    target = TARGETS[target] if isinstance(target, str) else target
    return step.run(model, Context(model.clone(), data, target=target))


def test_each_target_has_its_say(parse) -> None:
    from onnxopt.data.dataset import open_dataset

    model = Model.from_proto(parse(BLOCK))
    data = open_dataset(None, model.inputs)
    refused = run(model.clone(), "x86-64-avx2", Fp16(), data)
    assert refused.skips[0].why.startswith(
        "x86-64-avx2 has no float16 arithmetic: ONNX Runtime has no float16 Conv, Relu, Add there, and converts"
    )
    assert run(model.clone(), "arm64-cortex-a76", Fp16(), data).changed
    assert not run(model.clone(), "arm64-cortex-a53", Fp16(), data).changed
    assert run(model.clone(), "arm64-cortex-a53", Fp16(weights=True), data).changed == 2


def test_here_time_decides(parse, monkeypatch) -> None:
    from onnxopt.data.dataset import open_dataset
    from onnxopt.passes import fp16
    from onnxopt.runtime.timing import Timing

    model = Model.from_proto(parse(BLOCK))
    data = open_dataset(None, model.inputs)
    for speed, changed in ((0.8, 0), (1.5, 4)):
        times = np.full(5, speed), np.ones(5)
        monkeypatch.setattr(fp16, "_speed", lambda *_, times=times: Timing.of(*times))
        result = run(model.clone(), FAST, Fp16(), data)
        assert result.changed == changed
        assert result.figures["speed"] == [speed] * 3
    monkeypatch.undo()
    assert run(model.clone(), FAST, Fp16(), data).figures["speed"][0] > 0
    refused = run(model.clone(), replace(NATIVE, float16=False), Fp16(), data)
    assert refused.skips[0].why.startswith("this machine has no float16 arithmetic")
    assert not refused.figures


def test_what_has_no_kernel_on_the_target_stays_float32(parse) -> None:
    from onnxopt.data.dataset import open_dataset

    text = """a (float[1,8,9,9] x) => (float[] y) <float[16,8,3,3] w, float[16,16,1,1] v> {
        c = Conv(x, w) s = Sigmoid(c) m = Mul(c, s) p = AveragePool<kernel_shape=[2,2]>(m) q = Conv(p, v) e = Tanh(q)
        r = Relu(e) y = Softmax(r) }"""
    pool = "ONNX Runtime has no float16 kernel for AveragePool after operator set 18 on arm64-cortex-a76"
    for opset, skipped, nodes in ((13, {}, 4), (19, {"p": pool}, 3)):
        model = Model.from_proto(parse(text, opset=opset))
        data = open_dataset(None, model.inputs)
        result = run(model, "arm64-cortex-a76", Fp16(), data)
        blocked = {n: f"ONNX Runtime has no float16 kernel for {op} on arm64-cortex-a76" for n, op in STAY.items()}
        assert {s.node: s.why for s in result.skips} == blocked | skipped
        assert (result.figures["nodes"], result.figures["nodes_with_kernel"]) == (nodes, nodes)
        assert model.opset == max(opset, 14)
        assert [n.op for n in model.nodes() if n.op == "Relu" and n.inputs[0].dtype == np.float16] == []
    result = run(Model.from_proto(parse(text)), "arm64-cortex-a53", WHOLE, data)
    assert (result.figures["nodes"], result.figures["nodes_with_kernel"]) == (8, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"weights": True, "anyway": True}, "leave anyway out"), ({"samples": 0}, "samples must be at least 1")],
)
def test_options_that_cannot_be_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Fp16(**options)
