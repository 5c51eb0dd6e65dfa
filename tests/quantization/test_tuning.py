"""Ranges are chosen by what rounding does to a model's answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.core import stream
from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph import shapes
from onnxopt.graph.model import Model
from onnxopt.numerics.ranges import Range
from onnxopt.quantization import tuning
from onnxopt.quantization.placement import place
from onnxopt.quantization.tuning import Tuned, tune

SAMPLES = 16


def tuned(
    proto: onnx.ModelProto, context: Context, method: Any = "mse", samples: int = SAMPLES
) -> tuple[dict[str, Tuned], dict[str, Range]]:
    """What is chosen, and what the ranges were."""
    model = Model.from_proto(proto)
    sizes = context.shapes(model)
    placement = place(model, sizes, shapes.specs(model))
    found = context.statistics(model, sorted(set(placement.roots.values())), method)
    return tune(model, placement, found.ranges, found.statistics, context, samples), dict(found.ranges)


def spiked(net: Any, weight: float) -> onnx.ModelProto:
    """A hidden tensor with a rare value of 50 among many of about 1; ``weight`` is what the answers make of it."""
    n = net("N", 32)
    first = np.eye(32)
    last = n.rng.standard_normal((32, 8)) / 6
    last[0] = weight
    hidden = n.relu(n.op("MatMul", n.op("MatMul", "x", n.constant(first)), n.constant(first)))
    made: onnx.ModelProto = n.model(n.op("MatMul", hidden, n.constant(last)))
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows of numbers of about 1, one of which holds a value of 50."""
    x = np.abs(np.random.default_rng(0).standard_normal((64, 32))).astype(np.float32)
    x[:, 0] = 0
    x[5, 0] = 50
    np.savez(tmp_path / "x.npz", x=x)
    return tmp_path / "x.npz"


@pytest.mark.parametrize(("weight", "least", "most"), [(1.0, 45, 51), (0.0, 1, 10)])
def test_an_outlier_is_kept_where_it_decides_and_clipped_where_not(
    net: Any, data: Path, weight: float, least: float, most: float
) -> None:
    proto = spiked(net, weight)
    model = Model.from_proto(proto)
    found, _ = tuned(proto, Context(model, open_dataset(data, model.inputs)), "mse" if weight == 0 else "entropy")
    assert least < found["relu2"].range.hi < most


def test_noise_is_never_more_and_what_is_taken_is_clearly_better(
    zoo: dict[str, Callable[[], onnx.ModelProto]],
) -> None:
    for name in ("plain", "inverted", "attention"):
        proto = zoo[name]()
        model = Model.from_proto(proto)
        found, before = tuned(proto, Context(model, open_dataset(None, model.inputs, samples=SAMPLES)))
        assert found
        for tensor, t in found.items():
            assert t.noise <= t.noise_before
            assert t.range == before[tensor] or t.noise < 0.97 * t.noise_before
            assert t.range.lo <= 0 <= t.range.hi


def test_the_same_every_time(net: Any, data: Path) -> None:
    proto = spiked(net, 0.3)
    model = Model.from_proto(proto)
    context = Context(model, open_dataset(data, model.inputs))
    assert tuned(proto, context) == tuned(proto, context)


def test_outputs_that_are_not_real_do_not_count(net: Any, data: Path) -> None:
    proto = spiked(net, 1.0)
    best = onnx.helper.make_node("ArgMax", [proto.graph.output[0].name], ["best"], axis=1)
    proto.graph.node.append(best)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("best", onnx.TensorProto.INT64, None))
    model = Model.from_proto(proto)
    context = Context(model, open_dataset(data, model.inputs))
    assert tuned(proto, context) == tuned(spiked(net, 1.0), context)


def test_what_does_not_fit_into_memory_keeps_its_range(net: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = net("N", 32)
    wide = n.relu(n.op("MatMul", "x", n.normal(32, 512)))
    proto = n.model(n.op("MatMul", wide, n.normal(512, 4)))
    model = Model.from_proto(proto)
    context = Context(model, open_dataset(data, model.inputs))
    assert set(tuned(proto, context)[0]) == {"x", "relu1"}
    monkeypatch.setattr(stream, "_MEMORY", 4 * SAMPLES * 100)
    assert set(tuned(proto, context)[0]) == {"x"}


@pytest.mark.parametrize(("kept", "samples"), [(2**28, SAMPLES), (4 * 8 * 5, 5), (1, 1)])
def test_of_large_answers_fewer_are_kept(
    net: Any, data: Path, monkeypatch: pytest.MonkeyPatch, kept: int, samples: int
) -> None:
    model = Model.from_proto(spiked(net, 1.0))
    context = Context(model, open_dataset(data, model.inputs))
    asked = []
    monkeypatch.setattr(tuning, "_KEPT_BYTES", kept)

    def feeds(context, count, batch):
        asked.append(count)
        return stream.feeds(context, count, batch)

    monkeypatch.setattr(tuning, "feeds", feeds)
    assert tuned(spiked(net, 1.0), context)[0]
    assert asked == [samples]
