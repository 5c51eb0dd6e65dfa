"""Hidden units, by the proof of every cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.model import Model

Halve = Callable[..., Any]
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def layer(n: Any, op: str, x: str, into: int, units: int, directions: int = 1, **attributes: Any) -> tuple[str, ...]:
    """A recurrent layer with a bias; its outputs."""
    gates = GATES[op] * units
    direction = {"direction": "bidirectional"} if directions == 2 else {}
    made: tuple[str, ...] = n.op(
        op,
        x,
        n.normal(directions, gates, into),
        n.normal(directions, gates, units),
        n.constant(n.rng.standard_normal((directions, 2 * gates)) * 0.3),
        outputs=3 if op == "LSTM" else 2,
        hidden_size=units,
        **direction,
        **attributes,
    )
    return made


@pytest.mark.parametrize("op", GATES)
def test_hidden_units(op: str, net: Any, halve: Halve) -> None:
    n = net(5, 2, 6)
    y = layer(n, op, n.op("MatMul", "x", n.normal(6, 10)), 10, 8)[0]
    y = layer(n, op, n.op("Squeeze", y, n.ints(1)), 8, 4)[0]
    outcome = halve(n.model(n.op("MatMul", y, n.normal(4, 3))))
    assert outcome.classes == 10 + 8 + 4
    assert [m.attrs["hidden_size"] for m in outcome.cut.graph.nodes if m.op == op] == [4, 2]


@pytest.mark.parametrize("op", GATES)
def test_both_directions_lose_the_same_units(op: str, net: Any, halve: Halve) -> None:
    n = net(5, 2, 6)
    y = layer(n, op, "x", 6, 8, 2)[0]
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(0, 0, -1))
    assert halve(n.model(n.op("MatMul", y, n.normal(16, 3)))).classes == 8


def test_last_states(net: Any, halve: Halve) -> None:
    n = net(5, 2, 6)
    _, hidden, cell = layer(n, "LSTM", "x", 6, 8)
    assert halve(n.model(n.op("MatMul", n.op("Add", hidden, cell), n.normal(8, 3)))).classes == 8


def test_initial_states_lengths_and_peepholes(net: Any, halve: Halve) -> None:
    n = net(5, 2, 6)
    state = n.op(
        "Unsqueeze", n.op("Gather", n.op("MatMul", "x", n.normal(6, 8)), n.constant(0, int), axis=0), n.ints(0)
    )
    weights = (n.normal(1, 32, 6), n.normal(1, 32, 8), n.constant(np.ones((1, 64)) / 4))
    start = n.constant(np.linspace(-1, 1, 16).reshape(1, 2, 8))
    lengths, peepholes = n.constant([5, 3], np.int32), n.normal(1, 24)
    y = n.op("LSTM", "x", *weights, lengths, state, start, peepholes, outputs=3, hidden_size=8)[0]
    assert halve(n.model(n.op("MatMul", y, n.normal(8, 3)))).classes == 8


def test_states_made_for_any_batch(net: Any, halve: Halve) -> None:
    n = net(5, "N", 6)
    batch = n.op("Slice", n.op("Shape", "x"), n.ints(1), n.ints(2))
    state = n.op("ConstantOfShape", n.op("Concat", n.ints(1), batch, n.ints(8), axis=0))
    y = n.op("LSTM", "x", n.normal(1, 32, 6), n.normal(1, 32, 8), "", "", state, state, outputs=3, hidden_size=8)[0]
    assert halve(n.model(n.op("MatMul", y, n.normal(8, 3)))).classes == 8


def test_batches_first(net: Any) -> None:
    n = net(2, 5, 6)
    y = layer(n, "GRU", "x", 6, 8, layout=1)[0]
    model = Model.from_proto(n.model(n.op("MatMul", y, n.normal(8, 3))))
    shapes = {t.name: tuple(t.shape) for t in model.graph.inputs} | {y: (2, 5, 1, 8), "gru0_1": (2, 1, 8)}
    assert Coupling(model, shapes | {model.graph.outputs[0].name: (2, 5, 1, 3)}, {}).count == 8


def test_units_that_a_model_gives_back_stay(net: Any) -> None:
    n = net(5, 2, 6)
    model = Model.from_proto(n.model(layer(n, "GRU", "x", 6, 8)[0]))
    context = Context(model, open_dataset(None, model.inputs, samples=2))
    coupling = Coupling(model, context.shapes(model), context.free_axes(model))
    assert coupling.why_frozen(model.graph.nodes[0], 3) == "'gru0_0' is an output of the model"
