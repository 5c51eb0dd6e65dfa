"""Where two forms of a model differ, and single pieces of one in the other."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxopt.graph.ir import Constant, Node, Variable
from onnxopt.graph.model import Model
from onnxopt.graph.pieces import differences, transplant
from onnxopt.graph.stored import Stored
from onnxopt.runtime.session import Session

NODES = "a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) y = Add(c, b)"
WEIGHTS = "float[16,16] w, float[16,16] v"
FEED = {"x": np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)}


@pytest.fixture
def model(build) -> Model:
    return build(NODES, WEIGHTS, x="float[N,16] x")


def run(model: Model) -> np.ndarray:
    return Session(model, optimize=False).run(FEED)["y"]


def halve(model: Model, name: str) -> None:
    """Multiply with half the weights, and by two behind, through a tensor that only this form has."""
    node = next(n for n in model.graph.nodes if n.outputs[0].name == name)
    half = model.constant("half", node.inputs[1].values * np.float32(0.4))
    two = model.constant("two", np.float32(2))
    between = Variable(model.fresh_name("between"), np.float32)
    model.graph.nodes.append(Node("MatMul", model.fresh_name("half"), [node.inputs[0], half], [between]))
    node.op, node.inputs = "Mul", [between, two]
    model.tidy()


def test_a_clone_does_not_differ(model: Model) -> None:
    assert differences(model, model.clone()) == []


def test_names_do_not_matter(model: Model) -> None:
    other = model.clone()
    for node in other.graph.nodes:
        node.name = f"other {node.name}"
        for i, tensor in enumerate(node.inputs):
            if tensor.name in "wv":
                node.inputs[i] = other.constant("same", np.array(tensor.values))
    assert differences(model, other) == []


def test_one_layer_of_two(model: Model) -> None:
    other = model.clone()
    halve(other, "a")
    (piece,) = differences(model, other)
    assert (piece.outputs, [n.op for n in piece.before]) == (("a",), ["MatMul"])
    assert [n.op for n in piece.after] == ["MatMul", "Mul"]
    assert piece.whole


def test_each_alone_and_all_together(model: Model) -> None:
    other, first = model.clone(), model.clone()
    halve(first, "a")
    for name in "ac":
        halve(other, name)
    before = run(model)
    pieces = differences(model, other)
    assert [p.outputs for p in pieces] == [("a",), ("c",)]
    np.testing.assert_array_equal(run(transplant(model, other, pieces[:1])), run(first))
    np.testing.assert_array_equal(run(transplant(model, other, pieces)), run(other))
    np.testing.assert_array_equal(run(transplant(model, other, [])), before)
    np.testing.assert_array_equal(run(model), before)


def test_what_only_one_form_has_by_name_is_inside_a_piece(model: Model) -> None:
    other = model.clone()
    relu = next(n for n in other.graph.nodes if n.op == "Relu")
    relu.inputs[0].name = "renamed"
    relu.op = "Neg"
    (piece,) = differences(model, other)
    assert [n.op for n in piece.before] == ["MatMul", "Relu"]
    assert [n.op for n in piece.after] == ["MatMul", "Neg"]
    np.testing.assert_array_equal(run(transplant(model, other, [piece])), run(other))


def test_other_float_types_are_cast(model: Model, build) -> None:
    other = build(
        "h = Cast<to=10>(x) a = MatMul(h, w) b = Relu(a) f = Cast<to=1>(b) c = MatMul(f, v) y = Add(c, f)",
        "float16[16,16] w, float[16,16] v",
        x="float[N,16] x",
    )
    pieces = differences(model, other)
    assert [p.outputs for p in pieces] == [("a",), ("c",), ("y",)]  # what reads b reads it through a cast
    alone = transplant(model, other, pieces[:1])
    assert sorted(n.op for n in alone.graph.nodes) == ["Add", "Cast", "Cast", "MatMul", "MatMul", "Relu"]
    assert np.abs(run(alone) - run(model)).max() < 0.1 * np.abs(run(model)).max()


def test_another_shape_is_no_place_to_begin(model: Model) -> None:
    other = model.clone()
    wide = np.pad(other.graph.nodes[0].inputs[1].values, ((0, 0), (0, 8)))
    tall = np.pad(next(n for n in other.graph.nodes if n.outputs[0].name == "c").inputs[1].values, ((0, 8), (0, 0)))
    for node in other.graph.nodes:
        if node.outputs[0].name == "a":
            node.inputs[1] = other.constant("wide", wide)
        if node.outputs[0].name == "c":
            node.inputs[1] = other.constant("tall", tall)
    for tensor in other.variables().values():
        if tensor.name in "ab":
            tensor.shape = None
    add = next(n for n in other.graph.nodes if n.op == "Add")
    add.inputs[1] = add.inputs[0]
    assert [p.outputs for p in differences(model, other)] == [("c",), ("y",)]


def test_a_body_cannot_be_moved(build) -> None:
    nodes = (
        "s = ReduceMean<keepdims=0>(x) zero = Constant<value=float {{0.0}}>() q = Greater(s, zero) "
        "y = If(q) <then_branch = g1 () => (float[N,16] t) {{ t = {then}(x) }}, "
        "else_branch = g2 () => (float[N,16] e) {{ e = Neg(x) }}>"
    )
    a, b = (build(nodes.format(then=op), x="float[N,16] x", y="float[N,16] y") for op in ("Relu", "Abs"))
    assert differences(a, a.clone()) == []
    (piece,) = differences(a, b)
    assert not piece.whole


def test_a_layer_and_its_bias_are_one_piece(build) -> None:
    """Its weights were chosen with that bias, and neither is worth anything without the other."""
    nodes = "a = MatMul(x, w) b = Add(v, a) c = MatMul(b, u) d = Neg(c) y = Add(c, d)"
    model = build(nodes, "float[16,16] w, float[16] v, float[16,16] u", x="float[N,16] x")
    other = model.clone()
    by_name = {n.outputs[0].name: n for n in other.graph.nodes}
    by_name["b"].inputs[0] = other.constant("v", by_name["b"].inputs[0].values + 1)
    by_name["c"].inputs[1] = other.constant("u", by_name["c"].inputs[1].values + 1)
    pieces = differences(model, other)
    assert [p.outputs for p in pieces] == [("b",), ("c",)]
    assert [n.op for n in pieces[0].after] == ["MatMul", "Add"]
    np.testing.assert_array_equal(run(transplant(model, other, pieces)), run(other))


@pytest.mark.parametrize(("end", "outputs"), [("y = Relu(s)", ("s",)), ("y = Add(s, h)", ("s", "h"))])
def test_a_node_of_several_outputs_is_one_piece_of_those_that_are_read(build, end: str, outputs: tuple) -> None:
    nodes = f"i = Constant<value_ints=[1]>() t = Unsqueeze(x, i) s, h, c = LSTM<hidden_size=16>(t, w, r) {end}"
    model = build(nodes, "float[1,64,16] w, float[1,64,16] r", x="float[N,16] x")
    other = model.clone()
    (lstm,) = (n for n in other.graph.nodes if n.op == "LSTM")
    lstm.inputs[1] = other.constant("w", lstm.inputs[1].values / 2)
    (piece,) = differences(model, other)
    assert piece.outputs == outputs
    alone = transplant(model, other, [piece])
    assert [n.op for n in alone.graph.nodes].count("LSTM") == 1
    assert alone.constant_bytes() == model.constant_bytes()
    np.testing.assert_array_equal(run(alone), run(other))


def test_constants_stay_as_they_are_stored(model: Model) -> None:
    """Two weights of four bits in a byte, and one scale for two layers."""
    other = model.clone()
    other.upgrade(21)
    scale = other.constant("scale", np.float32(0.5))
    raw = np.arange(128, dtype=np.uint8).tobytes()
    for node in [n for n in other.graph.nodes if n.op == "MatMul"]:
        packed = onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=(16, 16), raw_data=raw)
        weight = Variable(other.fresh_name("weight"), np.float32)
        codes = Constant(other.fresh_name("codes"), Stored(packed))
        other.graph.nodes.append(Node("DequantizeLinear", "", [codes, scale], [weight]))
        node.inputs[1] = weight
    other.tidy()
    plain = model.clone()
    plain.upgrade(21)
    both = transplant(plain, other, differences(plain, other))
    assert both.constant_bytes() == other.constant_bytes() == 2 * 128 + 4
    np.testing.assert_array_equal(run(both), run(other))
