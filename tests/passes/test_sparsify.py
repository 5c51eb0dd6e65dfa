"""Sparsify: how many zeros, where they lie, what error is left, what stays as it is, and what the report says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.manager import PassManager, plan
from onnxopt.core.pass_ import PassResult
from onnxopt.core.spec import parse
from onnxopt.data.dataset import Dataset, open_dataset
from onnxopt.data.part import Part
from onnxopt.errors import SpecError
from onnxopt.graph.compressed import compressed_bytes
from onnxopt.graph.ir import Node
from onnxopt.graph.model import Model
from onnxopt.graph.verify import boundary, faults
from onnxopt.numerics.tolerance import deviation
from onnxopt.passes.sparsify import Sparsify
from onnxopt.runtime.session import Session

LAYERS: dict[str, Callable[[Any], str]] = {
    "Conv": lambda n: n.conv("x", 8, 6),
    "strided Conv without bias": lambda n: n.op("Conv", "x", n.normal(6, 8, 3, 2), strides=[2, 1]),
    "grouped Conv": lambda n: n.conv("x", 8, 6, group=2),
    "depthwise Conv": lambda n: n.conv("x", 8, 8, group=8),
    "ConvTranspose": lambda n: n.op("ConvTranspose", "x", n.normal(8, 6, 3, 3), strides=[2, 2], pads=[1] * 4),
    "grouped ConvTranspose": lambda n: n.op("ConvTranspose", "x", n.normal(8, 3, 2, 2), group=2, strides=[2, 2]),
    "Gemm": lambda n: n.dense(n.op("Flatten", "x", axis=3), 8, 5),
    "scaled Gemm": lambda n: n.op(
        "Gemm", n.op("Flatten", "x", axis=3), n.normal(8, 5), n.constant(np.arange(5)), alpha=0.5, beta=3.0
    ),
    "MatMul": lambda n: n.op("MatMul", "x", n.normal(8, 5)),
    "MatMul and bias": lambda n: n.op("Add", n.op("MatMul", "x", n.normal(8, 5)), n.constant(np.arange(5))),
}


def sparsify(proto: onnx.ModelProto, step: Sparsify, samples: int = 24) -> tuple[Model, PassResult]:
    """The model with zeros, held to what every pass promises; inputs that tell of each other."""
    original = Model.from_proto(proto)
    untouched = original.to_proto().SerializeToString(deterministic=True)
    model, expected = original.clone(), boundary(original)
    result = step.run(model, Context(original, data(original, samples), batch=8))
    model.tidy()
    assert faults(model, expected) == []
    assert original.to_proto().SerializeToString(deterministic=True) == untouched
    onnx.checker.check_model(model.to_proto(), full_check=True)
    return model, result


def data(model: Model, samples: int = 24, seed: int = 0) -> Dataset:
    """Numbers whose neighbours resemble each other."""
    (spec,) = model.inputs
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, *(spec.shape or ())[1:]))
    x += np.roll(x, 1, axis=1) + 2 * np.roll(x, 1, axis=-1) + 0.5
    part = Part("made here", samples, "x", lambda rows: {spec.name: x[rows].astype(spec.dtype)})
    return Dataset("made here", model.inputs, (part,), np.arange(samples))


def layers_of(model: Model) -> dict[str, Node]:
    return {n.name: n for n in model.graph.nodes if n.op in unrolled.LAYERS}


def zeros(layer: Node) -> int:
    return int((layer.inputs[1].values == 0).sum())


def reasons(result: PassResult) -> dict[str, str]:
    return {skip.node: skip.why for skip in result.skips}


def off(proto: onnx.ModelProto, model: Model) -> float:
    """How far the answers to samples that were not used lie from the original's, squared."""
    original = Model.from_proto(proto)
    feed = next(iter(data(original, 8, seed=1).batches(8)))
    (expected,), (found,) = (list(Session(m).run(feed).values()) for m in (original, model))
    return float(np.square(found - expected).mean() / np.square(expected).mean())


@pytest.mark.parametrize("criterion", ["splitting", "obs", "magnitude"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer(name: str, criterion: Any, net: Any) -> None:
    n = net(8, 8, 6, 8)
    proto = n.model(LAYERS[name](n))
    model, result = sparsify(proto, Sparsify(criterion=criterion, ratio=0.4, keep_ends=False))
    (layer,) = layers_of(model).values()
    assert zeros(layer) == int(0.4 * layer.inputs[1].values.size + 0.5)
    assert result.changed == 1
    assert result.skips == ()
    (row,) = result.figures["layers"]  # type: ignore[misc,union-attr]  # a table
    assert row["zeros"] == zeros(layer) / row["weights"]  # type: ignore[index,call-overload]
    assert 0 < row["after"] <= row["before"]  # type: ignore[index,call-overload,operator]
    assert len(model.graph.nodes) == len(Model.from_proto(proto).graph.nodes)


def test_what_is_left_makes_good(net: Any) -> None:
    n = net(8, 8, 6, 8)
    proto = n.model(n.conv(n.relu(n.conv(n.relu(n.conv("x", 8, 16)), 16, 16)), 16, 6))
    errors = {}
    for criterion in ("magnitude", "obs", "splitting"):
        model, _ = sparsify(proto, Sparsify(criterion=criterion, keep_ends=False))
        errors[criterion] = off(proto, model)
    assert errors["obs"] < 0.5 * errors["magnitude"]
    assert errors["splitting"] < 0.5 * errors["magnitude"]
    assert errors["splitting"] < 1.05 * errors["obs"]


@pytest.mark.parametrize("criterion", ["splitting", "obs", "magnitude"])
@pytest.mark.parametrize("name", ["Conv", "ConvTranspose", "Gemm", "MatMul", "grouped Conv"])
def test_a_pattern_lies_along_the_input_channels(name: str, criterion: Any, net: Any) -> None:
    n = net(8, 8, 6, 8)
    model, _ = sparsify(n.model(LAYERS[name](n)), Sparsify(pattern="1:4", criterion=criterion, keep_ends=False))
    (layer,) = layers_of(model).values()
    weight = np.asarray(layer.inputs[1].values)
    along = 0 if layer.op in ("ConvTranspose", "MatMul") else 1
    runs = np.moveaxis(weight, along, -1).reshape(-1, 4)
    assert ((runs != 0).sum(axis=1) == 1).all()


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("double", np.float64)])
def test_types_stay(kind: str, dtype: Any, parse: Any) -> None:
    proto = parse(f"g ({kind}[8,8] x) => ({kind}[] z) <{kind}[8,6] w> {{ z = MatMul (x, w) }}")
    model, _ = sparsify(proto, Sparsify(keep_ends=False), samples=200)
    (layer,) = (node for node in model.graph.nodes)
    assert layer.inputs[1].dtype == dtype
    assert zeros(layer) == 24
    assert off(proto, model) < 0.05


def test_the_mean_stays(net: Any) -> None:
    n = net("N", 8, 6, 8)
    proto = n.model(n.conv("x", 8, 6))
    model, _ = sparsify(proto, Sparsify(criterion="magnitude", keep_ends=False), samples=400)
    feed = next(iter(data(model, 400).batches(400)))
    (expected,), (found,) = (list(Session(m).run(feed).values()) for m in (Model.from_proto(proto), model))
    lost = np.abs(found - expected).mean(axis=(0, 2, 3))
    assert (np.abs((found - expected).mean(axis=(0, 2, 3))) < 0.1 * lost).all()


def test_the_same_every_time(net: Any) -> None:
    n = net(8, 8, 6, 8)
    proto = n.model(n.conv(n.relu(n.conv("x", 8, 8)), 8, 6))
    first, second = (sparsify(proto, Sparsify(keep_ends=False))[0] for _ in range(2))
    assert first.digest() == second.digest()


def test_a_second_time_changes_nothing(net: Any) -> None:
    n = net(8, 8, 6, 8)
    proto = n.model(n.conv("x", 8, 6))
    for step in (Sparsify(keep_ends=False), Sparsify(keep_ends=False, pattern="2:4")):
        model, _ = sparsify(proto, step)
        again, result = sparsify(model.to_proto(), step)
        assert result.changed == 0
        assert reasons(result) == {"Conv0": "it has as many zeros already"}
        assert again.digest() == model.digest()


def test_what_is_left_alone(net: Any) -> None:
    n = net(4, 6, 8, 8)
    x = n.relu(n.conv("x", 6, 8))
    shared = n.normal(8, 8, 1, 1)
    x = n.op("Conv", n.op("Conv", x, shared), shared)
    x = n.op("Conv", x, n.op("Abs", n.normal(8, 8, 1, 1)))
    x = n.conv(n.conv(n.conv(x, 8, 6), 6, 6), 6, 4)
    proto = n.model(n.op("MatMul", x, n.constant(n.rng.standard_normal((4, 8, 3)))))
    names = [node.name for node in proto.graph.node if node.op_type in unrolled.LAYERS]
    _, result = sparsify(proto, Sparsify(pattern="2:4", exclude=f"{names[4]}+nothing"))
    assert reasons(result) == {
        names[0]: "first or last layer; keep-ends=false takes it too",
        names[1]: "it shares its weights with another node",
        names[2]: "it shares its weights with another node",
        names[3]: "it has weights that are not constant",
        names[4]: "excluded",
        names[5]: "it sums over 6 input channels, no multiple of 4",
        names[6]: "it sums over 6 input channels, no multiple of 4",
        names[7]: "first or last layer; keep-ends=false takes it too",
        "nothing": "exclude names no node: none is called so, or it was folded away",
    }
    assert result.changed == 0


def test_layers_in_bodies_are_left_alone(net: Any) -> None:
    n = net(4, 3, 8, 8)
    x = n.relu(n.conv("x", 3, 8))
    bodies = []
    for name in ("then", "else"):
        made = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        node = helper.make_node("Conv", [x, n.normal(8, 8, 1, 1)], [name], name=name)
        bodies.append(helper.make_graph([node], name, [], [made]))
    condition = n.op("Greater", n.op("ReduceMax", x, keepdims=0), n.constant(0.0))
    y = n.op("If", condition, then_branch=bodies[0], else_branch=bodies[1])
    _, result = sparsify(n.model(n.conv(n.conv(y, 8, 8), 8, 3)), Sparsify())
    assert reasons(result)["then"] == reasons(result)["else"] == "lies in the body of an If, Loop or Scan"
    assert result.changed == 1


def test_made_up_data_is_not_believed(net: Any) -> None:
    n = net(4, 3, 8, 8)
    model = Model.from_proto(n.model(n.conv("x", 3, 8)))
    weight = np.asarray(model.graph.nodes[0].inputs[1].values)
    context = Context(model.clone(), open_dataset(None, model.inputs, samples=4))
    result = Sparsify(keep_ends=False).run(model, context)
    now = np.asarray(model.graph.nodes[0].inputs[1].values)
    left = np.abs(weight) > np.median(np.abs(weight))
    np.testing.assert_array_equal(now, np.where(left, weight, 0))
    assert result.figures["layers"] == [{"layer": "Conv0", "weights": 216, "zeros": 0.5, "before": None, "after": None}]
    assert "made-up data does not tell what zeros do" in str(result.figures["notes"])


def test_what_the_report_says(net: Any) -> None:
    n = net(8, 32, 6, 8)
    proto = n.model(n.conv("x", 32, 64))
    model, result = sparsify(proto, Sparsify(keep_ends=False))
    before, after = result.figures["zstd_bytes"]  # type: ignore[misc,union-attr]  # a pair
    assert (before, after) == (compressed_bytes(Model.from_proto(proto)), compressed_bytes(model))
    assert 0.5 < after / before < 0.7  # type: ignore[operator]
    assert result.figures["zeros"] == pytest.approx(0.5, abs=0.01)
    (note,) = result.figures["notes"]  # type: ignore[misc,union-attr]
    assert note == (
        "dense runtimes multiply by zeros as by any number: no speedup; the gain is the compressed size, by zstd "
        f"{after / before:.0%} of what it was"  # type: ignore[operator]
    )


def test_no_gain_is_called_none(net: Any) -> None:
    n = net(8, 32, 6, 8)
    _, result = sparsify(n.model(n.conv("x", 32, 64)), Sparsify(keep_ends=False, ratio=0.01))
    (note,) = result.figures["notes"]  # type: ignore[misc,union-attr]
    assert "no speedup; no gain either: compressed it is no smaller, by zstd 10" in note  # type: ignore[operator]


def test_it_comes_behind_what_changes_shapes_and_before_integers() -> None:
    steps = plan(parse("quant,sparsify:pattern=2:4,svd,prune")).steps
    assert [s.name for s in steps if not s.exact] == ["prune", "svd", "sparsify", "quant"]
    assert str(parse("sparsify:pattern=2:4")[0]) == "sparsify:pattern=2:4"


def test_zeros_outlive_quantization(net: Any) -> None:
    n = net(8, 16, 12, 12)
    x = n.relu(n.conv(n.relu(n.conv("x", 16, 32)), 32, 32))
    model = Model.from_proto(n.model(n.conv(x, 32, 16)))
    PassManager(parse("sparsify:keep-ends=false,quant:measure=false:effort=fast")).run(model, data(model))
    weights = [c.values for c in model.constants() if c.dtype == np.int8 and c.values.ndim == 4]
    assert len(weights) == 3
    assert min(float((w == 0).mean()) for w in weights) >= 0.45


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ratio=0", "ratio lies above 0 and below 1, and is 0.0"),
        ("ratio=1", "ratio lies above 0 and below 1, and is 1.0"),
        ("ratio=nan", "ratio lies above 0 and below 1, and is nan"),
        ("pattern=4:2", "pattern is '4:2'; write two numbers, the smaller first, such as 2:4"),
        ("pattern=2:4:ratio=0.3", "the pattern 2:4 says how much goes; leave ratio out"),
        ("samples=0", "samples must be at least 1, not 0"),
        ("criterion=l1", "criterion is 'l1'"),
    ],
)
def test_options_that_are_refused(options: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        parse(f"sparsify:{options}")
    assert message in str(error.value)


def test_inputs_that_are_never_used_go_first(net: Any) -> None:
    """Weights of channels that are never anything but zero are hardly missed."""
    n = net(8, 8)
    x = n.op("Mul", "x", n.constant([1, 0] * 4))
    proto = n.model(n.op("MatMul", x, n.normal(8, 6)))
    model, _ = sparsify(proto, Sparsify(keep_ends=False))
    original = Model.from_proto(proto)
    feed = next(iter(data(original).batches(8)))
    (expected,), (found,) = (list(Session(m).run(feed).values()) for m in (original, model))
    assert deviation(expected, found) < 0.03
