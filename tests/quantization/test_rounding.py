"""Weights rounded by what they make of their inputs: nearer to the float model in ONNX Runtime, in the same kernels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxopt.core.context import Context
from onnxopt.core.pass_ import label
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.model import Model
from onnxopt.quantization.candidate import Builder, Candidate, Settings
from onnxopt.quantization.saturation import can_saturate, pairs
from onnxopt.runtime.audit import audit
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import NATIVE, X86_AVX2

CONVS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3,16,16] x) => (float[N,5] y) {
    c1 = Conv <pads=[1,1,1,1]> (x, first, b)
    r1 = Relu (c1)
    c2 = Conv <pads=[1,1,1,1], group=16> (r1, deep)
    r2 = Clip (c2, zero, six)
    c3 = Conv <pads=[1,1,1,1], group=4> (r2, grouped)
    s = Add (c3, r1)
    p = GlobalAveragePool (s)
    f = Flatten (p)
    y = Gemm (f, dense)
}"""
TOKENS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,6,24] x) => (float[N,6,8] y) {
    m = MatMul (x, up)
    a = Add (m, shift)
    r = Relu (a)
    y = MatMul (r, down)
}"""


def model(text: str, **shapes: tuple[int, ...]) -> Model:
    proto, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    values = {n: rng.standard_normal(s) / np.sqrt(max(1, np.prod(s[1:]))) for n, s in shapes.items()}
    if "six" in text:
        values |= {"zero": np.array(0.0), "six": np.array(6.0)}
    for name, value in values.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, np.float32), name))
    return Model.from_proto(proto)


def convs() -> Model:
    return model(CONVS, first=(16, 3, 3, 3), b=(16,), deep=(16, 1, 3, 3), grouped=(16, 4, 3, 3), dense=(16, 5))


def smooth(tmp_path, *shape: int):
    """Samples whose neighbours are alike: there rounding errors can make good for each other."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((80, *shape)).cumsum(axis=-1).cumsum(axis=-2) / 10
    np.savez(tmp_path / "x.npz", x=(x + rng.standard_normal(x.shape) / 10).astype(np.float32))
    return tmp_path / "x.npz"


def built(net: Model, path, target=NATIVE) -> tuple[Builder, Candidate, np.ndarray]:
    data = open_dataset(path, net.inputs)
    builder = Builder(net.clone(), Context(net, data.subset(range(40)), target=target), Settings(), {})
    candidate = builder.build({})
    assert isinstance(candidate, Candidate)
    return builder, candidate, next(data.subset(range(40, 80)).batches(40))["x"]


def noise(exact: Model, other: Model, x: np.ndarray) -> float:
    (a,), (b,) = (Session(m).run({"x": x}).values() for m in (exact, other))
    return float(np.square(a - b).sum() / np.square(a).sum())


def test_convolutions_of_all_kinds_come_nearer_to_the_float_model(tmp_path):
    net = convs()
    builder, before, x = built(net, smooth(tmp_path, 3, 16, 16))
    after = builder.refine(before, 40)
    assert after.learned == 4
    assert after.not_learned == ()
    assert noise(net, after.model, x) < noise(net, before.model, x)


def test_products_come_nearer_to_the_float_model(tmp_path):
    net = model(TOKENS, up=(24, 32), shift=(32,), down=(32, 8))
    builder, before, x = built(net, smooth(tmp_path, 6, 24))
    after = builder.refine(before, 40)
    assert after.learned == 2
    assert noise(net, after.model, x) < 0.9 * noise(net, before.model, x)


def test_everything_but_weights_and_biases_stays(tmp_path):
    builder, before, _ = built(convs(), smooth(tmp_path, 3, 16, 16))
    plain = builder.plain.digest()
    after = builder.refine(before, 40)
    assert builder.plain.digest() == plain
    assert after.layers == before.layers
    assert [label(u.node) for u in after.placement.units] == [label(u.node) for u in before.placement.units]
    found, known = (audit(c.model) for c in (after, before))
    assert [(n.node, n.kernel) for n in found.nodes] == [(n.node, n.kernel) for n in known.nodes]
    scales = [[n.inputs[1].values for n in c.model.graph.nodes if n.op == "QuantizeLinear"] for c in (before, after)]
    assert all(np.array_equal(a, b) for a, b in zip(*scales, strict=True))


def test_the_same_twice(tmp_path):
    builder, before, _ = built(convs(), smooth(tmp_path, 3, 16, 16))
    assert builder.refine(before, 40).model.digest() == builder.refine(before, 40).model.digest()


def test_no_pair_of_products_overflows_where_it_could(tmp_path):
    net = convs()
    builder, before, _ = built(net, smooth(tmp_path, 3, 16, 16), X86_AVX2)
    after = builder.refine(before, 40)
    assert after.learned
    for node in after.model.graph.nodes:
        if node.op in ("Conv", "Gemm"):
            steps = node.inputs[1].inputs[0].inputs[0].values
            assert not can_saturate(pairs(node, steps)).any(), label(node)


def test_weights_that_two_layers_share_are_rounded_to_nearest_and_said_so(tmp_path):
    net = model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4,8,8] x) => (float[N,4,8,8] y) {
            c = Conv <pads=[1,1,1,1]> (x, w)
            r = Relu (c)
            y = Conv <pads=[1,1,1,1]> (r, w)
        }""",
        w=(4, 4, 3, 3),
    )
    builder, before, x = built(net, smooth(tmp_path, 4, 8, 8))
    after = builder.refine(before, 40)
    assert after.learned == 0
    assert [s.why for s in after.not_learned] == [
        "its weights are rounded to nearest: it shares its weights with another node"
    ] * 2
    assert noise(net, after.model, x) == pytest.approx(noise(net, before.model, x))


@pytest.mark.parametrize("samples", [1, 3])
def test_hardly_any_samples_do_no_harm(tmp_path, samples):
    net = convs()
    builder, before, x = built(net, smooth(tmp_path, 3, 16, 16))
    after = builder.refine(before, samples)
    assert noise(net, after.model, x) < 1.5 * noise(net, before.model, x)
