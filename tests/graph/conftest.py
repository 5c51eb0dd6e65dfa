"""What every rule of the coupling is tested with: its proof."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.cutting import Cut
from onnxopt.graph.ir import Node
from onnxopt.graph.labels import Fold
from onnxopt.graph.model import Model
from onnxopt.graph.verify import boundary, faults
from onnxopt.numerics.tolerance import deviation
from onnxopt.runtime.session import Session


@dataclass(frozen=True)
class Outcome:
    """What was found, and what became of the model without half of each block."""

    classes: int
    whole: Model
    cut: Model
    removed: int

    def node(self, name: str) -> Node:
        return next(n for n in self.cut.graph.nodes if n.name == name)


def _halve(proto: onnx.ModelProto, seed: int = 0, *, matters: bool = True, fold: Fold = "longest") -> Outcome:
    """Remove half of each block, chosen by ``seed``, and hold the result against the masked model.

    The channels that go must matter to the outputs, or the comparison would show nothing.
    """
    model = Model.from_proto(proto)
    whole, expected, known = model.clone(), boundary(model), faults(model)
    context = Context(whole, open_dataset(None, model.inputs, samples=4))
    coupling = Coupling(model, context.shapes(model), context.free_axes(model), fold=fold)
    rng = np.random.default_rng(seed)
    removed = np.concatenate([np.zeros(0, np.intp), *(rng.permutation(b)[: len(b) // 2] for b in coupling.blocks())])
    cut = Cut(coupling, removed)
    masked = cut.masked(model)
    cut.apply(model)
    model.tidy()
    assert faults(model, expected) == known
    assert faults(masked, expected) == known
    if not known:
        onnx.checker.check_model(model.to_proto(), full_check=True)
    feed = next(iter(context.dataset.batches(4)))
    wanted, got = Session(masked, optimize=False).run(feed), Session(model, optimize=False).run(feed)
    for name, value in wanted.items():
        assert deviation(value, got[name]) < 1e-5
    if len(removed) and matters:
        before = Session(whole, optimize=False).run(feed)
        assert any(deviation(value, before[name]) > 1e-4 for name, value in wanted.items())
    return Outcome(coupling.count, whole, model, len(removed))


def _finished(n: Any, y: str, *shape: int, opset: int = 17) -> onnx.ModelProto:
    output = helper.make_tensor_value_info(y, TensorProto.FLOAT, shape)
    graph = helper.make_graph(n.nodes, "g", [n.input], [output], n.weights)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.fixture(scope="session")
def finished() -> Callable[..., onnx.ModelProto]:
    """The model that gives ``y`` of this shape, made of operators too that inference does not know."""
    return _finished


@pytest.fixture(scope="session")
def halve() -> Callable[..., Outcome]:
    """Removes half of each block of a model, and proves the result."""
    return _halve
