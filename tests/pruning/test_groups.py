"""Who is tied to whom, and what reasons to stay cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.cutting import Cut
from onnxopt.graph.model import Model
from onnxopt.pruning import channels
from onnxopt.pruning.groups import Frozen, Group, Ties, frozen, groups

Zoo = dict[str, Callable[[], onnx.ModelProto]]


def found(proto: onnx.ModelProto) -> tuple[list[Group], list[Frozen]]:
    """Groups and costs of a model as it is."""
    model = Model.from_proto(proto)
    context = Context(model, open_dataset(None, model.inputs, samples=2))
    coupling = Coupling(model, context.shapes(model), context.free_axes(model))
    makers = channels.producers(model.graph, coupling)
    return groups(model, coupling, makers), frozen(model, coupling, makers)


def test_a_residual_stream_is_one_group(zoo: Zoo) -> None:
    tied, costs = found(zoo["residual"]())
    assert tied == [
        Group(("Conv0", "Conv6", "Conv13"), ("Conv3", "Conv10", "Conv17", "Conv22"), 16, 16),
        Group(("Conv3",), ("Conv6",), 16, 16),
        Group(("Conv10",), ("Conv13",), 16, 16),
        Group(("Conv17",), ("Conv20",), 32, 32),
        Group(("Conv20", "Conv22", "Conv28"), ("Conv25", "Gemm34"), 32, 32),
        Group(("Conv25",), ("Conv28",), 32, 32),
        Group(("Gemm34",), (), 5, 0, "'gemm34' is an output of the model"),
    ]
    assert costs == [Frozen("'gemm34' is an output of the model", ("Gemm34",), 5 * 32)]


def test_each_part_of_a_concat_is_a_group(zoo: Zoo) -> None:
    tied, _ = found(zoo["densely_connected"]())
    assert tied[0] == Group(("Conv0",), ("Conv3", "Conv8", "Conv13", "Conv17"), 16, 16)
    assert tied[2] == Group(("Conv5",), ("Conv8", "Conv13", "Conv17"), 16, 16)


def test_whole_groups_and_pixels_are_classes_of_several_channels(zoo: Zoo) -> None:
    assert found(zoo["grouped"]())[0][0] == Group(("Conv0", "Conv2"), ("Conv4",), 32, 8)
    assert found(zoo["flattened"]())[0][2] == Group(("Gemm5",), ("Conv8",), 64, 16)


def test_layers_that_stay_for_one_reason_are_one_group(net: Any) -> None:
    n = net()
    y = n.op("Softmax", n.op("Add", n.conv("x", 3, 12), n.conv("x", 3, 12, 1)), axis=1)
    tied, costs = found(n.model(n.conv(y, 12, 4)))
    why = "Softmax 'Softmax3' needs them all"
    assert tied[0] == Group(("Conv0", "Conv1"), (), 12, 0, why)
    assert costs == [
        Frozen("'conv4' is an output of the model", ("Conv4",), 4 * 12 * 9),
        Frozen(why, ("Conv0", "Conv1"), 12 * 3 * 10),
    ]


def test_unknown_operators_are_named_and_cost(net: Any) -> None:
    n = net()
    x = n.relu(n.conv(n.relu(n.conv("x", 3, 8)), 8, 16))
    n.nodes.append(helper.make_node("Trilu", [x], ["g"], name="bell", domain="com.microsoft"))
    n.nodes.append(helper.make_node("Trilu", [n.conv("g", 16, 4)], ["y"], name="last", domain="com.microsoft"))
    tied, costs = found(unchecked(n))
    assert tied[0] == Group(("Conv0",), ("Conv2",), 8, 8)
    why = "com.microsoft.Trilu '{}' has no rule".format
    assert tied[1:] == [Group(("Conv2",), (), 16, 0, why("bell")), Group(("Conv5",), (), 4, 0, why("last"))]
    assert costs == [Frozen(why("bell"), ("Conv2",), 16 * 8 * 9), Frozen(why("last"), ("Conv5",), 4 * 16 * 9)]


def unchecked(n: Any) -> onnx.ModelProto:
    """The model of a net that has operators which ONNX does not know."""
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 8, 8])
    graph = helper.make_graph(n.nodes, "g", [n.input], [y], n.weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_weights_that_nobody_judges_cost(net: Any) -> None:
    n = net("N", 6, 8)
    x = n.op("MatMul", "x", n.normal(8, 16))
    y = n.op("Einsum", x, n.normal(16, 10), equation="nij,jk->nik")
    tied, costs = found(n.model(n.op("MatMul", y, n.normal(10, 4))))
    assert tied[0] == Group(("MatMul0",), ("Einsum1",), 16, 16)
    assert Frozen("its weights are not judged", ("Einsum1",), 160) in costs


def test_hidden_units_are_tied_to_what_reads_them(net: Any) -> None:
    n = net("N", 6, 8)
    y, *_ = n.op("LSTM", "x", n.normal(1, 64, 8), n.normal(1, 64, 16), outputs=3, hidden_size=16)
    tied, _ = found(n.model(n.op("MatMul", y, n.normal(16, 4))))
    assert tied[0] == Group(("LSTM0",), ("LSTM0", "MatMul1"), 16, 16)


def test_of_a_layer_that_stays_in_part_only_that_part_costs(net: Any) -> None:
    n = net()
    y = n.conv("x", 3, 12)
    one = n.op("Unsqueeze", n.op("Gather", y, n.constant(5, np.int64), axis=1), n.ints(1))
    tied, costs = found(n.model(n.conv(n.op("Mul", y, one), 12, 3)))
    assert tied[0] == Group(("Conv0",), ("Conv4",), 11, 11)
    assert (tied[1].makers, tied[1].channels, tied[1].classes) == (("Conv0",), 1, 0)
    assert {c.layers: c.parameters for c in costs} == {("Conv0",): 27, ("Conv4",): 3 * 12 * 9}


def test_shared_weights_cost_once(net: Any) -> None:
    n = net("N", 6)
    weight = n.normal(6, 6)
    _, costs = found(n.model(n.op("Softmax", n.op("MatMul", n.op("MatMul", "x", weight), weight))))
    (cost,) = costs
    assert cost.layers == ("MatMul0", "MatMul1")
    assert cost.parameters == 36


def test_what_is_left_of_each_group(zoo: Zoo) -> None:
    model = Model.from_proto(zoo["split_and_joined"]())
    context = Context(model, open_dataset(None, model.inputs, samples=2))
    coupling = Coupling(model, context.shapes(model), context.free_axes(model))
    makers = channels.producers(model.graph, coupling)
    ties = Ties(coupling, makers)
    first, second = coupling.blocks()[:2]
    cut = Cut(coupling, np.concatenate([first[:4], second[:7]]))
    stays = {id(m.layer): cut.output(m.layer, m.axis) for m in makers}
    cut.apply(model)
    found = {g.makers: (left, g.channels) for g, left in zip(ties.groups, ties.kept(stays), strict=True)}
    assert found == {
        ("Conv0",): (12, 16),
        ("Conv0", "Conv6"): (9, 16),
        ("Conv4",): (16, 16),
        ("Conv9",): (32, 32),
        ("Gemm13",): (5, 5),
    }


def test_layers_that_cannot_be_judged(net: Any) -> None:
    n = net()
    y = n.conv("x", 3, 8)
    computed = n.op("Abs", n.normal(8, 8, 3, 3))
    y = n.op("Conv", y, computed, pads=[1, 1, 1, 1])
    inner = helper.make_node("Conv", [y, n.normal(4, 8, 1, 1)], ["inner"], name="inner")
    made = helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["N", 4, 8, 8])
    bodies = [helper.make_graph([inner], name, [], [made]) for name in ("then", "else")]
    always = n.op("Greater", n.op("ReduceMax", y, keepdims=0), n.constant(-1e9))
    n.nodes.append(helper.make_node("If", [always], ["y"], name="If", then_branch=bodies[0], else_branch=bodies[1]))
    _, costs = found(unchecked(n))
    assert Frozen("it has weights that are not constant", ("Conv2",), 0) in costs
    assert next(c.layers for c in costs if c.parameters) == ("inner", "inner")
