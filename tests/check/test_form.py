"""What nodes cost and take, and which of them run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from onnxopt.check.form import Form, executed
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.model import Model


def test_costs_of_nodes_and_of_all(build: Callable[..., Model]) -> None:
    model = build("a = MatMul(x, w) y = Relu(a)", "float[8,4] w", x="float[N,8] x")
    few = open_dataset(None, model.inputs, samples=2)
    found = Form.measured(model, few, next(iter(few.batches(1, stop=1))), 1)
    product, relu = model.graph.nodes
    size, macs, ms = found.of([product, product])
    assert (size, macs) == (128, 32)
    assert 0 < ms <= 1e3 * found.total
    assert found.of([relu])[0] == 0
    whole = found.at(2 * found.total)
    assert whole.of([product])[2] == pytest.approx(2 * ms)
    assert (whole.whole().bytes, whole.whole().macs) == (128, 32)


def test_what_depends_on_constants_alone_runs_at_loading_but_decoding_does_not(build: Callable[..., Model]) -> None:
    model = build(
        "s = Gather(t, i) v = Mul(s, k) d = DequantizeLinear(q, f) w = Add(v, d) y = MatMul(x, w)",
        "float[9,4] t, int64[8] i = {0,1,2,3,4,5,6,7}, float[1] k, int8[8,4] q, float f = {0.5}",
        x="float[N,8] x",
    )
    assert executed(model.graph.nodes) == ["Add", "DequantizeLinear", "MatMul"]
