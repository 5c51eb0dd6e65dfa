"""Each criterion against the same thing worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.spatial.distance import cdist

from onnxopt.core.context import Context
from onnxopt.core.manager import PassManager, plan
from onnxopt.core.spec import parse
from onnxopt.data.dataset import open_dataset
from onnxopt.errors import PassError
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.cutting import Cut
from onnxopt.graph.layer import Floats, layout, stored_weight, weight
from onnxopt.graph.model import Model
from onnxopt.pruning import channels, criteria, taylor
from onnxopt.pruning.channels import Producer
from onnxopt.pruning.criteria import Criterion
from onnxopt.runtime.session import Session

Zoo = dict[str, Callable[[], onnx.ModelProto]]
WEIGHTS_ONLY: tuple[Criterion, ...] = ("l1", "l2", "fpgm", "bn-gamma", "random")


class Case(NamedTuple):
    model: Model
    coupling: Coupling
    makers: list[Producer]
    context: Context

    def score(self, criterion: Criterion, samples: int = 12) -> Floats:
        return criteria.score(criterion, self.model, self.coupling, self.makers, self.context, samples)

    def classes(self, layer: str) -> np.ndarray:
        return next(m.classes for m in self.makers if m.layer.name == layer)

    def values(self, *names: str, samples: int = 12) -> list[np.ndarray]:
        found = list(self.context.activations(self.model, names, samples))
        return [np.concatenate([f[name] for f in found]) for name in names]


def case(proto: onnx.ModelProto, samples: int = 12) -> Case:
    model = Model.from_proto(proto)
    context = Context(model.clone(), open_dataset(None, model.inputs, samples=samples), batch=5)
    coupling = Coupling(model, context.shapes(model), context.free_axes(model))
    return Case(model, coupling, channels.producers(model.graph, coupling), context)


def level(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / values.mean())


def as_type(proto: onnx.ModelProto, dtype: Any) -> onnx.ModelProto:
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return proto


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_norms_of_the_weights(dtype: Any, zoo: Zoo) -> None:
    found = case(as_type(zoo["plain"](), dtype))
    filters = found.makers[1].layer.inputs[1].values.astype(np.float64)
    for criterion, expected in (
        ("l1", np.abs(filters).sum(axis=(1, 2, 3))),
        ("l2", np.sqrt(np.square(filters).sum(axis=(1, 2, 3)))),
        ("fpgm", cdist(filters.reshape(32, -1), filters.reshape(32, -1)).sum(axis=1)),
    ):
        np.testing.assert_allclose(found.score(criterion)[found.classes("Conv2")], level(expected))  # type: ignore[arg-type]  # the names are in a tuple


def test_weights_of_every_layout(net: Any) -> None:
    n = net(8, 3, 4, 4)
    x = n.relu(n.op("ConvTranspose", "x", n.normal(3, 8, 2, 2), strides=[2, 2]))
    x = n.relu(n.conv(x, 8, 16, group=2))
    x = n.op("MatMul", n.op("Flatten", n.op("GlobalAveragePool", x)), n.normal(16, 8))
    found = case(n.model(n.dense(n.relu(x), 8, 3)))
    constants = [m.layer.inputs[1].values.astype(np.float64) for m in found.makers]
    for maker, axes in zip(found.makers[:3], ((0, 2, 3), (1, 2, 3), (0,)), strict=True):
        values = np.abs(constants[found.makers.index(maker)]).sum(axis=axes)
        expected = [values[maker.classes == c].mean() for c in maker.classes]
        np.testing.assert_allclose(found.score("l1")[maker.classes], np.array(expected) / values.mean())


def test_distances_in_parts(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    found = case(zoo["plain"]())
    whole = found.score("fpgm")
    monkeypatch.setattr(criteria, "_PAIRS", 100)
    np.testing.assert_allclose(found.score("fpgm"), whole)


def test_of_twins_each_can_stand_in_for_the_other(net: Any) -> None:
    n = net()
    weight = n.rng.standard_normal((8, 3, 3, 3))
    weight[5] = weight[2]
    x = n.relu(
        n.op("Conv", "x", n.constant(weight / np.linalg.norm(weight.reshape(8, -1), axis=1)[:, None, None, None]))
    )
    found = case(n.model(n.conv(x, 8, 4)))
    order = np.argsort(found.score("fpgm")[found.classes("Conv0")], kind="stable")
    assert set(order[:2].tolist()) == {2, 5}


def test_a_class_is_judged_by_all_layers_that_make_it(zoo: Zoo) -> None:
    found = case(zoo["residual"]())
    stream = [m for m in found.makers if set(m.classes) == set(found.classes("Conv0"))]
    assert len(stream) == 3
    each = [level(np.abs(m.layer.inputs[1].values.astype(np.float64)).sum(axis=(1, 2, 3))) for m in stream]
    np.testing.assert_allclose(found.score("l1")[found.classes("Conv0")], np.mean(each, axis=0))


def test_scales_of_normalisation(zoo: Zoo) -> None:
    found = case(zoo["residual"]())
    norms = {n.name: np.abs(n.inputs[1].values) for n in found.model.graph.nodes if n.op == "BatchNormalization"}
    score = found.score("bn-gamma")
    np.testing.assert_allclose(score[found.classes("Conv3")], level(norms["BatchNormalization4"]), rtol=1e-6)
    stream = [level(norms[f"BatchNormalization{k}"]) for k in (1, 7, 14)]
    np.testing.assert_allclose(score[found.classes("Conv0")], np.mean(stream, axis=0), rtol=1e-6)


def test_a_negative_scale_counts_as_much(net: Any) -> None:
    n = net()
    one = n.constant(np.ones(8))
    scale = n.constant([-4, 1, 1, 1, -1, 0, 0, 0])
    x = n.op("BatchNormalization", n.conv("x", 3, 8), scale, one, one, one)
    found = case(n.model(n.conv(n.relu(x), 8, 4)))
    assert found.score("bn-gamma")[found.classes("Conv0")].tolist() == [4, 1, 1, 1, 1, 0, 0, 0]


def test_without_normalisation_there_is_no_scale(zoo: Zoo) -> None:
    with pytest.raises(PassError, match=r"looks at BatchNormalization, and the model has none .* fold-bn after prune"):
        case(zoo["plain"]()).score("bn-gamma")


def test_scales_of_normalisation_say_nothing_of_what_does_not_pass_one(net: Any) -> None:
    n = net()
    x = n.relu(n.norm(n.conv(n.relu(n.conv("x", 3, 8)), 8, 8), 8))
    found = case(n.model(n.conv(x, 8, 4)))
    score = found.score("bn-gamma")
    assert np.isnan(score[found.classes("Conv0")]).all()
    assert np.isfinite(score[found.classes("Conv2")]).all()


def test_size_where_it_is_read(zoo: Zoo) -> None:
    found = case(zoo["plain"]())
    first, last = (np.abs(x).astype(np.float64) for x in found.values("maxpool4", "flatten8"))
    score = found.score("activation")
    np.testing.assert_allclose(score[found.classes("Conv2")], level(first.mean(axis=(0, 2, 3))))
    np.testing.assert_allclose(score[found.classes("Conv5")], level(last.mean(axis=0)))
    few = np.abs(found.values("maxpool4", samples=3)[0]).astype(np.float64)
    np.testing.assert_allclose(found.score("activation", 3)[found.classes("Conv2")], level(few.mean(axis=(0, 2, 3))))


def test_size_is_the_mean_over_all_that_read_it_each_tensor_once(net: Any) -> None:
    n = net()
    x = n.relu(n.conv("x", 3, 8))
    twice = n.op("Add", n.conv(x, 8, 4), n.conv(x, 8, 4))
    found = case(n.model(n.op("Add", twice, n.conv(n.op("Exp", x), 8, 4))))
    sizes = [np.abs(v).astype(np.float64).mean(axis=(0, 2, 3)) for v in found.values("relu1", "exp5")]
    expected = (level(sizes[0]) + level(sizes[1])) / 2
    np.testing.assert_allclose(found.score("activation")[found.classes("Conv0")], expected)


def test_infinite_values_have_no_size(net: Any) -> None:
    n = net()
    weight = np.ones((4, 3, 1, 1))
    weight[1] = -1
    x = n.op("Sqrt", n.op("Conv", "x", n.constant(weight)))
    found = case(n.model(n.conv(x, 4, 2)))
    score = found.score("activation")[found.classes("Conv0")]
    assert np.isfinite(score).all()
    assert score[1] < score[0]


@pytest.mark.parametrize(("dtype", "precision"), [(np.float16, 0.2), (np.float32, 3e-3), (np.float64, 1e-5)])
def test_effect_on_the_outputs(dtype: Any, precision: float, net: Any) -> None:
    """y = tanh(B h + b), h = relu(A x): the derivative by a factor on h_c is (1 - y^2) B_c h_c."""
    n = net("N", 6)
    y = n.op("Tanh", n.dense(n.relu(n.dense("x", 6, 16)), 16, 5))
    found = case(as_type(n.model(y), dtype))
    hidden, answer = (v.astype(np.float64) for v in found.values("relu1", "tanh3"))
    matrix = found.makers[1].layer.inputs[1].values.astype(np.float64)
    jacobian = (1 - answer**2)[:, :, None] * matrix * hidden[:, None, :]
    expected = np.square(jacobian).sum(axis=(0, 1)) / np.square(answer).sum()
    score = found.score("taylor")[found.classes("Gemm0")]
    np.testing.assert_allclose(score, expected, rtol=precision, atol=precision * expected.mean() / 10)


def test_effect_of_a_class_that_is_read_in_several_places(net: Any) -> None:
    """y = D (s + C tanh(B s)), s = A x: what is added to a stream is scaled only where it is summed over."""
    n = net("N", 6)
    stream = n.dense("x", 6, 8)
    inner = n.dense(n.op("Tanh", n.dense(stream, 8, 12)), 12, 8)
    found = case(n.model(n.dense(n.op("Add", stream, inner), 8, 3)))
    b, c, d = (m.layer.inputs[1].values.astype(np.float64) for m in found.makers[1:])
    s, hidden, total, y = (v.astype(np.float64) for v in found.values("gemm0", "tanh2", "add4", "gemm5"))
    through = np.einsum("oi,ih,nh,hs,ns->nos", d, c, 1 - hidden**2, b, s)
    jacobian = through + d * total[:, None, :]
    expected = np.square(jacobian).sum(axis=(0, 1)) / np.square(y).sum()
    np.testing.assert_allclose(found.score("taylor")[found.classes("Gemm0")], expected, rtol=5e-3)


def with_labels(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same with the place of the largest number of its output as its only output."""
    (old,) = proto.graph.output
    proto.graph.node.append(helper.make_node("ArgMax", [old.name], ["labels"], axis=1, keepdims=0, name="labels"))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]))
    return proto


def test_effect_on_several_outputs_is_the_mean_of_their_shares(net: Any) -> None:
    n = net(1, 6)
    hidden = n.relu(n.dense("x", 6, 8))
    proto = with_labels(n.model(n.dense(hidden, 8, 3)))
    for scale, out in ((1.0, "small"), (1000.0, "large")):
        matrix = numpy_helper.from_array(np.eye(8, dtype=np.float32)[:, :4] * np.float32(scale), f"w_{out}")
        proto.graph.initializer.append(matrix)
        proto.graph.node.append(helper.make_node("MatMul", [hidden, matrix.name], [out], name=out))
        proto.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, [1, 4]))
    found = case(proto)
    (h,) = (v.astype(np.float64) for v in found.values("relu1"))
    power = np.square(h[:, :4]).sum(axis=0)
    expected = np.concatenate([power / power.sum(), np.zeros(4)])
    np.testing.assert_allclose(found.score("taylor")[found.classes("Gemm0")], expected, rtol=2e-3)


def test_effect_needs_an_output_of_floats(net: Any) -> None:
    n = net("N", 6)
    proto = with_labels(n.model(n.dense(n.relu(n.dense("x", 6, 8)), 8, 3)))
    with pytest.raises(PassError, match="criterion=taylor looks at outputs that are floats, and there is none"):
        case(proto).score("taylor")


def test_effect_in_a_quantized_net_is_seen_over_its_steps(net: Any) -> None:
    """A step far smaller than those of the integers would see nothing, or a jump."""
    n = net("N", 6)
    exact = n.dense(n.relu(n.dense("x", 6, 16)), 16, 5)
    expected = case(n.model(exact))
    n = net("N", 6)
    hidden, step = n.relu(n.dense("x", 6, 16)), n.constant(0.07)
    zero = n.constant(0, np.int8)
    coarse = n.op("DequantizeLinear", n.op("QuantizeLinear", n.dense(hidden, 16, 5), step, zero), step, zero)
    found = case(n.model(coarse))
    pair = [c.score("taylor")[c.classes("Gemm0")] for c in (expected, found)]
    np.testing.assert_allclose(pair[1], pair[0], rtol=0.3, atol=0.02)


def test_no_more_samples_than_the_work_allows() -> None:
    assert [taylor.passes(c, 512) for c in (0, 16, 64, 1024, 10**6)] == [512, 512, 256, 16, 1]
    assert taylor.passes(64, 8) == 8


def test_what_matters_more_costs_more(zoo: Zoo) -> None:
    """To first order the cost of removal; both taken to logarithms, over all classes of a net with residual sums."""
    found = case(zoo["residual"]())
    score = found.score("taylor")[1:]
    assert np.isfinite(score).all()
    feed = next(iter(found.context.dataset.batches(12)))
    (expected,) = Session(found.model).run(feed).values()
    costs = []
    some = np.arange(1, len(score) + 1, 7)
    for c in some:
        (got,) = Session(Cut(found.coupling, np.array([c])).masked(found.model)).run(feed).values()
        costs.append(np.square(got - expected).sum())
    assert np.corrcoef(np.log(score[some - 1] + 1e-9), np.log(np.array(costs) + 1e-9))[0, 1] > 0.8


def test_chance_is_the_same_every_time(zoo: Zoo) -> None:
    first, second = (case(zoo["plain"]()).score("random") for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first[1:])) == len(first) - 1


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "bn-gamma", "activation", "taylor", "random"])
def test_nothing_is_said_of_what_no_layer_makes(criterion: Criterion, net: Any) -> None:
    n = net(4, 6)
    table = n.op("Gather", n.normal(10, 8), n.op("Cast", n.op("Relu", "x"), to=TensorProto.INT64))
    made = n.dense("x", 6, 5)
    hidden = n.norm(n.dense(n.op("Flatten", n.op("ReduceMean", table, axes=[1], keepdims=0)), 8, 5), 5)
    found = case(n.model(n.dense(n.op("Add", hidden, made), 5, 3)))
    score = found.score(criterion)
    no_maker = np.unique(found.coupling.output(found.model.graph.nodes[2], -1))
    assert no_maker.all()
    assert np.isnan(score[[0, *no_maker]]).all()
    assert np.isfinite(score[found.classes("Gemm3")]).all()


@pytest.mark.parametrize("criterion", WEIGHTS_ONLY)
def test_weights_are_judged_without_running_the_model(
    criterion: Criterion, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = case(zoo["residual"]())
    monkeypatch.delattr(Session, "run")
    assert np.isfinite(found.score(criterion)[1:]).all()


def test_what_is_judged_as_channels_go_has_no_score(zoo: Zoo) -> None:
    with pytest.raises(ValueError, match="obs has no score that is known before"):
        case(zoo["plain"]()).score("obs")


def test_normalisations_are_folded_unless_they_are_looked_at() -> None:
    def names(spec: str) -> list[str]:
        return [step.name for step in plan(parse(spec)).steps]

    assert "fold-bn" in names("prune:criterion=l1")
    kept = names("prune:criterion=bn-gamma")
    assert kept == ["inline-functions", "freeze-defaults", "fold-constants", "prune"]
    assert names("prune:criterion=bn-gamma,fold-bn")[-2:] == ["prune", "fold-bn"]


def quantized(shape: tuple[int, int], axis: int | None, dtype: Any, block: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Integers, scales and zero points, and what they stand for."""
    rng = np.random.default_rng(3)
    info = np.iinfo(dtype)
    steps = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    of_scales = () if axis is None else tuple(-(-n // (block or 1)) if k == axis else n for k, n in enumerate(shape))
    if axis is not None and not block:
        of_scales = (shape[axis],)
    scales = rng.uniform(0.01, 0.02, of_scales).astype(np.float32)
    zeros = rng.integers(info.min // 4, info.max // 4, of_scales, dtype, endpoint=True)
    expected = np.empty(shape)
    for i, j in np.ndindex(shape):
        at: tuple[int, ...] = () if axis is None else ((i, j)[axis],)
        if block:
            at = (i // block, j) if axis == 0 else (i, j // block)
        expected[i, j] = (int(steps[i, j]) - int(zeros[at])) * float(scales[at])
    return [steps, scales, zeros], expected


@pytest.mark.parametrize(
    ("axis", "dtype", "block"),
    [(None, np.int8, 0), (0, np.uint8, 0), (1, np.int8, 0), (0, np.int8, 8), (1, np.uint8, 5)],
)
def test_weights_behind_dequantize_linear(axis: int | None, dtype: Any, block: int, net: Any) -> None:
    n = net("N", 12)
    parts, expected = quantized((16, 12), axis, dtype, block)
    steps, scale, zero = (n.constant(p, p.dtype) for p in parts)
    attributes = {} if axis is None else {"axis": axis - 2 if axis else axis, "block_size": block}
    matrix = n.op("DequantizeLinear", steps, scale, zero, **attributes)
    y = n.relu(n.op("Gemm", "x", matrix, transB=1))
    found = case(n.model(n.dense(y, 16, 3), opset=21))
    layer = found.makers[0].layer
    assert stored_weight(layer) is not None
    assert layout(layer).outputs == 16
    np.testing.assert_allclose(weight(layer), expected, rtol=1e-5)
    (run,) = (np.asarray(v) for v in found.values("dequantizelinear0", samples=1))
    np.testing.assert_allclose(weight(layer), run)
    classes = found.classes("Gemm1")
    if not classes.all():
        return  # scales in blocks, along channels, hold them
    np.testing.assert_allclose(found.score("l1")[classes], level(np.abs(expected).sum(axis=1)), rtol=1e-5)


def test_a_weight_that_is_computed_is_none(net: Any) -> None:
    n = net("N", 6)
    moving = n.op("DequantizeLinear", n.op("QuantizeLinear", "x", n.constant(0.1)), n.constant(0.1))
    found = case(n.model(n.op("MatMul", n.op("MatMul", "x", n.op("Abs", n.normal(6, 6))), n.op("Transpose", moving))))
    layers = [m for m in found.model.graph.nodes if m.op == "MatMul"]
    assert [stored_weight(m) for m in layers] == [None, None]
    assert found.makers == []
    with pytest.raises(ValueError, match="has weights that are not constant"):
        weight(layers[0])


@pytest.mark.parametrize("criterion", ["l1", "activation", "taylor"])
def test_a_quantized_net_is_pruned(criterion: str, net: Any) -> None:
    n = net()
    x, width = "x", 3
    for out in (16, 24, 16, 4):
        steps = n.constant(n.rng.integers(-127, 128, (out, width, 3, 3)), np.int8)
        scales, zeros = n.constant(n.rng.uniform(0.001, 0.002, out)), n.constant(np.zeros(out), np.int8)
        kernel = n.op("DequantizeLinear", steps, scales, zeros, axis=0)
        step, zero = n.constant(0.05), n.constant(0, np.uint8)
        y = n.op("DequantizeLinear", n.op("QuantizeLinear", n.op("Abs", x), step, zero), step, zero)
        x, width = n.op("Conv", y, kernel, n.constant(np.zeros(out)), pads=[1] * 4), out
    model = Model.from_proto(n.model(x))
    report = PassManager(parse(f"prune:ratio=0.5:align=4:criterion={criterion}")).run(model)
    convs = [m for m in model.graph.nodes if m.op == "Conv"]
    kernels = [stored_weight(m) for m in convs]
    assert [k.values.shape[:2] for k in kernels if k is not None] == [(16, 3), (12, 16), (8, 12), (4, 8)]
    assert [s for s in report.passes[-1].skips if "not repaired" in s[1]]
    Session(model).run(next(iter(open_dataset(None, model.inputs, samples=1).batches(1))))


def test_layers_that_a_criterion_says_nothing_of_are_reported(net: Any) -> None:
    n = net()
    x = n.relu(n.conv(n.relu(n.conv("x", 3, 16)), 16, 16))
    x = n.relu(n.norm(n.conv(x, 16, 16), 16))
    model = Model.from_proto(n.model(n.conv(x, 16, 4)))
    report = PassManager(parse("prune:ratio=0.25:align=4:criterion=bn-gamma")).run(model)
    reasons = dict(report.passes[-1].skips)
    assert reasons["Conv2"] == "criterion=bn-gamma says nothing of its channels"
    assert report.passes[-1].figures["channels"] == {"Conv4": [16, 12]}


def test_effect_of_what_is_read_in_bodies(net: Any) -> None:
    n = net(4, 3, 8, 8)
    x = n.relu(n.conv("x", 3, 16))
    kernel = n.normal(8, 16, 1, 1)
    bodies = []
    for name in ("then", "else"):
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        bodies.append(helper.make_graph([helper.make_node("Conv", [x, kernel], [name], name=name)], name, [], [made]))
    big = n.op("Greater", n.op("ReduceMax", "x", keepdims=0), n.constant(0.0))
    y = n.op("If", big, then_branch=bodies[0], else_branch=bodies[1])
    found = case(n.model(n.op("Reshape", y, n.ints(4, 8, 8, 8))))
    weights = next(c.values for c in found.model.constants() if c.shape == (8, 16, 1, 1)).astype(np.float64)
    hidden, answer = (v.astype(np.float64) for v in found.values("relu1", found.model.graph.outputs[0].name))
    power = np.square(hidden).sum(axis=(0, 2, 3)) * np.square(weights).sum(axis=(0, 2, 3)) / np.square(answer).sum()
    np.testing.assert_allclose(found.score("taylor")[found.classes("Conv0")], power, rtol=5e-3)
    assert np.isnan(found.score("activation")).all()
