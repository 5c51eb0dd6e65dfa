"""Residual branches: which there are, how little they do, and what is put in their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph import verify
from onnxopt.graph.model import Model
from onnxopt.pruning import depth
from onnxopt.pruning.depth import Branch
from onnxopt.pruning.probe import Probe
from onnxopt.runtime.session import Session

Zoo = dict[str, Callable[[], onnx.ModelProto]]


def opened(proto: onnx.ModelProto, samples: int = 24) -> tuple[Model, Context, list[Branch]]:
    model = Model.from_proto(proto)
    model.tidy()
    context = Context(model.clone(), open_dataset(None, model.inputs, samples=samples), batch=8)
    return model, context, depth.branches(model, context.shapes(model))


def lost(model: Model, found: list[Branch], levels: list[Any], probe: Probe) -> list[float]:
    return [probe.of(depth.without(model, b, level)) for b, level in zip(found, levels, strict=True)]


def layers(found: list[Branch]) -> list[tuple[str, ...]]:
    return [b.layers for b in found]


FOUND: dict[str, list[tuple[str, ...]]] = {
    # The third block begins with a projection, which is the shorter side.
    "residual": [("Conv3", "Conv6"), ("Conv10", "Conv13"), ("Conv17", "Conv20"), ("Conv25", "Conv28")],
    "padded_shortcut": [("Conv2", "Conv4")],
    "inverted": [("Conv2", "Conv4", "Conv6"), ("Conv8", "Conv10", "Conv12")],
    "split_and_joined": [("Conv4", "Conv6")],
    "attention": [
        ("MatMul3", "MatMul6", "MatMul9", "MatMul15", "MatMul18", "MatMul21"),
        ("MatMul25", "MatMul32"),
    ],
    "plain": [], "gated": [], "hourglass": [], "branching": [], "densely_connected": [],
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_the_branches_of_real_forms(name: str, zoo: Zoo) -> None:
    _, _, found = opened(zoo[name]())
    assert [tuple(sorted(b.layers)) for b in found] == [tuple(sorted(names)) for names in FOUND[name]]


def test_macs_are_those_of_the_layers(zoo: Zoo) -> None:
    _, _, found = opened(zoo["residual"]())
    assert [b.macs for b in found] == [
        2 * 64 * 16 * 16 * 9, 2 * 64 * 16 * 16 * 9, 16 * (16 + 32) * 32 * 9, 2 * 16 * 32 * 32 * 9
    ]  # fmt: skip


def test_branches_within_branches(net: Any) -> None:
    n = net()
    x = n.relu(n.conv("x", 3, 8))
    inner = n.relu(n.conv(x, 8, 8))
    inner = n.op("Add", n.conv(inner, 8, 8), inner)
    y = n.op("Add", x, n.conv(inner, 8, 8))
    _, _, found = opened(n.head(y, 8))
    assert layers(found) == [("Conv4",), ("Conv2", "Conv4", "Conv6")]
    assert [b.slot for b in found] == [0, 1]


def test_what_others_need_does_not_go_along(net: Any) -> None:
    """The first layer of the branch is read behind the sum as well; a branch without layers of its own is none."""
    n = net()
    x = n.relu(n.conv("x", 3, 8))
    a = n.conv(x, 8, 8)
    y = n.op("Add", x, n.conv(n.relu(a), 8, 8))
    z = n.op("Add", y, n.op("Sigmoid", a))
    _, _, found = opened(n.head(n.op("Concat", z, a, axis=1), 16))
    assert layers(found) == [("Conv4",)]


def test_a_branch_that_starts_where_another_reads(net: Any) -> None:
    """Before its first layer lies a node that the projection reads too."""
    n = net()
    x = n.conv("x", 3, 8)
    r = n.relu(x)
    y = n.op("Add", n.conv(r, 8, 8, 1), n.conv(n.relu(n.conv(r, 8, 8)), 8, 8))
    y = n.op("Add", y, n.conv(n.relu(n.op("Add", y, n.conv(r, 8, 8))), 8, 8))
    _, _, found = opened(n.head(y, 8))
    assert layers(found) == [("Conv3", "Conv5"), ("Conv7", "Conv10")]


def test_a_projection_whose_weights_are_inputs_with_a_default(net: Any) -> None:
    n = net()
    x = n.relu(n.conv("x", 3, 8))
    proto = n.head(n.op("Add", n.conv(x, 8, 8, 1), n.conv(n.relu(n.conv(x, 8, 8)), 8, 8)), 8)
    for weight in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    _, _, found = opened(proto)
    assert layers(found) == [("Conv3", "Conv5")]


def test_a_branch_that_runs_in_a_body(net: Any) -> None:
    """What a body reads from outside is read by the node that holds it."""
    n = net()
    x = n.relu(n.conv("x", 3, 8))
    weight, made = n.normal(8, 8, 1, 1), onnx.helper.make_tensor_value_info("made", 1, None)
    inside = [onnx.helper.make_node("Conv", [x, weight], ["made"], "inside")]
    other = [onnx.helper.make_node("Neg", [x], ["negated"], "other")]
    bodies = {
        "then_branch": onnx.helper.make_graph(inside, "then", [], [made]),
        "else_branch": onnx.helper.make_graph(
            other, "else", [], [onnx.helper.make_tensor_value_info("negated", 1, None)]
        ),
    }
    y = n.op("If", n.op("Greater", n.op("ReduceMean", x, keepdims=0), n.constant(0.3)), **bodies)
    _, _, found = opened(n.head(n.op("Add", x, y), 8))
    assert [(b.slot, b.layers, b.macs) for b in found] == [(1, ("inside",), 8 * 8 * 64)]


@pytest.mark.parametrize("other", ["equal", "input", "broadcast", "twice", "constant"])
def test_sums_that_are_no_residuals(other: str, net: Any) -> None:
    n = net("N", 8, 8, 8)
    x = n.conv("x", 8, 8)
    beside = {
        "equal": lambda: n.conv("x", 8, 8),
        "input": lambda: n.op("Neg", "x"),
        "broadcast": lambda: n.conv(n.op("GlobalAveragePool", x), 8, 8, 1),
        "twice": lambda: x,
        "constant": lambda: n.constant(np.ones((1, 8, 1, 1))),
    }[other]()
    _, _, found = opened(n.head(n.op("Add", x, beside), 8))
    assert layers(found) == ([("Conv0",)] if other == "input" else [])


@pytest.mark.parametrize("form", ["pictures", "odd pictures", "lines", "sequences"])
def test_a_constant_branch_is_replaced_exactly(form: str, net: Any) -> None:
    c = 6 if form == "odd pictures" else 8
    n = {"lines": net("N", c, 6), "sequences": net("N", 6, c)}.get(form, net("N", c, 6, 6))
    level = n.constant(np.linspace(-1, 1, c))
    if form == "sequences":
        y = n.op("Add", n.op("MatMul", n.op("MatMul", "x", n.normal(c, c)), n.constant(np.zeros((c, c)))), level)
    else:
        y = n.op("Conv", "x", n.constant(np.zeros((c, c, 1, 1) if form != "lines" else (c, c, 1))), level)
    model, context, (branch,) = opened(n.model(n.op("Tanh", n.op("Add", y, "x"))))
    (mean,) = depth.means(model, [branch], context, 24)
    assert mean == pytest.approx(np.linspace(-1, 1, c), rel=1e-6)
    assert lost(model, [branch], [mean], Probe(model, context, 24)) == pytest.approx([0], abs=1e-12)
    boundary = verify.boundary(model)
    depth.drop(model, branch, mean)
    model.tidy()
    assert verify.faults(model, boundary) == []
    assert [node.op for node in model.graph.nodes] == ["Conv" if form == "pictures" else "Add", "Tanh"]
    feed = next(iter(context.dataset.batches(8)))
    (expected,), (got,) = (Session(m).run(feed).values() for m in (context.original, model))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_blocks_of_channels_stay_whole_behind_a_dropped_branch(net: Any, tmp_path: Path) -> None:
    """As many changes of layout as before."""
    n = net(1, 16, 8, 8)
    x = n.relu(n.conv("x", 16, 16))
    for _ in range(3):
        x = n.relu(n.op("Add", x, n.conv(n.relu(n.conv(x, 16, 16)), 16, 16)))
    model, context, found = opened(n.model(x), samples=2)
    depth.drop(model, found[0], depth.means(model, found, context, 2)[0])
    model.tidy()

    def changes(m: Model) -> int:
        Session(m, save_optimized=tmp_path / "optimized.onnx")
        nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
        return sum(node.op_type in ("ReorderInput", "ReorderOutput") for node in nodes)

    assert changes(model) == changes(context.original)


def test_the_mean_leaves_the_variance(net: Any) -> None:
    """Where the sum is the output, the error is the branch's variance about its mean, a known share of all."""
    n = net("N", 4, 6, 6)
    y = n.op("Conv", "x", n.constant(0.5 * np.eye(4)[:, :, None, None]), n.constant([3.0, 0.0, -1.0, 2.0]))
    model, context, found = opened(n.model(n.op("Add", "x", y)), samples=400)
    levels = depth.means(model, found, context, 400)
    probe = Probe(model, context, 400)
    (error,) = lost(model, found, levels, probe)
    (worse,) = lost(model, found, [np.zeros(4, np.float32)], probe)
    assert error == pytest.approx(1 / 9, rel=0.02)
    assert worse > 2 * error


def test_a_block_that_does_little_is_the_first_to_go(net: Any) -> None:
    n = net()
    x = n.relu(n.conv("x", 3, 16))
    for strength in (1.0, 0.01, 1.0):
        y = n.conv(n.relu(n.conv(x, 16, 16)), 16, 16)
        x = n.relu(n.op("Add", x, n.op("Mul", y, n.constant(strength))))
    model, context, found = opened(n.head(x, 16))
    levels = depth.means(model, found, context, 24)
    probe = Probe(model, context, 24)
    errors = lost(model, found, levels, probe)
    assert np.argmin(errors) == 1
    assert errors[1] < 0.01 * min(errors[0], errors[2])
    depth.drop(model, found[1], levels[1])
    model.tidy()
    again = depth.branches(model, context.shapes(model))
    assert layers(again) == layers([found[0], found[2]])
    both = lost(model, again, [levels[0], levels[2]], probe)
    assert both == pytest.approx([errors[0], errors[2]], rel=0.2)


@pytest.mark.parametrize("name", [k for k, v in FOUND.items() if v])
def test_every_branch_can_go(name: str, zoo: Zoo) -> None:
    model, context, found = opened(zoo[name](), samples=8)
    boundary, names = verify.boundary(model), {t.name for b in found for t in b.add.outputs}
    levels = depth.means(model, found, context, 8)
    assert np.isfinite(lost(model, found, levels, Probe(model, context, 8))).all()
    for branch, level in zip(found, levels, strict=True):
        depth.drop(model, branch, level)
    model.tidy()
    assert verify.faults(model, boundary) == []
    assert names <= model.variables().keys()
    assert not {n.name for n in model.graph.nodes} & {name for b in found for name in b.layers}
    feed = next(iter(context.dataset.batches(8)))
    (answer,), (expected,) = (Session(m).run(feed).values() for m in (model, context.original))
    assert answer.shape == expected.shape
    assert np.isfinite(answer).all()


def test_a_graph_without_branches(zoo: Zoo) -> None:
    model, context, found = opened(zoo["plain"](), samples=2)
    assert depth.means(model, found, context, 2) == []


def test_an_output_that_cannot_be_compared_counts_as_lost(net: Any) -> None:
    def made(op: str) -> Model:
        n = net("N", 4)
        return Model.from_proto(n.model(n.op(op, "x")))

    model = made("Relu")
    probe = Probe(model, Context(model, open_dataset(None, model.inputs, samples=24)), 24)
    for op, lost in (("Relu", 0.0), ("Sqrt", float("inf")), ("ReduceMax", 1.0)):
        other = made(op)
        other.graph.outputs[0].name = model.graph.outputs[0].name
        assert probe.of(other) == lost
