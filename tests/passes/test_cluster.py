"""Few levels that weights share: how many, how stored, how near, and what is left alone."""

import numpy as np
import pytest

from onnxopt.core import spec
from onnxopt.core.manager import plan
from onnxopt.graph.compressed import compressed_bytes
from onnxopt.graph.model import Model
from onnxopt.passes.cluster import Cluster
from onnxopt.runtime.session import Session

TWO = "a (float[N,8,8,8] x) => (float[N,4,8,8] y) <float[96,8,3,3] w, float[96] b, float[4,96,3,3] v> {{ {} }}"
CHAIN = TWO.format("c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) y = Conv<pads=[1,1,1,1]>(r, v)")


def sqnr(outcome) -> float:
    errors = [(v, outcome.after[k] - v) for k, v in outcome.before.items()]
    return 10 * np.log10(sum((v**2).sum() for v, _ in errors) / sum((e**2).sum() for _, e in errors))


def dense(model: Model, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """What a layer's weight becomes when the model runs."""
    node = next(n for n in model.nodes() if n.op == name)
    feed = {t.name: np.zeros([d if isinstance(d, int) else 1 for d in t.shape], t.dtype) for t in model.inputs}
    values = Session(model, outputs=[node.inputs[1].name], optimize=False).run(feed)[node.inputs[1].name]
    assert values.shape == shape
    return values


@pytest.mark.parametrize(
    ("options", "levels", "factor"),
    [({}, 16, 5.9), ({"levels": 256}, 256, 2.9), ({"ternary": True}, 3, 9.8), ({"binary": True}, 2, 9.9)],
)
def test_every_channel_has_so_many_weights_and_the_file_shrinks(check_pass, parse, options, levels, factor) -> None:
    before = parse(CHAIN)
    outcome = check_pass(Cluster(**options), before, changed=2)
    weight = dense(outcome.model, "Conv", (96, 8, 3, 3))
    assert max(len(np.unique(channel)) for channel in weight) <= levels
    first, last = outcome.result.figures["weight_bytes"]
    assert first / last > factor
    assert len(before.SerializeToString()) > 0.7 * factor * last
    assert {layer["levels"] for layer in outcome.result.figures["layers"]} == {levels}


def test_data_say_which_weight_takes_which_level(check_pass, parse) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((6, 4, 8, 8)) @ rng.standard_normal((8, 8))).astype(np.float32)
    feed = {"x": np.concatenate([x, x[:, ::-1] + 0.1 * rng.standard_normal(x.shape)], 1).astype(np.float32)}
    seen = check_pass(Cluster(levels=4), parse(CHAIN), feed=feed, changed=2)
    blind = check_pass(Cluster(levels=4, data=False), parse(CHAIN), feed=feed, changed=2)
    assert sqnr(seen) > sqnr(blind) + 5
    for layer in seen.result.figures["layers"]:
        assert layer["error"] < 0.7 * layer["plain"]
    assert blind.result.figures["layers"][0]["error"] is None


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("y = ConvTranspose<strides=[2,2]>(x, w)", "float[8,6,4,4] w"),
        ("y = ConvTranspose<group=2>(x, w)", "float[8,3,7,7] w"),
        ("y = Conv<group=8,pads=[3,3,3,3]>(x, w)", "float[24,1,7,7] w"),
        ("f = Flatten(x) y = Gemm<transB=1,alpha=0.5>(f, w, b)", "float[9,512] w, float[9] b"),
        ("y = MatMul(x, w)", "float[8,130] w"),
        ("y = MatMul(w, x)", "float[130,8] w"),
        ("y = MatMul(x, w)", "float[8,8,40] w"),
    ],
)
def test_every_kind_of_layer_is_near(check_pass, parse, text, weights) -> None:
    model = parse(f"a (float[2,8,8,8] x) => (float[] y) <{weights}> {{ {text} }}")
    outcome = check_pass(Cluster(), model, changed=1)
    assert sqnr(outcome) > 17


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_recurrent_layers_are_near(check_pass, parse, op) -> None:
    gates = {"LSTM": 4, "GRU": 3}[op]
    shapes = f"float[1,{gates * 24},20] w, float[1,{gates * 24},24] r"
    text = f"a (float[5,2,20] x) => (float[] y) <{shapes}> {{ y = {op}<hidden_size=24>(x, w, r) }}"
    sizes = (("w", 20), ("r", 24))
    rng = np.random.default_rng(0)
    weights = {k: 0.2 * rng.standard_normal((1, gates * 24, n)) for k, n in sizes}
    outcome = check_pass(Cluster(), parse(text, **weights), changed=2)
    assert sqnr(outcome) > 17


def test_a_table_is_stored_once_for_lookup_and_product(check_pass, parse) -> None:
    text = "a (int64[2,5] x) => (float[] y) <float[200,32] w, float[32,32] v> "
    text += "{ e = Gather(w, x) m = MatMul(e, v) t = Transpose(w) y = MatMul(m, t) }"
    outcome = check_pass(Cluster(), parse(text), changed=2)
    assert sum(c.name == "w.codes" for c in outcome.model.constants()) == 1
    assert sqnr(outcome) > 15


def test_weights_in_bodies_are_made_outside(check_pass, parse) -> None:
    text = """a (bool c, float[4,64] x) => (float[4,32] y) <float[64,32] w> {
        y = If (c) <then_branch = t () => (float[4,32] y1) { y1 = MatMul(x, w) },
                    else_branch = e () => (float[4,32] y2) { z = MatMul(x, w) y2 = Neg(z) }>
    }"""
    feed = {"c": np.array(True), "x": np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)}
    outcome = check_pass(Cluster(), parse(text), changed=1, feed=feed)
    assert [n.op for n in outcome.model.graph.nodes][-1] == "If"
    assert sqnr(outcome) > 17


def test_old_operator_sets_are_taken(check_pass, parse) -> None:
    text = "a (float[1,3,9,9] x) => (float[] y) <float[40,3,7,7] w> { y = Conv(x, w) }"
    for opset in (7, 9, 11, 21):
        check_pass(Cluster(binary=True), parse(text, opset=opset), changed=1)


def test_what_is_left_alone_is_told(check_pass, parse) -> None:
    text = "a (float[1,8] x) => (float[] y, float[8,400] w3) <float[8,8] w1, float[8,400] w2> "
    text += "{ a1 = MatMul(x, w1) y = MatMul(a1, w2) w3 = Identity(w2) }"
    check_pass(Cluster(exclude="y"), parse(text), changed=0, skipped=["it would save nothing: 256 bytes", "excluded"])
    chain = parse(CHAIN)
    check_pass(Cluster(keep_ends=True), chain, changed=0, skipped=["first or last"] * 2)
    check_pass(Cluster(exclude="nobody"), chain, changed=2, skipped=["exclude names no node"])
    lone = parse("a (float[1,25] x) => (float[] y) <float[25,25] w> { y = MatMul(x, w) }")
    check_pass(Cluster(binary=True), lone, changed=0, skipped=["all layers together 981 bytes"])
    broken = parse(CHAIN, w=np.nan)
    check_pass(Cluster(), broken, changed=1, skipped=["its weights hold NaN or infinity"])


def test_quantized_layers_keep_their_integers(check_pass, parse) -> None:
    text = """a (float[1,64] x) => (float[] y) <int8[64,32] w, float s> {
        d = DequantizeLinear(w, s) y = MatMul(x, d) }"""
    check_pass(Cluster(), parse(text, s=0.01), changed=0, skipped=["integers already"])


def test_it_runs_last_and_quant_leaves_what_it_stored() -> None:
    order = [p.name for p in plan(spec.parse("cluster,quant,svd,prune")).steps if p.name in ("cluster", "quant", "svd")]
    assert order == ["svd", "quant", "cluster"]


def test_compressed_it_is_smaller_still(check_pass, parse) -> None:
    before = parse(CHAIN)
    figures = check_pass(Cluster(ternary=True), before, changed=2).result.figures
    assert figures["zstd_bytes"][0] == compressed_bytes(Model.from_proto(before))
    assert figures["zstd_bytes"][1] < figures["weight_bytes"][0] / 4
    assert figures["entropy_bytes"][1] <= 0.2 * figures["weight_bytes"][1] + 10_368 * np.log2(3) / 8
    assert "floats of the levels when it loads" in figures["notes"][0]


@pytest.mark.parametrize("data", [True, False])
def test_errors_of_weights_are_told_whatever_they_are_multiplied_by(check_pass, parse, data) -> None:
    model = parse("a (float[8,64] x) => (float[] y) <float[64,40] w> { y = Gemm<alpha=2.0>(x, w) }")
    (layer,) = check_pass(Cluster(data=data), model, changed=1).result.figures["layers"]
    assert layer["weight_db"] == pytest.approx(20, abs=2)
    assert (layer["error"] is not None) == data


def bytes_of(outcome) -> int:
    return outcome.result.figures["layers"][0]["bytes"][1]


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize(
    ("text", "weights", "books"),
    [
        ("y = Conv(x, w)", "float[70,8,5,5] w", 3),
        ("y = Conv<group=8,pads=[3,3,3,3]>(x, w)", "float[96,1,7,7] w", 4),
        ("y = ConvTranspose(x, w)", "float[8,70,4,4] w", 3),
        ("y = ConvTranspose<group=2>(x, w)", "float[8,64,7,7] w", 1),
        ("m = ReduceMax<axes=[3]>(x) f = Flatten(m) y = Gemm<transB=1>(f, w)", "float[40,64] w", 2),
        ("y = MatMul(w, x)", "float[130,8] w", 5),
    ],
)
def test_channels_may_have_levels_of_their_own(check_pass, parse, text, weights, books, data) -> None:
    model = parse(f"a (float[2,8,8,8] x) => (float[] y) <{weights}> {{ {text} }}")
    whole = check_pass(Cluster(data=data, levels=4), model, changed=1)
    grouped = check_pass(Cluster(data=data, levels=4, group=32), model, changed=1)
    same = check_pass(Cluster(data=data, levels=4, group=130), model, changed=1)
    assert grouped.result.figures["layers"][0]["books"] == books
    assert same.model.digest() == whole.model.digest()
    at_once, own = (o.result.figures["layers"][0]["weight_db"] for o in (whole, grouped))
    assert data or own >= at_once
    grown = grouped.result.figures["weight_bytes"][1] - whole.result.figures["weight_bytes"][1]
    channels = {4: 96, 3: 70, 2: 40, 5: 130, 1: 0}[books]
    assert grown == (books - 1) * 4 * 4 + 4 * channels
    node = bytes_of(grouped) - bytes_of(whole) - grown
    assert 80 < node < 200 if books > 1 else node == 0


def test_levels_of_their_own_in_recurrent_layers_and_tables(check_pass, parse) -> None:
    text = "a (int64[2,5] x) => (float[] y) <float[70,32] t, float[1,96,32] w, float[1,96,24] r> "
    text += "{ e = Gather(t, x) y = LSTM<hidden_size=24>(e, w, r) }"
    outcome = check_pass(Cluster(group=24), parse(text), changed=3)
    assert [layer["books"] for layer in outcome.result.figures["layers"]] == [3, 4, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1}, "levels is 1"),
        ({"levels": 257}, "2 to 256"),
        ({"ternary": True, "binary": True}, "give one of them"),
        ({"ternary": True, "levels": 8}, "give one of them"),
        ({"group": -1}, "group must be at least 0"),
        ({"group": 64, "ternary": True}, "group is for levels"),
        ({"samples": 0}, "samples must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Cluster(**options)
