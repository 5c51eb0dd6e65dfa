"""How far outputs move, and what is lost with that."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.model import Model
from onnxopt.pruning.probe import Probe, Replacement, loss
from onnxopt.runtime.session import Session

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(9,), (9, 2), (9, 5), (9, 4, 3)])
def test_nothing_is_lost_of_equals(shape: tuple[int, ...]) -> None:
    y = RNG.standard_normal(shape)
    assert loss(y, y) == 0


@pytest.mark.parametrize("shape", [(9,), (9, 1), (9, 2), (9, 4, 3)])
def test_the_mean_alone_tells_nothing(shape: tuple[int, ...]) -> None:
    y = RNG.standard_normal(shape)
    assert loss(y, np.broadcast_to(y.mean(axis=0), shape)) == pytest.approx(1)
    assert loss(y, y + 0.5 * (y - y.mean(axis=0))) == pytest.approx(0.25)


def test_scores_of_classes() -> None:
    wanted, found = RNG.standard_normal((2, 20, 5))
    p, q = softmax(wanted, axis=1), softmax(found, axis=1)
    told = entropy(p.mean(axis=0)) - entropy(p, axis=1).mean()
    squares = np.square(found - wanted).sum() / np.square(wanted - wanted.mean(axis=0)).sum()
    assert loss(wanted, found) == pytest.approx((squares + entropy(p, q, axis=1).mean() / told) / 2)
    # All that the rows tell is gone where each is the logarithm of the mean of all.
    mean = np.broadcast_to(np.log(p.mean(axis=0)), p.shape)
    squares = np.square(mean - wanted).sum() / np.square(wanted - wanted.mean(axis=0)).sum()
    assert loss(wanted, mean) == pytest.approx((squares + 1) / 2)


def test_shares_are_not_taken_for_scores() -> None:
    wanted, found = RNG.standard_normal((2, 20, 5))

    def relative(a: np.ndarray, b: np.ndarray) -> float:
        squares = np.square(b - a).sum() / np.square(a - a.mean(axis=0)).sum()
        return 2 * loss(a, b) - float(squares)

    shares = relative(softmax(wanted, axis=1), softmax(found, axis=1))
    assert shares == pytest.approx(relative(wanted, found))
    assert shares == pytest.approx(relative(log_softmax(wanted, axis=1), log_softmax(found, axis=1)))


def probe(proto: onnx.ModelProto, samples: int, most: int = 512) -> tuple[Probe, Model, Context]:
    model = Model.from_proto(proto)
    context = Context(model, open_dataset(None, model.inputs, samples=samples), batch=8)
    return Probe(model, context, most), model, context


@pytest.mark.parametrize(
    ("samples", "most", "held"), [(1, 512, 0), (15, 512, 0), (16, 512, 8), (40, 20, 10), (400, 512, 128), (40, 4, 0)]
)
def test_samples_that_are_held_back(samples: int, most: int, held: int, net: Any) -> None:
    n = net("N", 4)
    assert probe(n.model(n.dense("x", 4, 2)), samples, most)[0].samples == held


@pytest.mark.parametrize("samples", [10, 40])
def test_error_is_that_of_the_model_with_the_replacement(samples: int, net: Any) -> None:
    n = net("N", 4)
    tried, model, context = probe(n.model(n.dense(n.relu(n.dense("x", 4, 8)), 8, 5)), samples)
    layer = model.graph.nodes[-1]
    weight, bias = unrolled.read(layer)
    assert tried.error([]) == 0
    assert tried.error([Replacement(layer, weight, bias)]) == 0
    untouched = model.to_proto().SerializeToString(deterministic=True)
    error = tried.error([Replacement(layer, 0.5 * weight, bias + 1)])
    assert model.to_proto().SerializeToString(deterministic=True) == untouched
    other = model.clone()
    unrolled.write(other, other.graph.nodes[-1], 0.5 * weight, bias + 1)
    feed = next(iter(context.dataset.batches(100, stop=tried.samples or None)))
    # Samples come in eights, as the batch of the context; the batch itself may be free.
    (expected,), (got,) = (
        [y.astype(np.float64) for y in Session(m).run({"x": feed["x"]}).values()] for m in (model, other)
    )
    assert error == pytest.approx(loss(expected, got), rel=1e-5)


def test_only_outputs_in_floats_count(net: Any) -> None:
    n = net("N", 4)
    y = n.dense("x", 4, 5)
    best = n.op("ArgMax", y, axis=1)
    proto = n.model(y)
    proto.graph.output.append(helper.make_tensor_value_info(best, TensorProto.INT64, None))
    both, model, _ = probe(proto, 20)
    del proto.graph.output[1]
    one, _, _ = probe(proto, 20)
    weight, bias = unrolled.read(model.graph.nodes[0])
    other = Replacement(model.graph.nodes[0], -weight, bias)
    assert both.error([other]) == one.error([other]) > 0.5
    del proto.graph.output[0]
    proto.graph.output.append(helper.make_tensor_value_info(best, TensorProto.INT64, None))
    none, model, _ = probe(proto, 20)
    assert none.error([Replacement(model.graph.nodes[0], -weight, bias)]) == 0
