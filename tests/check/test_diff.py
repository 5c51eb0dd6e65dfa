"""How models differ: equal ones, renamed, pruned, quantized, folded, rewired, in bodies, with hostile names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from onnxopt.check.diff import look
from onnxopt.core.spec import parse
from onnxopt.graph import io
from onnxopt.graph.model import Model
from onnxopt.job import DataOptions, RunOptions, optimize
from onnxopt.report.diff_text import render_difference
from onnxopt.report.difference import Difference, Field

SAMPLES = Path(__file__).parents[2] / "sample_models"
RESNET, DATA = SAMPLES / "digits_resnet.onnx", SAMPLES / "digits_test.npz"


def compared(a: Any, b: Any, data: Path | None = None, samples: int = 4) -> Difference:
    source = DataOptions(data=data, samples=samples)
    models = [io.load(m) if isinstance(m, Path) else Model.from_proto(m) for m in (a, b)]
    return look(*models, lambda model, inputs=None: source.open_one(data, model, inputs))


def shown(found: Difference, verbose: bool = False) -> str:
    console = Console(width=160, force_terminal=False)
    with console.capture() as capture:
        console.print(render_difference(found, verbose=verbose))
    return capture.get()


def net(**changes: Any) -> onnx.ModelProto:
    """Conv, Relu, Conv, Add, with what ``changes`` says of it."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "w2": rng.standard_normal((8, 8, 3, 3)).astype(np.float32),
        "b2": rng.standard_normal(8).astype(np.float32),
    } | changes.get("weights", {})
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="one", **pads),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="two", **(changes.get("two", {}) | pads)),
        helper.make_node("Add", [changes.get("added", "r1"), "c2"], ["y"], name="sum"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", changes.get("opset", 17))], ir_version=8)


def renamed(model: onnx.ModelProto, change: Callable[[str], str]) -> onnx.ModelProto:
    """Every node and inner tensor with another name."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    keep = {"", *(v.name for v in (*model.graph.input, *model.graph.output))}
    for node in result.graph.node:
        node.name = change(node.name)
        for names in (node.input, node.output):
            names[:] = [n if n in keep else change(n) for n in names]
    for weight in result.graph.initializer:
        weight.name = change(weight.name)
    return result


def test_equal() -> None:
    found = compared(RESNET, RESNET, DATA)
    assert found.same
    assert all(p.same and p.a == p.b for p in found.pairs)
    assert (found.removed, found.added, found.interface, found.header, found.renamed) == ((), (), (), (), 0)
    assert found.numbers is not None
    assert found.numbers.first is None
    assert len(found.numbers.tensors) + 1 == len(found.pairs) == 43
    assert {t.sqnr_db for t in found.numbers.tensors} == {math.inf}
    assert "equal: the same graph with the same weights\n" in shown(found)
    assert found.sizes[0] == found.sizes[1]
    assert found.sizes[0].macs == sum(p.macs[0] or 0 for p in found.pairs)


@pytest.mark.parametrize("change", [lambda n: f"other/{n}", lambda n: f"[red]{n}\x1b[31m\n</x>"])
def test_renamed(change: Callable[[str], str]) -> None:
    found = compared(onnx.load(RESNET), renamed(onnx.load(RESNET), change))
    assert found.same
    assert found.renamed == len(found.pairs) == 43
    assert [p.b for p in found.pairs] == [change(p.a) for p in found.pairs]
    text = shown(found, verbose=True)
    assert "\x1b[31m" not in text
    assert "equal: the same graph with the same weights; 43 nodes renamed" in text


def test_header_does_not_count_but_opset_does() -> None:
    other = net()
    other.producer_name = "somebody"
    helper.set_model_props(other, {"key": "v" * 100})
    found = compared(net(), other)
    assert found.same
    assert found.header == (Field("producer name", "", "somebody"), Field("metadata key", "", "v" * 59 + "…"))
    later = compared(net(), net(opset=18))
    assert not later.same
    assert later.interface == (Field("opset ai.onnx", "17", "18"),)
    assert "different: inputs, outputs or opsets are others" in shown(later)


def test_a_weight() -> None:
    changed = numpy_helper.to_array(net().graph.initializer[2]).copy()
    largest = float(np.abs(changed).max())
    changed[3] += 0.5
    found = compared(net(), net(weights={"b2": changed}))
    (pair,) = (p for p in found.pairs if not p.same)
    (weight,) = pair.weights
    assert (pair.a, weight.input, weight.change, weight.a, weight.b) == ("two", 2, "changed", *["float32[8]"] * 2)
    assert weight.max_error == pytest.approx(0.5)
    assert weight.relative_error == pytest.approx(0.5 / largest)
    assert found.numbers is not None
    assert found.numbers.first == "c2"
    assert [t.sqnr_db == math.inf for t in found.numbers.tensors] == [True, True, False]
    assert "different: 1 of 4 common nodes changed, 1 weight changed" in shown(found)


@pytest.mark.parametrize(("a", "b", "error", "sqnr"), [
    (math.nan, math.nan, None, None), (math.nan, 2.0, math.inf, -math.inf), (2.0, math.inf, math.inf, -math.inf),
    (math.inf, -math.inf, math.inf, -math.inf),
])  # fmt: skip
def test_weights_that_are_no_numbers(a: float, b: float, error: float | None, sqnr: float | None) -> None:
    models = [net(weights={"b2": np.array([1, 2, 3, 4, 5, 6, 7, v], np.float32)}) for v in (a, b)]
    found = compared(*models)
    changes = [w for p in found.pairs for w in p.weights]
    assert [(w.max_error, w.sqnr_db) for w in changes] == ([] if error is None else [(error, sqnr)])
    assert "same values" not in shown(found)


def test_types_alone() -> None:
    """The same numbers in another type, text that is another, and no nodes at all."""

    def model(weight: onnx.TensorProto) -> onnx.ModelProto:
        weight.name = "w"
        graph = helper.make_graph(
            [helper.make_node("Cast", ["w"], ["c"], to=1), helper.make_node("Add", ["x", "c"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
            [weight],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    brain = helper.make_tensor("w", TensorProto.BFLOAT16, [2], [1.0, 2.0])
    half = numpy_helper.from_array(np.array([1, 2], np.float16))
    found = compared(model(brain), model(half))
    (weight,) = (w for p in found.pairs for w in p.weights)
    assert (weight.change, weight.a, weight.b, weight.max_error) == ("retyped", "bfloat16[2]", "float16[2]", 0.0)
    assert "input 0: bfloat16 → float16, same values" in shown(found)
    text = [model(numpy_helper.from_array(np.array([w, "2"], object))) for w in ("1", "3")]
    (weight,) = (w for p in compared(*text).pairs for w in p.weights)
    assert (weight.change, weight.max_error) == ("changed", None)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    empty = helper.make_model(helper.make_graph([], "g", [value], [value]), opset_imports=[helper.make_opsetid("", 17)])
    assert compared(empty, empty).same
    assert not compared(empty, model(half)).same


def test_attributes_and_their_defaults() -> None:
    assert compared(net(), net(two={"dilations": [1, 1], "group": 1, "auto_pad": "NOTSET"})).interface == ()
    found = compared(net(), net(two={"group": 1}))
    assert found.same
    found = compared(net(), net(two={"strides": [2, 2]}))
    (pair,) = (p for p in found.pairs if not p.same)
    assert Field("strides", "", "[2, 2]") in pair.fields
    # The sum of what does not fit does not run; the graphs are compared all the same.
    assert found.numbers is None
    assert any("numbers are not compared" in note for note in found.notes)


def test_the_same_nodes_joined_otherwise() -> None:
    found = compared(net(), net(added="c1"))
    assert not found.same
    (pair,) = (p for p in found.pairs if not p.same)
    assert (pair.a, pair.fields) == ("sum", (Field("input 0 comes from", "relu", "one"),))


def test_pruned(tmp_path: Path) -> None:
    done = tmp_path / "p.onnx"
    few = DataOptions(samples=4)
    optimize(RESNET, done, parse("prune:repair=false"), data=few, options=RunOptions(validate=False))
    found = compared(RESNET, done, DATA)
    pairs = {p.a: p for p in found.pairs}
    first = pairs["/blocks/blocks.0/first/first.0/Conv"]
    assert (first.weights[0].change, first.weights[0].a, first.weights[0].b) == (
        "reshaped", "float32[32,32,3,3]", "float32[24,32,3,3]",
    )  # fmt: skip
    assert first.macs == (9437184, 7077888)
    assert first.bytes[0] == 36864
    assert pairs["/blocks/blocks.0/Relu"].fields == (Field("output 0", "float32[1,32,32,32]", "float32[1,24,32,32]"),)
    assert Counter(n.op for n in found.removed) == {"BatchNormalization": 12, "Identity": 1}
    assert found.added == ()
    assert found.numbers is not None
    assert "removed: 12 BatchNormalization, 1 Identity" in shown(found)


def test_quantized(tmp_path: Path) -> None:
    folded, done = tmp_path / "f.onnx", tmp_path / "q.onnx"
    options = RunOptions(validate=False)
    optimize(RESNET, folded, parse("fold-bn"), options=options)
    data = DataOptions(data=DATA, samples=8)
    optimize(folded, done, parse("quant:effort=fast"), data=data, options=options)
    found = compared(folded, done, DATA)
    assert {n.op for n in found.added} == {"QuantizeLinear", "DequantizeLinear"}
    assert found.removed == ()
    weights = {p.a: p.weights[0] for p in found.pairs if p.op == "Conv"}
    assert {w.change for w in weights.values()} == {"retyped"}
    assert all(w.sqnr_db is not None and 25 < w.sqnr_db < 60 for w in weights.values())
    assert not any("comes from" in f.what for p in found.pairs for f in p.fields)
    assert found.numbers is not None
    assert all(o.sqnr_db > 15 for o in found.numbers.outputs)
    text = shown(found)
    assert "float32 → int8" in text
    assert "QuantizeLinear" in text


def test_another_scale_of_the_same_integers(tmp_path: Path) -> None:
    """Weights behind a DequantizeLinear are told once, of the layer that reads them."""

    def integers(scale: float) -> onnx.ModelProto:
        model = net()
        kept = [w for w in model.graph.initializer if w.name != "w1"]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        values = np.arange(216, dtype=np.int8).reshape(8, 3, 3, 3)
        for name, value in (("i", values), ("s", np.float32(scale))):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["i", "s"], ["w1"], name="dq"))
        return model

    assert compared(integers(0.1), integers(0.1)).same
    found = compared(integers(0.1), integers(0.2))
    (pair,) = (p for p in found.pairs if not p.same)
    (weight,) = pair.weights
    assert (pair.a, weight.change) == ("one", "changed")
    assert weight.sqnr_db == pytest.approx(0.0, abs=0.01)


def test_other_inputs_are_not_run() -> None:
    other = net()
    other.graph.input[0].name = other.graph.node[0].input[0] = "z"
    found = compared(net(), other)
    assert found.numbers is None
    assert found.interface == (Field("input 0", "x: float32[N,3,8,8]", "z: float32[N,3,8,8]"),)
    assert "numbers are not compared: one takes x: float32[N,3,8,8], the other z" in found.notes[0]


def test_functions_and_bodies() -> None:
    def branch(op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["x"], ["o"], name="in")], "body", [], [out])

    def model(op: str, function: str) -> onnx.ModelProto:
        truth = numpy_helper.from_array(np.array(True), "t")
        nodes = [
            helper.make_node("If", ["t"], ["i"], name="if", then_branch=branch(op), else_branch=branch("Neg")),
            helper.make_node("F", ["i"], ["y"], domain="own", name="f"),
        ]
        own = helper.make_function(
            "own", "F", ["a"], ["b"], [helper.make_node(function, ["a"], ["b"])], [helper.make_opsetid("", 17)]
        )
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
            [truth],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        return helper.make_model(graph, opset_imports=opsets, functions=[own], ir_version=8)

    assert compared(model("Exp", "Abs"), model("Exp", "Abs")).same
    assert compared(model("Exp", "Abs"), model("Exp", "Relu")).interface == (
        Field("function own.F", "is there", "is there"),
    )
    found = compared(model("Exp", "Abs"), model("Relu", "Abs"))
    assert not found.same
    assert [p.fields for p in found.pairs if not p.same] == [(Field("operator", "Exp", "Relu"),)]


def test_external_data(tmp_path: Path) -> None:
    model = onnx.load(RESNET)
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="weights", size_threshold=64)
    found = compared(RESNET, tmp_path / "e.onnx")
    assert found.same
    assert found.sizes[1].file_bytes > found.sizes[1].weight_bytes
