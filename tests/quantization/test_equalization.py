"""Scaled channels change nothing that a model computes, and let every channel use its share of the levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.model import Model
from onnxopt.numerics.tolerance import deviation
from onnxopt.quantization.candidate import Builder, Candidate, Settings
from onnxopt.quantization.equalization import equalize, scale
from onnxopt.quantization.homogeneous import rules
from onnxopt.runtime.session import Session

F = np.float32
ROW = np.linspace(-1, 1, 12, dtype=F)
FAR = 2**62


def scaled(proto: onnx.ModelProto, seed: int = 0, most: float = 8.0) -> tuple[int, int]:
    """Give every class a random factor from 1 to ``most`` and compare; how many classes and changed layers."""
    model = Model.from_proto(proto)
    whole = model.clone()
    context = Context(whole, open_dataset(None, model.inputs, samples=4))
    coupling = Coupling(model, context.shapes(model), {}, rules)
    factors = np.random.default_rng(seed).uniform(1, most, coupling.count + 1)
    factors[0] = 1
    outputs = [(n, i, t) for n in model.graph.nodes for i, t in enumerate(n.outputs)]
    made = [coupling.output(n, k, i) for n, i, t in outputs for k in range(coupling.rank(t))]
    classes = len(set(np.concatenate(made).tolist()) - {0})
    changed = scale(model, coupling, factors)
    model.tidy()
    onnx.checker.check_model(model.to_proto(), full_check=True)
    feed = next(iter(context.dataset.batches(4)))
    wanted, got = Session(whole, optimize=False).run(feed), Session(model, optimize=False).run(feed)
    for name, value in wanted.items():
        assert deviation(value, got[name]) < 1e-5
    return classes, changed


# Classes that may be scaled, and layers that take factors up. Normalization is folded before.
FOUND = {
    "plain": (80, 4), "residual": (0, 0), "padded_shortcut": (64, 4), "inverted": (272, 0), "gated": (80, 5),
    "densely_connected": (144, 8), "split_and_joined": (48, 4), "shuffled": (96, 6), "grouped": (208, 7),
    "flattened": (80, 5), "hourglass": (96, 6), "attention": (80, 5), "branching": (48, 5), "measured": (64, 4),
}  # fmt: skip


def test_any_factors_change_nothing(zoo: dict[str, Callable[[], onnx.ModelProto]]) -> None:
    # Six is soon reached: what a Clip bounds is tested below.
    found = {name: scaled(build(), most=1.0 if name == "inverted" else 8.0) for name, build in zoo.items()}
    assert found == FOUND


def between(net: Any, op: Callable[[Any, str], str], out: int) -> onnx.ModelProto:
    """A convolution that makes 12 channels, what ``op`` does with them, a convolution that reads ``out``."""
    y = op(net, net.conv("x", 3, 12))
    made: onnx.ModelProto = net.model(net.op("Conv", y, net.normal(3, out, 1, 1)))
    return made


def one(name: str, *constants: Any, **attributes: Any) -> Callable[[Any, str], str]:
    """One operator that reads the channels, then these constants."""

    def build(net: Any, x: str) -> str:
        return str(net.op(name, x, *(net.constant(c, np.asarray(c).dtype) for c in constants), **attributes))

    return build


# Operator between two convolutions, channels that it makes of 12, classes that may be scaled.
RULES: dict[str, tuple[Callable[[Any, str], str], int, int]] = {
    "Relu": (one("Relu"), 12, 12),
    "LeakyRelu": (one("LeakyRelu", alpha=0.1), 12, 12),
    "Dropout": (one("Dropout"), 12, 12),
    "PRelu": (one("PRelu", ROW.reshape(12, 1, 1)), 12, 12),
    "Sigmoid": (one("Sigmoid"), 12, 0),
    "Clip from zero": (one("Clip", F(0), F(1000)), 12, 12),
    "Clip without an upper bound": (lambda n, x: n.op("Clip", x, n.constant(0.0)), 12, 12),
    "Clip from below zero": (one("Clip", F(-1), F(1)), 12, 0),
    "Add scalar": (one("Add", F(0.5)), 12, 0),
    "Add vector": (one("Add", ROW.reshape(12, 1, 1)), 12, 12),
    "Add of pixels": (one("Add", np.ones((12, 8, 8), F)), 12, 12),
    "Sub": (one("Sub", ROW.reshape(1, 12, 1, 1)), 12, 12),
    "subtracted": (lambda n, x: n.op("Sub", n.constant(ROW.reshape(1, 12, 1, 1)), x), 12, 12),
    "Max": (one("Max", ROW.reshape(12, 1, 1)), 12, 12),
    "Min": (one("Min", ROW.reshape(12, 1, 1)), 12, 0),
    "Mul": (one("Mul", ROW.reshape(12, 1, 1)), 12, 24),
    "Mul by a scalar": (one("Mul", F(-2)), 12, 12),
    "Mul with itself": (lambda n, x: n.op("Mul", x, x), 12, 0),
    "its own gate": (lambda n, x: n.op("Mul", x, n.op("Sigmoid", x)), 12, 0),
    "gate from its mean": (
        lambda n, x: n.op("Mul", x, n.op("HardSigmoid", n.conv(n.op("GlobalAveragePool", x), 12, 12, 1))),
        12,
        12,
    ),
    "gate of a constant": (lambda n, x: n.op("Mul", n.op("Sigmoid", x), n.constant(ROW.reshape(12, 1, 1))), 12, 12),
    "added to another": (lambda n, x: n.op("Add", x, n.conv("x", 3, 12)), 12, 12),
    "added to itself": (lambda n, x: n.op("Add", x, x), 12, 12),
    "Sum of three": (lambda n, x: n.op("Sum", x, n.conv("x", 3, 12), n.constant(ROW.reshape(12, 1, 1))), 12, 12),
    "one channel spread by Add": (lambda n, x: n.op("Add", x, n.conv("x", 3, 1)), 12, 0),
    "one channel and a constant": (
        lambda n, x: n.op("Add", n.conv(x, 12, 1), n.constant(np.ones((1, 1, 1)))),
        1,
        13,
    ),
    "a constant of one for all of one": (lambda n, x: n.op("Mul", n.conv(x, 12, 1), n.constant([[[2.0]]])), 1, 14),
    "AveragePool": (one("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 1, 1]), 12, 12),
    "MaxPool": (one("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), 12, 12),
    "MaxPool with places": (lambda n, x: n.op("MaxPool", x, outputs=2, kernel_shape=[2, 2])[0], 12, 0),
    "ReduceMean of pixels": (one("ReduceMean", axes=[2, 3]), 12, 12),
    "ReduceMax of channels": (one("ReduceMax", axes=[1]), 1, 0),
    "LayerNormalization of rows": (one("LayerNormalization", np.ones(8, F), axis=-1), 12, 0),
    "Softmax of rows": (one("Softmax", axis=-1), 12, 0),
    "Concat": (lambda n, x: n.op("Concat", x, n.conv("x", 3, 6), axis=1), 18, 18),
    "Concat with the input": (lambda n, x: n.op("Concat", x, "x", axis=1), 15, 12),
    "Concat of rows with another": (lambda n, x: n.op("Concat", x, n.conv("x", 3, 12), axis=2), 12, 12),
    "Concat with a constant": (
        lambda n, x: n.op("Concat", n.op("GlobalMaxPool", x), n.constant(np.ones((4, 3, 1, 1))), axis=1),
        15,
        12,
    ),
    "Concat of rows with a constant": (
        lambda n, x: n.op("Concat", x, n.constant(np.ones((4, 12, 1, 8))), axis=2),
        12,
        0,
    ),
    "Split": (lambda n, x: n.op("Add", *n.op("Split", x, n.ints(6, 6), outputs=2, axis=1)), 6, 6),
    "Slice": (one("Slice", np.array([2]), np.array([-2]), np.array([1])), 8, 12),
    "Slice backwards": (one("Slice", np.array([-1]), np.array([-FAR]), np.array([-3]), np.array([-1])), 12, 12),
    "Pad": (one("Pad", np.array([0, 2, 0, 0, 0, 3, 1, 0]), F(0)), 17, 17),
    "Pad by ones": (one("Pad", np.array([0, 2, 0, 0, 0, 3, 1, 0]), F(1)), 17, 0),
    "Pad of pixels by reflection": (one("Pad", np.array([0, 0, 2, 2, 0, 0, 2, 2]), mode="reflect"), 12, 12),
    "Gather": (one("Gather", np.array([3, 1, 1, -7]), axis=1), 4, 12),
    "Transpose there and back": (
        lambda n, x: n.op("Transpose", n.op("Relu", n.op("Transpose", x, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2]),
        12,
        12,
    ),
    "Reshape there and back": (
        lambda n, x: n.op("Reshape", n.op("Relu", n.op("Reshape", x, n.ints(0, 12, -1))), n.ints(0, 0, 8, 8)),
        12,
        12,
    ),
    "Squeeze and Unsqueeze": (
        lambda n, x: n.op("Unsqueeze", n.op("Squeeze", n.op("GlobalAveragePool", x), n.ints(2, 3)), n.ints(2, 3)),
        12,
        12,
    ),
    "Tile": (one("Tile", np.array([1, 2, 1, 1])), 24, 12),
    "Expand of one channel": (lambda n, x: n.op("Expand", n.conv(x, 12, 1), n.ints(1, 12, 8, 8)), 12, 12),
    "Resize by scales": (one("Resize", np.zeros(0, F), np.array([1, 1, 2, 2], F), mode="linear"), 12, 12),
    "DepthToSpace": (one("DepthToSpace", blocksize=2), 3, 3),
    "SpaceToDepth": (one("SpaceToDepth", blocksize=2), 48, 12),
    "ConvTranspose in groups": (
        lambda n, x: n.op("ConvTranspose", x, n.normal(12, 2, 2, 2), n.constant(np.ones(6)), group=3, strides=[2, 2]),
        6,
        18,
    ),
    "depthwise": (lambda n, x: n.conv(x, 12, 24, group=12), 24, 36),
    "Cast": (one("Cast", to=TensorProto.FLOAT), 12, 0),
}


@pytest.mark.parametrize("name", RULES)
def test_each_rule(net: Any, name: str) -> None:
    op, out, classes = RULES[name]
    assert scaled(between(net(4, 3, 8, 8), op, out))[0] == classes


def test_a_gemm_with_everything(net: Any) -> None:
    n = net(4, 16)
    x = n.relu(n.op("Gemm", "x", n.normal(16, 24), n.normal(4, 24), alpha=0.5, beta=-2.0))
    x = n.relu(n.op("Gemm", x, n.normal(8, 24), n.constant([0.5]), transB=1))
    assert scaled(n.model(n.op("Gemm", x, n.normal(8, 3))))[:2] == (32, 3)
    n = net(4, 16)
    x = n.relu(n.op("Gemm", "x", n.normal(16, 24)))
    assert scaled(n.model(n.op("Gemm", x, n.normal(4, 3), transA=1))) == (0, 0)


def test_products_of_rows(net: Any) -> None:
    """A normalization in front, values that attention weighs behind: all columns may be scaled."""
    n = net("N", 6, 16)
    x = n.op("LayerNormalization", "x", n.constant(np.ones(16)), n.constant(np.ones(16)))
    values = n.op("MatMul", x, n.normal(16, 12))
    weights = n.op("Softmax", n.op("MatMul", x, n.normal(16, 6)))
    assert scaled(n.model(n.op("MatMul", n.op("MatMul", weights, values), n.normal(12, 3)))) == (28, 3)


def test_a_normalization_with_one_scale_for_all(net: Any) -> None:
    n = net("N", 6, 16)
    x = n.op("LayerNormalization", "x", n.constant([2.0]))
    assert scaled(n.model(n.op("MatMul", x, n.normal(16, 12)))) == (0, 0)


def test_rows_of_a_table(net: Any) -> None:
    """Nobody scales what Gather picks from."""
    n = net("N", 6)
    ids = n.op("Cast", n.op("Abs", "x"), to=TensorProto.INT64)
    x = n.op("Gather", n.constant(np.ones((64, 16))), ids)
    assert scaled(n.model(n.op("MatMul", x, n.normal(16, 12)))) == (0, 0)


def test_weights_of_two_layers_stay(net: Any) -> None:
    n = net(4, 16)
    w = n.normal(16, 16)
    x = n.relu(n.op("MatMul", n.relu(n.op("MatMul", n.relu(n.op("MatMul", "x", w)), n.normal(16, 16))), w))
    assert scaled(n.model(n.op("MatMul", x, n.normal(16, 3)))) == (0, 0)


def test_constants_of_two_nodes_are_scaled_for_each(net: Any) -> None:
    n = net(4, 16)
    c = n.constant(np.linspace(-1, 1, 16))
    x = n.op("MatMul", n.op("Mul", n.op("Add", n.op("MatMul", "x", n.normal(16, 16)), c), c), n.normal(16, 16))
    x = n.op("Sub", x, c)
    assert scaled(n.model(n.op("MatMul", x, n.normal(16, 3)))) == (48, 3)


def test_a_graph_that_hands_out_what_is_between(net: Any) -> None:
    n = net(4, 16)
    hidden = n.relu(n.op("MatMul", "x", n.normal(16, 16)))
    proto = n.model(n.op("MatMul", hidden, n.normal(16, 3)))
    proto.graph.output.append(onnx.helper.make_tensor_value_info(hidden, TensorProto.FLOAT, (4, 16)))
    assert scaled(proto) == (0, 0)


def uneven(net: Any, *clip: float, spread: float = 4.0) -> onnx.ModelProto:
    """Two convolutions; the channels between them, differ in size by a factor of ``spread``."""
    n = net("N", 3, 8, 8)
    sizes = np.geomspace(1 / spread, 1, 16).reshape(16, 1, 1, 1)
    weight = n.rng.standard_normal((16, 3, 1, 1)) * sizes
    x = n.op("Conv", "x", n.constant(weight))
    x = n.op("Clip", x, n.constant(0.0), n.constant(clip[0])) if clip else n.relu(x)
    last = n.rng.standard_normal((5, 16, 1, 1)) / sizes.reshape(1, 16, 1, 1)
    made: onnx.ModelProto = n.model(n.op("Conv", x, n.constant(last)))
    return made


def equalized(proto: onnx.ModelProto) -> tuple[Model, Model, Context, int]:
    """Before and after."""
    model = Model.from_proto(proto)
    context = Context(model.clone(), open_dataset(None, model.inputs, samples=32))
    builder = Builder(model.clone(), context, Settings(), {})
    placement = builder.place(builder.plain, {})
    after = builder.plain.clone()
    changed = equalize(after, context, {**placement.read, **placement.made}, builder.sizes)
    return builder.plain, after, context, changed


def noise(reference: Model, model: Model, context: Context) -> float:
    """Energy of the difference over energy, after rounding to integers."""
    built = Builder(model.clone(), context, Settings(), {}).build({})
    assert isinstance(built, Candidate)
    feed = next(iter(context.dataset.batches(32)))
    (wanted,), (got,) = Session(reference).run(feed).values(), Session(built.model).run(feed).values()
    return float(np.square(wanted - got).sum() / np.square(wanted).sum())


def largest(model: Model, context: Context, name: str) -> np.ndarray:
    feed = next(iter(context.dataset.batches(32)))
    return np.asarray(np.abs(Session(model, outputs=[name]).run(feed)[name]).max(axis=(0, 2, 3)))


def test_channels_become_alike_and_noise_less(net: Any) -> None:
    before, after, context, changed = equalized(uneven(net))
    assert changed == 2
    middle = before.graph.nodes[1].outputs[0].name
    was, now = (largest(m, context, middle) for m in (before, after))
    assert was.max() / was.min() > 3
    assert now.max() / now.min() < was.max() / was.min() / 1.5
    assert noise(before, after, context) < noise(before, before, context) / 1.5


def test_what_a_clip_bounds_stays_well_below(net: Any) -> None:
    _, plain, context, _ = equalized(uneven(net))
    bound = 2 * float(largest(plain, context, "relu1").max())
    before, after, context, changed = equalized(uneven(net, bound))
    assert changed == 2
    was, now = (largest(m, context, before.graph.nodes[1].outputs[0].name) for m in (before, after))
    grown = now > was * 1.001
    assert grown.any()
    assert not grown.all()
    assert now[grown].max() <= bound / 4 * 1.001


def test_what_a_clip_cuts_off_stays_as_it_is(net: Any) -> None:
    before, after, context, _ = equalized(uneven(net, 0.01))
    feed = next(iter(context.dataset.batches(32)))
    (wanted,), (got,) = Session(before).run(feed).values(), Session(after).run(feed).values()
    assert deviation(wanted, got) < 1e-5


def test_silent_channels_stay(net: Any) -> None:
    n = net("N", 3, 8, 8)
    weight = n.rng.standard_normal((16, 3, 1, 1)) * np.geomspace(0.01, 1, 16).reshape(16, 1, 1, 1)
    weight[5] = 0
    x = n.relu(n.op("Conv", "x", n.constant(weight)))
    before, after, _, changed = equalized(n.model(n.op("Conv", x, n.normal(5, 16, 1, 1))))
    assert changed == 2
    ratio = after.graph.nodes[1 + 1].inputs[1].values / before.graph.nodes[1 + 1].inputs[1].values
    assert (ratio[:, 5] == 1).all()


def test_nothing_to_scale(net: Any) -> None:
    n = net("N", 3, 8, 8)
    assert equalized(n.model(n.op("Sigmoid", n.conv("x", 3, 8))))[3] == 0


def test_the_same_every_time(net: Any) -> None:
    first, second = (equalized(uneven(net))[1] for _ in range(2))
    assert first.digest() == second.digest()


@pytest.mark.parametrize(
    "name", ["plain", "padded_shortcut", "inverted", "grouped", "attention", "hourglass", "shuffled"]
)
def test_equalized_graphs_compute_the_same(zoo: dict[str, Callable[[], onnx.ModelProto]], name: str) -> None:
    before, after, context, _ = equalized(zoo[name]())
    feed = next(iter(context.dataset.batches(32)))
    (wanted,), (got,) = Session(before).run(feed).values(), Session(after).run(feed).values()
    assert deviation(wanted, got) < 1e-5
