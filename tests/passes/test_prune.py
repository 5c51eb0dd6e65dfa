"""Prune: how much goes, what stays and why, the proof, the repair, and what the report says of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.core.context import Context
from onnxopt.core.manager import plan
from onnxopt.core.pass_ import PassResult
from onnxopt.core.spec import parse
from onnxopt.data.dataset import open_dataset
from onnxopt.errors import PassError
from onnxopt.graph import corrections, io
from onnxopt.graph.cost import OperatorCost, cost
from onnxopt.graph.model import Model
from onnxopt.graph.verify import boundary, faults
from onnxopt.numerics.tolerance import deviation
from onnxopt.passes.prune import Prune
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import NATIVE

Zoo = dict[str, Callable[[], onnx.ModelProto]]


def prune(
    proto: onnx.ModelProto, step: Prune, *, samples: int = 40, channel_step: int = 16
) -> tuple[Model, PassResult]:
    """The pruned model, held to what every pass promises."""
    original = Model.from_proto(proto)
    untouched = original.to_proto().SerializeToString(deterministic=True)
    model, expected = original.clone(), boundary(original)
    data = open_dataset(None, model.inputs, samples=samples)
    context = Context(original, data, target=replace(NATIVE, channel_step=channel_step), batch=8)
    result = step.run(model, context)
    model.tidy()
    assert faults(model, expected) == []
    assert original.to_proto().SerializeToString(deterministic=True) == untouched
    onnx.checker.check_model(model.to_proto(), full_check=True)
    Session(model).run(next(iter(data.batches(8))))
    return model, result


def counts(result: PassResult) -> dict[str, Any]:
    return dict(result.figures.get("channels", {}))  # type: ignore[arg-type]  # a table by layer


def reasons(result: PassResult) -> dict[str, str]:
    return {skip.node: skip.why for skip in result.skips}


@pytest.mark.parametrize("criterion", ["obs", "l1", "l2"])
@pytest.mark.parametrize("scope", ["inner", "all"])
def test_every_graph_of_the_zoo(zoo_model: onnx.ModelProto, scope: Any, criterion: Any) -> None:
    step = Prune(ratio=0.4, align=4, scope=scope, criterion=criterion, keep_ends=False)
    _, result = prune(zoo_model, step, samples=10)
    assert result.changed > 0
    assert 0 <= float(str(result.figures["proof"])) < 1e-4
    assert all(skip.why for skip in result.skips)
    assert all(0 < after < before for before, after in counts(result).values())


def test_share_and_alignment(zoo: Zoo) -> None:
    for ratio, align, kept in ((0.25, 4, 24), (0.25, 16, 32), (0.5, 8, 16), (0.3, 1, 23), (0.99, 1, 1), (0.9, 4, 4)):
        _, result = prune(zoo["plain"](), Prune(ratio=ratio, align=align, repair=False))
        assert counts(result).get("Conv2", [32, 32]) == [32, kept]


def test_alignment_to_the_target_leaves_small_layers_something_to_give(net: Any) -> None:
    n = net(4, 3, 8, 8)
    x, width = n.relu(n.conv("x", 3, 8)), 8
    for out in (8, 16, 32, 64, 128):
        x, width = n.relu(n.conv(x, width, out, 1)), out
    proto = n.head(x, width)
    for step, expected in ((16, [8, 12, 24, 48, 96]), (4, [8, 12, 24, 48, 92])):
        _, result = prune(proto, Prune(ratio=0.3, repair=False), channel_step=step)
        assert [counts(result).get(f"Conv{2 * i}", [8, 8])[1] for i in range(1, 6)] == expected


@pytest.mark.parametrize("added", [True, False])
def test_what_is_added_behind_a_product_is_added_once(net: Any, added: bool) -> None:
    """A MatMul has no bias: repairs add behind it, each what is missing after the one before."""
    n = net("N", 8)
    y = n.op("MatMul", "x", n.normal(8, 32))
    for _ in range(2):
        y = n.op("MatMul", n.relu(n.op("Add", y, n.normal(32)) if added else y), n.normal(32, 32))
    model = n.model(n.op("MatMul", n.relu(y), n.normal(32, 4)))
    deviations = []
    for steps in (1, 3):
        small, result = prune(model, Prune(ratio=0.5, align=4, steps=steps), samples=200)
        feed = next(iter(open_dataset(None, small.inputs, samples=64, seed=1).batches(64)))
        (got,), (wanted,) = (Session(m).run(feed).values() for m in (small, Model.from_proto(model)))
        deviations.append(float(np.square(got - wanted).sum() / np.square(wanted).sum()))
        assert len(counts(result)) == 2
    assert deviations[1] < 1.5 * deviations[0] < 0.75


def test_dead_channels_are_no_reason_to_remove_others(net: Any) -> None:
    n = net("N", 16)
    y = n.relu(n.op("Gemm", "x", n.normal(16, 64), n.constant(np.where(np.arange(64) < 52, -100.0, 0.0))))
    model = n.model(n.dense(n.relu(n.dense(y, 64, 32)), 32, 4))
    _, result = prune(model, Prune(macs="-50%", keep_ends=False), samples=128)
    assert next(iter(counts(result).values())) == [64, 16]


def test_counts_off_the_fast_layout_are_told(zoo: Zoo) -> None:
    _, result = prune(zoo["plain"](), Prune(ratio=0.3, align=1, repair=False))
    (note,) = list(result.figures["notes"])  # type: ignore[arg-type]  # a list of texts
    assert note.startswith("2 convolutions keep a number of channels that is no multiple of 4 (Conv2, Conv5): ONNX")
    _, result = prune(zoo["plain"](), Prune(ratio=0.3, repair=False))
    assert "notes" not in result.figures


def test_inner_leaves_what_residual_additions_share(zoo: Zoo) -> None:
    _, result = prune(zoo["residual"](), Prune(align=4, keep_ends=False))
    assert sorted(counts(result)) == ["Conv10", "Conv17", "Conv25", "Conv3"]
    assert reasons(result)["Conv20"] == "shares its channels across a residual addition; scope=all prunes them"
    _, result = prune(zoo["residual"](), Prune(align=4, scope="all", keep_ends=False))
    assert len(counts(result)) == 10


def test_what_could_not_go_anyway_is_not_blamed_on_options(zoo: Zoo) -> None:
    _, result = prune(zoo["attention"](), Prune(keep_ends=False, repair=False))
    told = [why for name, why in reasons(result).items() if name in ("MatMul0", "MatMul21", "MatMul32")]
    assert told == ["its channels stay: LayerNormalization 'LayerNormalization2' needs them all"] * 3


def test_a_quantized_reader_is_not_repaired(net: Any) -> None:
    n = net(4, 6)
    codes = n.constant(n.rng.integers(-127, 128, (16, 3)), np.int8)
    weight = n.op("DequantizeLinear", codes, n.constant(0.01), n.constant(0, np.int8))
    proto = n.model(n.op("MatMul", n.relu(n.dense("x", 6, 16)), weight))
    _, result = prune(proto, Prune(align=4, keep_ends=False))
    assert counts(result) == {"Gemm1": [16, 12]}
    assert "not repaired: it is quantized, which has to come after" in reasons(result).values()


def test_a_gate_is_no_residual_addition(zoo: Zoo) -> None:
    _, result = prune(zoo["gated"](), Prune(align=4, keep_ends=False))
    assert counts(result) == {"Conv0": [32, 24], "Conv3": [16, 12], "Conv5": [32, 24], "Conv8": [32, 24]}


def test_gelu_written_with_additions_is_no_residual_addition(net: Any) -> None:
    n = net(4, 16)
    y = n.dense("x", 16, 32)
    cube = n.op("Mul", n.op("Pow", y, n.constant(3.0)), n.constant(0.044715))
    y = n.op("Mul", y, n.op("Tanh", n.op("Add", y, cube)))
    _, result = prune(n.model(n.dense(y, 32, 4)), Prune(align=4, keep_ends=False))
    assert counts(result) == {"Gemm0": [32, 24]}


def test_first_and_last_layers_are_kept(zoo: Zoo) -> None:
    _, result = prune(zoo["plain"](), Prune(align=4))
    assert sorted(counts(result)) == ["Conv2", "Conv5"]
    assert reasons(result)["Conv0"] == "first or last layer; keep-ends=false prunes it"
    _, result = prune(zoo["plain"](), Prune(align=4, keep_ends=False))
    assert sorted(counts(result)) == ["Conv0", "Conv2", "Conv5"]


def test_a_last_layer_whose_channels_could_go_is_kept(net: Any) -> None:
    n = net(4, 16)
    y = n.relu(n.dense(n.relu(n.dense("x", 16, 32)), 32, 32))
    proto = n.model(n.op("Einsum", y, n.normal(32, 2), equation="ij,jk->ik"))
    assert sorted(counts(prune(proto, Prune(align=4, keep_ends=False))[1])) == ["Gemm0", "Gemm2"]
    _, result = prune(proto, Prune(align=4))
    assert result.changed == 0
    assert reasons(result)["Einsum4"] == "its weights are not judged"
    assert reasons(result)["Gemm2"] == "first or last layer; keep-ends=false prunes it"


def recurrent(n: Any, op: str = "LSTM", directions: int = 1) -> onnx.ModelProto:
    """Two recurrent layers of 32 hidden units between products; every fourth unit makes nothing but zeros."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    way = "bidirectional" if directions == 2 else "forward"
    x, width = n.op("Transpose", n.op("MatMul", "x", n.normal(8, 16)), perm=[1, 0, 2]), 16
    for _ in range(2):
        weights = [n.rng.standard_normal((directions, gates, 32, k)) * 0.4 for k in (width, 32)]
        for weight in weights:
            weight[:, :, ::4] = 0
        constants = [n.constant(w.reshape(directions, gates * 32, -1)) for w in weights]
        y, *_ = n.op(op, x, *constants, outputs=2, hidden_size=32, direction=way)
        width = 32 * directions
        x = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(0, 0, width))
    made: onnx.ModelProto = n.model(n.op("MatMul", n.op("Transpose", x, perm=[1, 0, 2]), n.normal(width, 5)))
    return made


@pytest.mark.parametrize("criterion", ["obs", "l1", "fpgm"])
@pytest.mark.parametrize(("op", "directions"), [("LSTM", 1), ("LSTM", 2), ("GRU", 1), ("RNN", 2)])
def test_hidden_units(op: str, directions: int, criterion: Any, net: Any) -> None:
    """Those that make nothing go first, in both directions at once."""
    proto = recurrent(net("N", 6, 8), op, directions)
    model, result = prune(proto, Prune(ratio=0.25, align=8, criterion=criterion))
    layers = [n for n in model.graph.nodes if n.op == op]
    names = [n.name for n in layers]
    assert counts(result) == {name: [32, 24] for name in names}
    assert [n.attrs["hidden_size"] for n in layers] == [24, 24]
    assert [n.inputs[2].shape[::2] for n in layers] == [(directions, 24)] * 2
    assert layers[1].inputs[1].shape[2] == 24 * directions
    assert float(str(result.figures["proof"])) < 1e-5
    why = f"not repaired: it is {'a' if op == 'GRU' else 'an'} {op}"
    assert {name: reasons(result)[name] for name in names} == dict.fromkeys(names, why)
    original = Model.from_proto(proto)
    feed = next(iter(open_dataset(None, original.inputs, samples=16).batches(16)))
    (expected,), (got,) = (Session(m).run(feed).values() for m in (original, model))
    if criterion != "fpgm":
        assert deviation(expected, got) < 1e-4


@pytest.mark.parametrize("directions", [1, 2])
def test_hidden_units_under_a_budget(directions: int, net: Any) -> None:
    proto = recurrent(net("N", 6, 8), "LSTM", directions)
    for budget, counted in (("params", "parameters"), ("macs", "macs")):
        model, result = prune(proto, Prune(**{budget: "-30%"}, repair=False))  # type: ignore[arg-type]  # one of the budgets
        assert all(name.startswith("LSTM") for name in counts(result))
        share = getattr(totals(model), counted) / getattr(totals(Model.from_proto(proto)), counted)
        assert 0.4 < share <= 0.7
        *_, (saved, _) = list(result.figures["curve"])  # type: ignore[arg-type]  # rows of numbers
        assert share == pytest.approx(1 - saved, abs=1e-3)


def test_hidden_units_in_groups_and_reasons_to_stay(net: Any) -> None:
    n = net("N", 6, 8)
    y, *_ = n.op("LSTM", "x", n.normal(1, 64, 8), n.normal(1, 64, 16), outputs=2, hidden_size=16)
    _, result = prune(n.model(y), Prune(keep_ends=False))
    assert reasons(result) == {"LSTM0": f"its channels stay: '{y}' is an output of the model"}
    assert result.figures["frozen"] == [
        {"why": f"'{y}' is an output of the model", "layers": ("LSTM0",), "parameters": 64 * (8 + 16)}
    ]


def test_what_only_a_recurrent_layer_reads_goes_by_its_activations(net: Any) -> None:
    """Large weights behind a Relu that never opens: the norms of weights would keep them."""
    n = net("N", 6, 8)
    weight, shift = n.rng.standard_normal((8, 16)), np.zeros(16)
    weight[:, ::4], shift[::4] = weight[:, ::4] * 5, -1e3
    y = n.relu(n.op("Add", n.op("MatMul", "x", n.constant(weight)), n.constant(shift)))
    y, *_ = n.op("GRU", y, n.normal(1, 12, 16), n.normal(1, 12, 4), outputs=2, hidden_size=4)
    proto = n.model(y)
    for criterion, dead in (("obs", 0), ("l1", 4)):
        model, _ = prune(proto, Prune(ratio=0.25, align=4, criterion=criterion, keep_ends=False))  # type: ignore[arg-type]  # one of the criteria
        kept = next(node.inputs[1].values for node in model.graph.nodes if node.op == "Add")
        assert (len(kept), int((kept < 0).sum())) == (12, dead)


def test_hidden_units_step_by_step_with_a_first_state_of_computed_size(net: Any) -> None:
    """What the first step wrote among the sizes is followed in the second."""
    n = net("N", 6, 8)
    count = n.op("Slice", n.op("Shape", "x"), n.ints(1), n.ints(2))
    state = n.op("ConstantOfShape", n.op("Concat", n.ints(1), count, n.ints(64), axis=0))
    weights = [n.normal(1, 192, 8), n.normal(1, 192, 64), "", ""]
    y, *_ = n.op("GRU", "x", *weights, state, outputs=2, hidden_size=64)
    proto = n.model(n.op("Add", n.op("MatMul", y, n.normal(64, 4)), n.constant(np.zeros(4))))
    _, result = prune(proto, Prune(ratio=0.5, align=8, steps=2, keep_ends=False))
    assert list(counts(result).values()) == [[64, 32]]


def test_only_the_last_state_is_read(net: Any) -> None:
    n = net("N", 6, 8)
    inputs = ["x", n.normal(1, 96, 8), n.normal(1, 96, 32)]
    n.nodes.append(helper.make_node("GRU", inputs, ["", "last"], name="GRU", hidden_size=32))
    _, result = prune(n.model(n.op("MatMul", "last", n.normal(32, 4))), Prune(align=8, keep_ends=False))
    assert counts(result) == {"GRU": [32, 24]}


def test_what_reads_fewer_channels_and_is_no_layer_is_reported(net: Any) -> None:
    n = net(4, 16)
    y = n.relu(n.dense("x", 16, 32))
    y = n.op("Einsum", y, n.normal(32, 16), equation="ij,jk->ik")
    _, result = prune(n.model(n.dense(y, 16, 3)), Prune(align=4, keep_ends=False))
    assert counts(result) == {"Gemm0": [32, 24]}
    assert reasons(result)["Einsum2"] == "not repaired: Einsum reads fewer channels"


def test_reasons_of_layers_that_are_left_alone(net: Any) -> None:
    n = net(4, 3, 8, 8)
    mixed = n.op("Softmax", n.conv("x", 3, 16), axis=1)
    small = n.relu(n.conv(mixed, 16, 4))
    computed = n.op("Conv", small, n.op("Abs", n.normal(16, 4, 1, 1)))
    _, result = prune(n.model(n.conv(computed, 16, 3)), Prune(keep_ends=False))
    assert reasons(result) == {
        "Conv0": "its channels stay: Softmax 'Softmax1' needs them all",
        "Conv2": "too few channels that go together to remove any, with this ratio and align",
        "Conv5": "it has weights that are not constant",
        "Conv6": "its channels stay: 'conv6' is an output of the model",
    }


def test_layers_in_bodies_are_reported(net: Any) -> None:
    n = net(4, 3, 8, 8)
    x = n.relu(n.conv("x", 3, 16))
    weight = n.normal(16, 16, 1, 1)
    bodies = []
    for name in ("then", "else"):
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        bodies.append(helper.make_graph([helper.make_node("Conv", [x, weight], [name], name=name)], name, [], [made]))
    y = n.op(
        "If",
        n.op("Greater", n.op("ReduceMax", x, keepdims=0), n.constant(0.0)),
        then_branch=bodies[0],
        else_branch=bodies[1],
    )
    _, result = prune(n.model(n.conv(n.conv(y, 16, 16), 16, 3)), Prune(align=4))
    assert counts(result)["Conv5"] == [16, 12]


def test_a_layer_that_cannot_be_repaired_is_reported(net: Any) -> None:
    n = net(4, 6)
    y = n.op("Transpose", n.relu(n.dense("x", 6, 16)), perm=[1, 0])
    _, result = prune(n.model(n.op("Gemm", y, n.normal(16, 3), transA=1)), Prune(align=4, keep_ends=False))
    assert reasons(result)["Gemm3"] == "not repaired: it transposes its input"
    assert result.figures["repaired"] == []


def with_a_useless_block(net: Any) -> onnx.ModelProto:
    """Three residual blocks, of which the second hardly says anything."""
    n = net()
    x = n.relu(n.conv("x", 3, 16))
    for strength in (1.0, 1e-3, 1.0):
        y = n.conv(n.relu(n.conv(x, 16, 16)), 16, 16)
        x = n.relu(n.op("Add", x, n.op("Mul", y, n.constant(strength))))
    made: onnx.ModelProto = n.head(x, 16)
    return made


def totals(model: Model) -> OperatorCost:
    return cost(model, Context(model, open_dataset(None, model.inputs, samples=4)).shapes(model)).total


@pytest.mark.parametrize(
    ("quantity", "counted"), [("macs", "macs"), ("params", "parameters"), ("size", "weight_bytes")]
)
def test_a_useless_block_goes_before_channels(quantity: str, counted: str, net: Any) -> None:
    proto = with_a_useless_block(net)
    model, result = prune(proto, Prune(**{quantity: "-45%"}, layers=True))  # type: ignore[arg-type]  # one of the budgets
    assert result.figures["dropped"] == [{"add": "Add12", "layers": ["Conv8", "Conv10"]}]
    assert result.figures["notes"] == ["dropped 1 residual block, before Add12"]
    assert getattr(totals(model), counted) <= 0.55 * getattr(totals(Model.from_proto(proto)), counted)
    # What is left of the block is no layer: a constant is added by a convolution with ones.
    assert [n.op for n in model.graph.nodes if n.name == "Add12"] == ["Conv"]
    assert {"Conv2", "Conv4", "Conv14", "Conv16"} >= set(counts(result)) > set()
    assert "Add12" not in reasons(result)


def test_a_dropped_block_may_be_enough(net: Any) -> None:
    """Then no channel goes; the layers behind are solved anew all the same. In many steps, blocks go in the first."""
    for steps in (1, 2):
        _, result = prune(with_a_useless_block(net), Prune(macs="-25%", layers=True, steps=steps, keep_ends=False))
        assert (result.changed, counts(result)) == (1, {})
        assert "proof" not in result.figures
        repaired = list(result.figures["repaired"])  # type: ignore[arg-type]  # a list of tables
        assert [r["layer"] for r in repaired] == ["Conv14", "Conv16", "Gemm22"]


def test_a_dropped_block_is_not_the_first_layer(net: Any) -> None:
    """What was behind it is the first now, and stays."""
    n = net("N", 16, 8, 8)
    x = n.op("Add", "x", n.op("Mul", n.conv("x", 16, 16), n.constant(1e-3)))
    x = n.relu(n.conv(n.relu(n.conv(x, 16, 16)), 16, 16))
    _, result = prune(n.head(x, 16), Prune(macs="-45%", layers=True, repair=False))
    assert result.figures["dropped"] == [{"add": "Add2", "layers": ["Conv0"]}]
    assert sorted(counts(result)) == ["Conv5"]


def test_blocks_that_stay(zoo: Zoo, net: Any) -> None:
    for include, exclude in (("", "Conv8"), ("Conv2+Conv4+Conv8+Conv14+Conv16", "")):
        step = Prune(macs="-10%", layers=True, include=include, exclude=exclude, repair=False)
        assert "dropped" not in prune(with_a_useless_block(net), step)[1].figures
    for macs in ("-20%", "1G"):
        _, result = prune(zoo["plain"](), Prune(macs=macs, layers=True, repair=False))
        assert "dropped" not in result.figures


def test_nothing_to_do(zoo: Zoo) -> None:
    _, result = prune(zoo["plain"](), Prune(ratio=0.0))
    assert result.changed == 0
    assert "proof" not in result.figures
    assert len(result.skips) == 4


def test_channels_without_effect_go_first(net: Any) -> None:
    n = net()
    weight = n.rng.standard_normal((16, 3, 3, 3)) * 5
    weight[::4] *= 0.01
    x = n.relu(n.op("Conv", "x", n.constant(weight)))
    readers = n.rng.standard_normal((4, 16, 1, 1)) * 0.1
    readers[:, 1::4] = 0
    proto = n.model(n.op("Conv", x, n.constant(readers)))
    for criterion, gone in (("l1", 0), ("l2", 0), ("obs", 1)):
        step = Prune(ratio=0.25, align=4, criterion=criterion, keep_ends=False, repair=False)  # type: ignore[arg-type]  # one of the criteria
        model, _ = prune(proto, step)
        kept = model.graph.nodes[0].inputs[1].values
        left = [k for k in range(16) if any(np.array_equal(weight[k].astype(np.float32), w) for w in kept)]
        assert left == [k for k in range(16) if k % 4 != gone]


def test_repair_and_choice_by_data_bring_the_answers_back(zoo: Zoo) -> None:
    proto = zoo["residual"]()
    original = Model.from_proto(proto)
    feed = next(iter(open_dataset(None, original.inputs, samples=400).subset(range(360, 400)).batches(40)))
    (expected,) = Session(original).run(feed).values()

    def loss(**options: Any) -> float:
        model, _ = prune(proto, Prune(ratio=0.5, align=4, **options), samples=360)
        (got,) = Session(model).run(feed).values()
        return deviation(expected, got)

    plain, repaired, chosen = loss(criterion="l1", repair=False), loss(criterion="l1"), loss()
    assert repaired < 0.5 * plain
    assert chosen < repaired


def test_figures(zoo: Zoo) -> None:
    _, result = prune(zoo["plain"](), Prune(align=4))
    errors = {"error_before_repair", "error_after_repair"}
    assert set(result.figures) == {"channels", "groups", "frozen", "proof", "samples", "repaired", *errors}
    assert result.figures["samples"] == 40
    assert float(str(result.figures["error_after_repair"])) < float(str(result.figures["error_before_repair"]))
    assert result.changed == 16
    repaired = list(result.figures["repaired"])  # type: ignore[arg-type]  # a list of tables
    assert [r["layer"] for r in repaired] == ["Conv5", "Gemm9"]
    assert all(r["after"] <= r["before"] and r["rows"] > 0 for r in repaired)
    _, result = prune(zoo["plain"](), Prune(align=4, repair=False))
    assert "repaired" not in result.figures


def test_the_same_channels_on_every_run(zoo: Zoo) -> None:
    first, second = (prune(zoo["residual"](), Prune(scope="all"))[0].to_proto() for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_a_wrong_cut_is_refused(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(corrections.table, "Relu", lambda model, node, cut: setattr(node, "op", "Abs"))
    with pytest.raises(PassError, match=r"removing channels changes output 'gemm9' by .* report it as a bug"):
        prune(zoo["plain"](), Prune(align=4))


def test_half_precision(net: Any) -> None:
    n = net()
    proto = n.model(n.conv(n.relu(n.conv(n.relu(n.conv("x", 3, 16)), 16, 16)), 16, 4))
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    model, result = prune(proto, Prune(align=4))
    assert counts(result) == {"Conv2": [16, 12]}
    assert {c.dtype for c in model.constants()} == {np.dtype(np.float16)}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("prune:ratio=1.0", "ratio must be at least 0 and less than 1, not 1.0"),
        ("prune:ratio=-0.1", "ratio must be at least 0"),
        ("prune:align=-1", "align must not be negative, not -1"),
        ("prune:samples=0", "samples must be at least 1, not 0"),
        ("prune:scope=outer", "scope"),
        ("prune:criterion=l3", "criterion"),
        ("prune:layers=true", "layers=true needs a budget: macs, params, size or latency"),
        ("prune:macs=-30%:layers=true:criterion=l1", "layers=true weighs blocks .* it needs criterion=obs"),
        ("prune:ratio=0.5:layers=true", "layers=true needs a budget: macs, params, size or latency"),
    ],
)
def test_wrong_options(spec: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        parse(spec)


def test_normalisations_are_folded_first() -> None:
    assert [step.name for step in plan(parse("prune:ratio=0.2")).steps][-3:] == ["fold-bn", "conv-shortcut", "prune"]


@pytest.mark.zoo
@pytest.mark.skipif("ONNXOPT_ZOO" not in os.environ, reason="ONNXOPT_ZOO names no folder of models")
@pytest.mark.parametrize("scope", ["inner", "all"])
def test_published_models(scope: Any) -> None:
    for path in sorted(Path(os.environ["ONNXOPT_ZOO"]).glob("*.onnx")):
        _, result = prune(io.load(path).to_proto(), Prune(scope=scope, samples=8), samples=8)
        assert result.changed or result.skips, path.name
