"""Channels that go into the bodies of If, Loop and Scan, and come out again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.model import Model

Halve = Callable[..., Any]
FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def info(name: str, kind: int = FLOAT, shape: list[Any] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def body(
    net: Any, start: int, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> onnx.GraphProto:
    """The nodes that were written since ``start``, taken out of the net, as a graph."""
    nodes = net.nodes[start:]
    net.within += len(nodes)
    del net.nodes[start:]
    return helper.make_graph(nodes, "body", inputs, outputs)


def branch(net: Any, write: Callable[[], str], kind: int = FLOAT) -> onnx.GraphProto:
    start = len(net.nodes)
    made = write()
    return body(net, start, [], [info(made, kind)])


def if_(net: Any, then: Callable[[], str], other: Callable[[], str], kind: int = FLOAT) -> str:
    condition = net.op("Greater", net.op("ReduceMean", "x", keepdims=0), net.constant(0.0))
    return str(net.op("If", condition, then_branch=branch(net, then, kind), else_branch=branch(net, other, kind)))


def of(proto: onnx.ModelProto) -> tuple[Model, Coupling]:
    model = Model.from_proto(proto)
    context = Context(model, open_dataset(None, model.inputs, samples=4))
    return model, Coupling(model, context.shapes(model), context.free_axes(model))


def test_branches_capture_and_make_channels(net: Any, halve: Halve) -> None:
    n = net("N", 3, 8, 8)
    x = n.relu(n.conv("x", 3, 12))
    y = if_(n, lambda: n.relu(n.conv(n.conv(x, 12, 6), 6, 8)), lambda: n.conv(n.op("Neg", x), 12, 8))
    outcome = halve(n.model(n.conv(y, 8, 3)))
    assert outcome.classes == 12 + 6 + 8
    inner = [node for g in outcome.cut.graphs() if g is not outcome.cut.graph for node in g.nodes if node.op == "Conv"]
    assert sorted(node.inputs[1].shape for node in inner) == [(3, 6, 3, 3), (4, 3, 3, 3), (4, 6, 3, 3)]


def test_a_branch_gives_back_what_it_captures(net: Any, halve: Halve) -> None:
    n = net(4, 3, 8, 8)
    x = n.conv("x", 3, 12)
    y = if_(n, lambda: n.op("Identity", x), lambda: n.op("Slice", n.relu(x), *(n.ints(k) for k in (11, -99, 1, -1))))
    outcome = halve(n.model(n.conv(y, 12, 3)))
    assert outcome.classes == 6
    assert "Gather" in [node.op for g in outcome.cut.graphs() for node in g.nodes]


def test_a_branch_gives_back_a_constant(net: Any, halve: Halve) -> None:
    n = net(4, 12)
    x = n.dense("x", 12, 12)
    fixed = helper.make_tensor("fixed", FLOAT, [4, 12], n.rng.standard_normal(48))
    start = len(n.nodes)
    n.nodes.append(helper.make_node("Constant", [], ["fixed"], value=fixed))
    other = body(n, start, [], [info("fixed")])
    condition = n.op("Greater", n.op("ReduceMean", "x", keepdims=0), n.constant(9.0))
    y = n.op("If", condition, then_branch=branch(n, lambda: n.relu(x)), else_branch=other)
    outcome = halve(n.model(n.dense(y, 12, 3)), matters=False)
    assert outcome.classes == 12
    assert [g.outputs[0].shape for g in outcome.cut.graphs() if g.outputs[0].name.startswith("fixed")] == [(4, 6)]


def test_branches_that_do_not_agree_keep_the_axis(net: Any, halve: Halve) -> None:
    n = net(4, 12)
    x = n.dense("x", 12, 12)
    y = if_(n, lambda: n.relu(x), lambda: n.dense(x, 12, 8))
    model, coupling = of(n.model(n.op("ReduceMean", y, axes=[1])))
    assert coupling.count == 0
    assert coupling.why_frozen(model.graph.nodes[0], 1) == "If 'If5' needs them all"


def test_branches_of_different_rank_are_frozen(net: Any, halve: Halve) -> None:
    n = net("N", 12)
    x = n.dense("x", 12, 12)
    y = n.relu(if_(n, lambda: n.relu(x), lambda: n.op("Unsqueeze", x, n.ints(0))))
    assert halve(n.model(n.op("Reshape", n.op("MatMul", y, n.normal(12, 4)), n.ints(-1, 4)))).classes == 0


def test_the_same_names_in_both_branches(net: Any, halve: Halve) -> None:
    n = net(4, 12)
    x = n.dense("x", 12, 12)
    bodies = []
    for width in (6, 10):
        start = len(n.nodes)
        weights = [n.normal(12, width), n.normal(width, 12)]
        n.nodes.append(helper.make_node("MatMul", [x, weights[0]], ["inner"]))
        n.nodes.append(helper.make_node("MatMul", ["inner", weights[1]], ["made"]))
        bodies.append(body(n, start, [], [info("made")]))
    condition = n.op("Greater", n.op("ReduceMean", "x", keepdims=0), n.constant(0.0))
    y = n.op("If", condition, then_branch=bodies[0], else_branch=bodies[1])
    assert halve(n.model(n.dense(y, 12, 3))).classes == 12 + 6 + 10 + 12


def loop(net: Any, x: str, write: Callable[[str], tuple[str, str]], shape: list[Any] | None = None) -> tuple[str, str]:
    """Three turns; ``write`` gets the carried value and gives its next one, and what is stacked."""
    start = len(net.nodes)
    go = net.op("Identity", "go")
    carried, stacked = write("carried")
    inputs = [info("turn", INT, []), info("go", BOOL, []), info("carried", FLOAT, shape)]
    inner = body(net, start, inputs, [info(go, BOOL), info(carried), info(stacked)])
    made: tuple[str, str] = net.op(
        "Loop", net.constant(3, np.int64), net.constant(True, bool), x, outputs=2, body=inner
    )
    return made


@pytest.mark.parametrize("shape", [None, ["N", "C"], ["N", 12]])
def test_a_loop_carries_and_stacks(net: Any, halve: Halve, shape: list[Any] | None) -> None:
    n = net("N", 12)
    x, outer = n.dense("x", 12, 12), n.dense("x", 12, 12)

    def write(carried: str) -> tuple[str, str]:
        hidden = n.relu(n.dense(carried, 12, 8))
        return n.op("Add", n.dense(hidden, 8, 12), outer), n.op("Concat", hidden, carried, axis=1)

    last, stacked = loop(n, x, write, shape)
    y = n.op(
        "Add", n.dense(last, 12, 3), n.op("MatMul", n.op("ReduceMean", stacked, axes=[0], keepdims=0), n.normal(20, 3))
    )
    assert halve(n.model(n.op("Reshape", y, n.ints(-1, 3)))).classes == 12 + 8


def test_a_carried_value_that_grows(net: Any, halve: Halve) -> None:
    n = net(2, 12)
    x = n.dense("x", 12, 12)

    def write(carried: str) -> tuple[str, str]:
        return n.op("Concat", carried, n.relu(x), axis=0), n.op("ReduceMean", carried, axes=[0], keepdims=0)

    grown, stacked = loop(n, x, write)
    y = n.op(
        "Add",
        n.op("MatMul", n.op("ReduceMean", grown, axes=[0]), n.normal(12, 3)),
        n.op("MatMul", stacked, n.normal(12, 3)),
    )
    assert halve(n.model(n.op("Reshape", y, n.ints(-1, 3)))).classes == 12


def test_a_value_carried_round_changes_places_with_another(net: Any, halve: Halve) -> None:
    n = net(2, 12)
    a, b = n.dense("x", 12, 12), n.dense("x", 12, 12)
    start = len(n.nodes)
    outputs = [n.op("Identity", "go"), n.relu("b"), n.op("Neg", "a")]
    inputs = [info("turn", INT, []), info("go", BOOL, []), info("a"), info("b")]
    inner = body(n, start, inputs, [info(outputs[0], BOOL), *map(info, outputs[1:])])
    made = n.op("Loop", n.constant(3, np.int64), "", a, b, outputs=2, body=inner)
    assert halve(n.model(n.op("Add", n.dense(made[0], 12, 3), n.dense(made[1], 12, 3)))).classes == 12


def test_a_branch_in_a_loop_with_layers_of_its_own(net: Any, halve: Halve) -> None:
    n = net(4, 12)
    x = n.dense("x", 12, 12)

    def write(carried: str) -> tuple[str, str]:
        hidden = if_(n, lambda: n.relu(n.dense(carried, 12, 8)), lambda: n.dense(x, 12, 8))
        return n.dense(hidden, 8, 12), hidden

    last, stacked = loop(n, x, write)
    y = n.op("Add", n.dense(last, 12, 3), n.op("MatMul", stacked, n.normal(8, 3)))
    assert halve(n.model(y)).classes == 12 + 8


@pytest.mark.parametrize("backwards", [0, 1])
def test_a_scan_takes_apart_and_stacks(net: Any, halve: Halve, backwards: int) -> None:
    n = net(4, 5, 6)
    x = n.op("MatMul", "x", n.normal(6, 12))
    state = n.op("MatMul", n.op("ReduceMean", "x", axes=[1], keepdims=0), n.normal(6, 8))
    start = len(n.nodes)
    new = n.op("Tanh", n.op("Add", n.op("MatMul", "part", n.normal(12, 8)), n.op("MatMul", "state", n.normal(8, 8))))
    stacked = n.op("Concat", new, "part", axis=1)
    inner = body(n, start, [info("state"), info("part")], [info(new), info(stacked)])
    last, ys = n.op(
        "Scan", state, x, outputs=2, body=inner, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[-1],
        scan_input_directions=[backwards], scan_output_directions=[backwards],
    )  # fmt: skip
    y = n.op("MatMul", n.op("Transpose", ys, perm=[0, 2, 1]), n.normal(20, 3))
    y = n.op("Add", y, n.op("Unsqueeze", n.dense(last, 8, 3), n.ints(1)))
    outcome = halve(n.model(y))
    assert outcome.classes == 12 + 8


def test_what_is_taken_apart_keeps_the_axis(net: Any) -> None:
    n = net(4, 6)
    x = n.dense("x", 6, 12)
    start = len(n.nodes)
    new = n.op("Add", "state", "part")
    inner = body(n, start, [info("state"), info("part")], [info(new)])
    y = n.op("Scan", n.constant(np.zeros(4)), x, body=inner, num_scan_inputs=1, scan_input_axes=[1])
    model, coupling = of(n.model(n.op("MatMul", y, n.normal(4, 3))))
    assert coupling.count == 0
    assert coupling.why_frozen(model.graph.nodes[0], 1) == "Scan 'Scan2' needs them all"


def test_a_body_that_is_not_followed_freezes_what_it_reads(net: Any) -> None:
    n = net(4, 6)
    x, parts = n.dense("x", 6, 12), n.op("SplitToSequence", "x", axis=0)
    start = len(n.nodes)
    made = n.op("Add", n.dense("part", 6, 12), x)
    inner = body(n, start, [info("part", FLOAT, [1, 6])], [info(made, FLOAT, [4, 12])])
    y = n.op("ConcatFromSequence", n.op("SequenceMap", parts, body=inner), axis=0)
    model, coupling = of(n.model(n.op("MatMul", y, n.normal(12, 3)), 18))
    assert coupling.count == 0
    assert coupling.why_frozen(model.graph.nodes[0], 1) == "the body of SequenceMap 'SequenceMap4' reads them"
    layer = next(node for node in model.nodes() if node.op == "Gemm" and node is not model.graph.nodes[0])
    assert coupling.why_frozen(layer, 1) == "they lie in a body that is not followed"
    assert coupling.output(layer, 1).tolist() == [0] * 12


def test_sizes_that_a_body_gives_back_are_frozen(net: Any) -> None:
    n = net("N", 12)
    x = n.dense("x", 12, 12)
    size = if_(n, lambda: n.op("Shape", x), lambda: n.op("Shape", n.relu(x)), INT)
    y = n.op("Mul", n.dense(x, 12, 3), n.op("ReduceSum", n.op("Cast", size, to=FLOAT)))
    model, coupling = of(n.model(n.op("Reshape", y, n.ints(-1, 3))))
    assert coupling.count == 0
    assert coupling.why_frozen(model.graph.nodes[0], 1) == "the body of If 'If6' gives their number back"


def test_sequences_and_optionals_are_left_alone(net: Any, halve: Halve) -> None:
    n = net("N", 3, 8, 8)
    a, b = n.conv("x", 3, 12), n.conv("x", 3, 12)
    y = n.op("SequenceAt", n.op("SequenceConstruct", a, b), n.constant(1, np.int64))
    z = n.op("OptionalGetElement", n.op("Optional", n.relu(n.conv(n.conv("x", 3, 6), 6, 12))))
    assert halve(n.model(n.conv(n.op("Add", y, z), 12, 3), 18)).classes == 6


def test_a_rank_that_depends_on_the_batch_is_not_relied_on(net: Any, halve: Halve) -> None:
    n = net("N", 12)
    y = n.relu(n.op("Squeeze", n.dense("x", 12, 12)))
    y = n.op("MatMul", n.op("Reshape", y, n.ints(-1, 12)), n.normal(12, 3))
    assert halve(n.model(y)).classes == 0
