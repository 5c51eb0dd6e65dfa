"""Layers behind a cut are solved so that they answer as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.core.context import Context
from onnxopt.core.observed import Place
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.cutting import Cut
from onnxopt.graph.model import Model
from onnxopt.numerics.tolerance import deviation
from onnxopt.pruning import channels
from onnxopt.pruning.repair import Repaired, repair
from onnxopt.runtime.session import Session

Zoo = dict[str, Callable[[], onnx.ModelProto]]


def cut_and_repair(
    proto: onnx.ModelProto, choose: Callable[[list[np.ndarray]], list[np.ndarray]], samples: int = 40
) -> tuple[list[Repaired], float, float]:
    """What was repaired, and how far the outputs on other samples are off before and after."""
    model = Model.from_proto(proto)
    original, data = model.clone(), open_dataset(None, model.inputs, samples=samples + 8)
    context = Context(original, data.subset(range(samples)), batch=8)
    coupling = Coupling(model, context.shapes(model), context.free_axes(model))
    makers = channels.producers(model.graph, coupling)
    cut = Cut(coupling, np.concatenate(choose(coupling.blocks())))
    short = cut.shortened()
    places = [Place(m.layer, cut.output(m.layer, m.axis), id(m.layer) in short) for m in makers]
    cut.apply(model)
    feed = next(iter(data.batches(8, start=samples)))
    (expected,) = Session(original).run(feed).values()
    (unrepaired,) = Session(model).run(feed).values()
    found = repair(model, original, places, context, samples)
    model.tidy()
    (repaired,) = Session(model).run(feed).values()
    return found, deviation(expected, unrepaired), deviation(expected, repaired)


def half(blocks: list[np.ndarray]) -> list[np.ndarray]:
    return [block[: len(block) // 2] for block in blocks]


def twice(n: Any, build: Callable[[Any, str], tuple[str, int]]) -> onnx.ModelProto:
    """Sixteen channels of which the last eight are mixtures of the first, and what ``build`` makes of them."""
    weight = n.rng.standard_normal((8, 3, 3, 3))
    mixed = np.concatenate([weight, np.einsum("oi,ijkl->ojkl", n.rng.standard_normal((8, 8)), weight)])
    y, out = build(n, n.op("Conv", "x", n.constant(mixed), pads=[1, 1, 1, 1]))
    proto: onnx.ModelProto = n.model(n.conv(n.relu(y), out, 4))
    return proto


def by_pixel(n: Any, x: str, layer: Callable[[str], str]) -> str:
    """A layer over the last axis, with channels brought there and back."""
    return str(n.op("Transpose", layer(n.op("Transpose", x, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2]))


READERS: dict[str, Callable[[Any, str], tuple[str, int]]] = {
    "Conv": lambda n, x: (n.conv(x, 16, 6), 6),
    "strided Conv": lambda n, x: (n.conv(x, 16, 6, stride=2), 6),
    "Conv without bias": lambda n, x: (n.op("Conv", x, n.normal(6, 16, 2, 2), auto_pad="SAME_LOWER"), 6),
    "ConvTranspose": lambda n, x: (n.op("ConvTranspose", x, n.normal(16, 6, 3, 3), strides=[2, 2], pads=[1] * 4), 6),
    "Gemm": lambda n, x: (
        by_pixel(n, x, lambda y: n.op("Reshape", n.dense(n.op("Flatten", y, axis=3), 16, 6), n.ints(8, 8, 8, 6))),
        6,
    ),
    "MatMul": lambda n, x: (by_pixel(n, x, lambda y: n.op("MatMul", y, n.normal(16, 6))), 6),
}


@pytest.mark.parametrize("name", READERS)
def test_what_the_others_can_replace_is_replaced_exactly(name: str, net: Any) -> None:
    proto = twice(net(8, 3, 8, 8), READERS[name])
    found, before, after = cut_and_repair(proto, lambda blocks: [next(b for b in blocks if len(b) == 16)[8:]])
    assert before > 0.05
    assert after < 2e-3
    assert found[0].before > 0.01
    assert found[0].after < 1e-5


@pytest.mark.parametrize(
    "name", ["plain", "residual", "inverted", "gated", "densely_connected", "hourglass", "attention"]
)
def test_repair_helps_every_kind_of_net(name: str, zoo: Zoo) -> None:
    found, before, after = cut_and_repair(zoo[name](), half, samples=160)
    assert all(r.after <= r.before for r in found)
    assert after < 0.8 * before


def test_a_lost_constant_is_carried_by_the_bias(net: Any) -> None:
    n = net()
    bias = n.constant([5.0] * 4 + [0.0] * 4)
    x = n.relu(n.op("Conv", "x", n.constant(np.eye(8, 3)[:, :, None, None] * 0.01), bias))
    proto = n.model(n.conv(x, 8, 4, 1))
    _, before, after = cut_and_repair(proto, lambda blocks: [blocks[0][:4]])
    assert before > 0.5
    assert after < 0.1 * before


def test_layers_before_the_cut_and_depthwise_ones_are_left_alone(zoo: Zoo) -> None:
    found, _, _ = cut_and_repair(zoo["inverted"](), lambda blocks: [max(blocks, key=lambda b: int(b[0]))[:8]])
    assert [r.layer for r in found] == ["Conv12", "Gemm16"]


def test_a_sum_is_the_target_where_results_are_added(net: Any) -> None:
    """The second block makes good what the first lost: the error behind it is less than what the first left."""
    n = net()
    x = n.relu(n.conv("x", 3, 8))
    for _ in range(2):
        x = n.op("Add", x, n.conv(n.relu(n.conv(x, 8, 32)), 32, 8))
    found, _, _ = cut_and_repair(n.model(x), lambda blocks: [next(b for b in blocks if len(b) == 32)[:24]])
    first, *_, last = found
    assert [r.layer for r in found] == ["Conv4", "Conv6", "Conv8"]
    assert last.after < 0.9 * last.before
    assert last.after < first.after


@pytest.mark.parametrize("samples", [1, 3])
def test_few_samples(samples: int, zoo: Zoo) -> None:
    found, before, after = cut_and_repair(zoo["plain"](), half, samples=samples)
    assert len(found) == 3
    assert after < 1.5 * before


def test_batches_that_the_graph_fixes(net: Any) -> None:
    n = net(4, 3, 8, 8)
    proto = n.model(n.conv(n.relu(n.conv("x", 3, 16)), 16, 4))
    _, before, after = cut_and_repair(proto, half)
    assert after < before


def outputs_before_and_after(proto: onnx.ModelProto, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """What a layer makes of samples, in the original and where half of the channels before it went, repaired."""
    model = Model.from_proto(proto)
    original, data = model.clone(), open_dataset(None, model.inputs, samples=400)
    context = Context(original, data, batch=40)
    coupling = Coupling(model, context.shapes(model), context.free_axes(model))
    makers = channels.producers(model.graph, coupling)
    gone = next(m.classes for m in makers if len(m.classes) == 32)[:16]
    cut = Cut(coupling, gone)
    short = cut.shortened()
    places = [Place(m.layer, cut.output(m.layer, m.axis), id(m.layer) in short) for m in makers]
    cut.apply(model)
    repair(model, original, places, context, 400)
    model.tidy()
    name = next(n.outputs[0].name for n in original.graph.nodes if n.name == layer)
    feed = next(iter(data.batches(400)))
    first, second = (Session(m, outputs=[name]).run(feed)[name] for m in (original, model))
    return first.astype(np.float64), second.astype(np.float64)


def test_outputs_vary_as_much_as_they_did(net: Any) -> None:
    n = net("N", 24)
    y = n.relu(n.dense("x", 24, 32))
    wanted, got = outputs_before_and_after(n.model(n.dense(y, 32, 6)), "Gemm2")
    share = got.var(axis=0) / wanted.var(axis=0)
    np.testing.assert_allclose(share, 1, atol=0.05)
    # Least squares leave so much unexplained that they would vary clearly less: as much as they explain.
    shared = [np.corrcoef(a, b)[0, 1] ** 2 for a, b in zip(wanted.T, got.T, strict=True)]
    assert max(shared) < 0.95
    np.testing.assert_allclose(got.mean(axis=0), wanted.mean(axis=0), atol=0.05 * wanted.std())


def test_what_is_added_to_a_stream_is_not_stretched(net: Any) -> None:
    """Least squares alone: the rest that it leaves has nothing to do with what it makes."""
    n = net("N", 24)
    x = n.dense("x", 24, 24)
    y = n.dense(n.relu(n.dense(x, 24, 32)), 32, 24)
    wanted, got = outputs_before_and_after(n.model(n.op("Add", x, y)), "Gemm3")
    assert (got.var(axis=0) < 0.98 * wanted.var(axis=0)).all()
    slope = ((wanted - wanted.mean(axis=0)) * (got - got.mean(axis=0))).sum() / (len(got) * got.var(axis=0).sum())
    assert slope == pytest.approx(1, abs=0.03)
