"""Rows of what reaches a layer: which of them are held back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.core.context import Context
from onnxopt.core.observed import Place, observed
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.model import Model


@pytest.mark.parametrize("samples", [3, 15])
def test_whole_samples_are_held_back_where_tokens_are_rows(samples: int, net: Any) -> None:
    n = net()
    rows = n.op("Reshape", "x", n.constant(np.array([-1, 32]), np.int64))
    model = Model.from_proto(n.model(n.op("MatMul", rows, n.constant(n.rng.standard_normal((32, 8))))))
    (layer,) = (node for node in model.nodes() if node.op == "MatMul")
    context = Context(model.clone(), open_dataset(None, model.inputs, samples=20), batch=4)
    ((_, batches),) = observed(model, model.clone(), [Place.whole(layer)], context, samples, "look")
    held = np.concatenate([h for _, _, h in batches]).reshape(samples, -1)
    assert held.shape[1] == 6
    by_sample = np.arange(samples) % 5 == 4
    assert (held == by_sample[:, None]).all() if samples >= 5 else held.mean() == pytest.approx(0.2, abs=0.05)


def test_samples_of_any_length_are_held_back_whole(tmp_path: Path) -> None:
    header = '<ir_version: 8, opset_import: ["" : 17]>'
    proto = onnx.parser.parse_model(f"{header} g (float[time,8] x) => (float[time,8] y) {{ y = MatMul(x, w) }}")
    rng = np.random.default_rng(0)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float32), "w"))
    lengths = [5, 20, 3, 40, 7, 12, 1, 9, 30, 6]
    for i, length in enumerate(lengths):
        np.save(tmp_path / f"{i}.npy", rng.standard_normal((length, 8)).astype(np.float32))
    model = Model.from_proto(proto)
    context = Context(model.clone(), open_dataset(tmp_path, model.inputs))
    (layer,) = model.nodes()
    ((_, batches),) = observed(model, model.clone(), [Place.whole(layer)], context, 10, "look")
    held = [h.tolist() for _, _, h in batches]
    assert held == [[i % 5 == 4] * length for i, length in enumerate(lengths)]


def test_nothing_is_run_for_no_places(net: Any) -> None:
    n = net()
    model = Model.from_proto(n.model(n.conv("x", 3, 4)))
    assert not list(observed(model, model, [], Context(model, open_dataset(None, model.inputs)), 0, "look"))
