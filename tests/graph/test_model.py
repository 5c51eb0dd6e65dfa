"""The model in memory: names, opsets, skeletons, tidying, sorting, verifying."""

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import ModelError
from onnxopt.graph.ir import Constant, Node, Scope, Variable, remove_dead, replace_uses, toposort
from onnxopt.graph.model import Model
from onnxopt.graph.shapes import infer
from onnxopt.graph.verify import boundary, faults
from onnxopt.graph.vocabulary import index_bounds
from onnxopt.runtime.session import Session


def parse(text: str, opset: int = 17, **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return Model.from_proto(proto)


CHAIN = "g (float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Add(a, w) dead = Relu(b) y = Relu(b) }"
W = np.arange(4, dtype=np.float32)


def test_fresh_names_are_never_given_twice() -> None:
    model = parse(CHAIN, w=W)
    assert [model.fresh_name("a"), model.fresh_name("a"), model.fresh_name("new")] == ["a_1", "a_2", "new"]
    long = "x" * 500
    names = [model.fresh_name(f"first/{long}/last"), model.fresh_name(f"first/{long}y/last")]
    assert [len(n) for n in names] == [80, 80]
    assert all(n.startswith("first/xx") and n.endswith("/last") for n in names)
    assert model.fresh_name(f"first/{long}/last") == f"{names[0]}_1"


def test_tidy_drops_what_has_no_effect() -> None:
    model = parse(CHAIN, w=W, unread=W)
    assert model.tidy() == 1
    assert [n.outputs[0].name for n in model.graph.nodes] == ["a", "b", "y"]
    assert [c.name for c in model.constants()] == ["w"]


def test_ten_thousand_reversed_nodes_are_sorted() -> None:
    model = parse("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    last = model.graph.inputs[0]
    for i in range(10_000):
        out = Variable(f"t{i}")
        model.graph.nodes.insert(0, Node("Relu", f"n{i}", [last], [out]))
        last = out
    replace_uses(model.graph.inputs[0], last, [model.graph.nodes[-1]])
    assert toposort(model.graph) == []
    assert [n.name for n in model.graph.nodes[:2]] == ["n0", "n1"]
    assert remove_dead(model.graph) == 0


def test_equal_nodes_are_not_confused() -> None:
    """Two nodes of equal structure: unlinking one leaves the other."""
    x, y = Variable("x"), Variable("y")
    one, two = (Node("Relu", "", [x], []) for _ in range(2))
    two.inputs.clear()
    assert len(x.outputs) == 1
    assert x.outputs[0] is one
    assert one != two
    assert y.outputs == []


def test_scope_counts_captures_as_uses() -> None:
    model = parse(
        """g (bool c, float[2] x) => (float[2] y) {
            r = Relu(x)
            y = If (c) <then_branch = t () => (float[2] p) { p = Abs(r) },
                        else_branch = e () => (float[2] q) { q = Neg(x) }>
        }"""
    )
    scope = Scope(model.graph)
    captured = model.graph.nodes[0].outputs[0]
    assert not scope.used_once(captured)
    assert scope.producer(captured) is model.graph.nodes[0]
    inner = model.graph.nodes[1].attrs["then_branch"]
    assert Scope(inner).producer(captured) is None
    assert len(list(model.graphs())) == 3
    assert [n.op for n in model.nodes()] == ["Relu", "If", "Neg", "Abs"]
    assert model.tidy() == 0


def test_a_skeleton_is_small_and_checks() -> None:
    model = parse("g (float[N,100] x) => (float[N,100] y) { y = MatMul(x, w) }", w=np.zeros((100, 100), np.float32))
    skeleton = model.skeleton()
    assert skeleton.ByteSize() < 500
    assert [i.name for i in skeleton.graph.input] == ["x", "w"]
    onnx.checker.check_model(skeleton, full_check=True)


def test_embedding_more_than_two_gigabytes_is_refused() -> None:
    model = parse("g (float[1] x) => (float[1] y) { y = Relu(x) }")
    huge = np.broadcast_to(np.float32(0), (2**30,))
    model.graph.nodes[0].inputs.append(Constant("huge", huge))
    with pytest.raises(ModelError, match="over 2 GB: save the model with external data"):
        model.to_proto()


def test_upgrade_keeps_results_names_metadata_and_weights() -> None:
    weights = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
    model = parse(
        "g (float[N,40] x) => (float[N,40] y)"
        "{ h = MatMul(x, w) s = Softmax<axis = 1>(h) c = Clip<min = 0.01>(s) y = Relu(c) }",
        opset=9,
        w=weights,
    )
    model.graph.nodes[0].origin.metadata_props.add(key="layer", value="7")
    model.header.metadata_props.add(key="author", value="us")
    feed = {"x": np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)}
    expected, kept = Session(model).run(feed)["y"], boundary(model)
    assert model.upgrade(13)
    assert not model.upgrade(13)
    assert (model.opset, faults(model, kept)) == (13, [])
    np.testing.assert_allclose(Session(model).run(feed)["y"], expected, rtol=1e-6)
    proto = model.to_proto()
    assert proto.metadata_props[0].value == "us"
    assert {n.op_type: n for n in proto.graph.node}["MatMul"].metadata_props[0].value == "7"
    np.testing.assert_array_equal(next(c for c in model.constants() if c.name == "w").values, weights)


def test_an_upgrade_that_fails_leaves_the_model_alone() -> None:
    model = parse("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", opset=9)
    model.graph.nodes[0].op = "NoSuchOperator"
    before = model.to_proto()
    with pytest.raises(ModelError, match=r"cannot convert the model from opset 9 to 13: .*NoSuchOperator"):
        model.upgrade(13)
    assert model.to_proto() == before


def test_index_bounds() -> None:
    model = parse(
        "g (int64[N] tokens, float[N] other) => (float[N,2] y) { c = Cast<to = 7>(tokens) y = Gather(table, c) }",
        table=np.zeros((50, 2), np.float32),
    )
    assert index_bounds(model) == {"tokens": 50}


def test_shapes_are_inferred_and_fixed_by_a_feed() -> None:
    model = parse("g (float[N,4] x) => (float[N,2] y) { h = Relu(x) y = MatMul(h, w) }", w=np.zeros((4, 2), np.float32))
    assert infer(model) == {"x": ("N", 4), "h": ("N", 4), "y": ("N", 2), "w": (4, 2)}
    assert infer(model, {"x": np.zeros((7, 4), np.float32)})["y"] == (7, 2)


def broken(change: str) -> Model:
    model = parse(CHAIN, w=W)
    relu, add = model.graph.nodes[0], model.graph.nodes[1]
    if change == "dangling":
        add.inputs[0] = Variable("ghost")
    elif change == "duplicate":
        relu.outputs[0].name = "b"
    elif change == "two makers":
        model.graph.nodes.append(Node("Relu", "again", [model.graph.inputs[0]], [add.outputs[0]]))
    elif change == "constant written":
        relu.outputs[0] = model.constant("c", W)
    elif change == "cycle":
        relu.inputs[0] = add.outputs[0]
    elif change == "operator":
        relu.op = "NoSuchOperator"
    elif change == "output":
        model.graph.outputs[0].shape = [1, 4]
    elif change == "lost output":
        model.graph.outputs[0] = Variable("z", np.dtype(np.float32), [1])
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dangling", r"reads 'ghost', which nothing makes"),
        ("duplicate", "two tensors are named 'b'"),
        ("two makers", "'b' is made by 2 nodes"),
        ("constant written", "writes into the constant 'c'"),
        ("cycle", "is part of a cycle"),
        ("operator", "NoSuchOperator"),
        ("output", r"the outputs changed from y: float32\[N,4\] to y: float32\[1,4\]"),
        ("lost output", "the output 'z' is made by nothing"),
    ],
)
def test_verify_names_what_is_broken(change: str, message: str) -> None:
    expected = boundary(parse(CHAIN, w=W))
    assert faults(parse(CHAIN, w=W), expected) == []
    found = faults(broken(change), expected)
    assert found
    assert re.search(message, "\n".join(found))


def test_an_output_without_a_shape_is_whole() -> None:
    proto = parse(CHAIN, w=W).to_proto()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = Model.from_proto(proto)
    assert faults(model) == []
    assert model.outputs[0].shape is None
    assert model.to_proto() == proto


def test_a_graph_output_may_be_a_constant() -> None:
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value_floats=[1.0]), helper.make_node("Relu", ["x"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("y", "z")],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    model.tidy()
    assert faults(model) == []
    assert [o.name for o in model.outputs] == ["y", "z"]
    assert Session(model).run({"x": np.float32([2])})["y"] == [1]


def test_an_upgrade_keeps_looser_shapes_of_outputs() -> None:
    model = parse("g (float[1,4] x) => (float[?,?] y) { y = Relu(x) }", opset=11)
    kept = boundary(model)
    assert model.upgrade(13)
    assert faults(model, kept) == []


@pytest.mark.parametrize(("op", "opset"), [("Upsample", 9), ("Resize", 10)])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_upgrading_keeps_where_an_old_resize_samples(op: str, opset: int, mode: str) -> None:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]>\na (float[1,1,4,4] x) => (float[1,1,P,Q] y)'
    weights = "<float[4] s = {1.0, 1.0, 1.5, 2.0}>"
    model = Model.from_proto(onnx.parser.parse_model(f'{text} {weights} {{ y = {op}<mode="{mode}">(x, s) }}'))
    feed = {"x": np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)}
    expected = Session(model).run(feed)["y"]
    model.upgrade(14)
    np.testing.assert_allclose(Session(model).run(feed)["y"], expected, rtol=1e-6)


def test_upgrading_leaves_a_resize_of_another_domain_alone() -> None:
    text = '<ir_version: 8, opset_import: ["" : 10, "own" : 1]>\na (float[4] x) => (float[4] y)'
    model = Model.from_proto(onnx.parser.parse_model(f"{text} {{ r = own.Resize(x) y = Relu(r) }}"))
    model.upgrade(14)
    assert [(n.op, n.attrs) for n in model.nodes()] == [("Resize", {}), ("Relu", {})]
