"""The order in which channels go, and what that costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.cutting import Cut
from onnxopt.graph.labels import Labels
from onnxopt.graph.model import Model
from onnxopt.numerics.elimination import Elimination
from onnxopt.numerics.least_squares import Moments
from onnxopt.pruning import channels, criteria
from onnxopt.pruning.probe import Probe
from onnxopt.pruning.selection import Block, Path, by_data, by_score
from onnxopt.runtime.session import Session

Zoo = dict[str, Callable[[], onnx.ModelProto]]


class Judged:
    """A model's blocks that layers make, each to go down by ``step``, and the ways down."""

    def __init__(self, proto: onnx.ModelProto, step: int = 4, *, samples: int = 16, probe: bool = False) -> None:
        self.model = Model.from_proto(proto)
        self.context = Context(self.model, open_dataset(None, self.model.inputs, samples=samples), batch=8)
        shapes = self.context.shapes(self.model)
        self.coupling = Coupling(self.model, shapes, self.context.free_axes(self.model))
        self.makers = channels.producers(self.model.graph, self.coupling)
        self.score = criteria.score("l1", self.model, self.coupling, self.makers, self.context, samples)
        made = set(criteria.made(self.makers, self.coupling).tolist())
        able = [b for b in self.coupling.blocks() if int(b[0]) in made]
        self.blocks = [Block(b, np.arange(len(b), 0, -step, dtype=np.float64)) for b in able]
        tried = Probe(self.model, self.context, samples) if probe else None
        self.paths = by_data(self.model, self.coupling, self.blocks, self.score, self.context, samples, tried)

    def classes(self, layer: str) -> Labels:
        return next(m.classes for m in self.makers if m.layer.name == layer)


def check(path: Path, blocks: list[Block]) -> None:
    """States go down level by level, errors up, and ``gone`` says which of ``order`` went by then."""
    assert path.error[0] == 0
    assert (np.diff(path.error) >= 0).all()
    assert len(path.kept) == len(path.error) == len(path.gone)
    assert len(set(path.order.tolist())) == len(path.order) == path.gone[-1]
    for kept, gone in zip(path.kept, path.gone, strict=True):
        for n, b in zip(kept, path.blocks, strict=True):
            assert n in blocks[b].levels
            assert len(blocks[b].classes) - np.isin(blocks[b].classes, path.order[:gone]).sum() == n
    assert path.kept[-1].tolist() == [blocks[b].levels[-1] for b in path.blocks]


def test_by_score_the_lowest_go_first() -> None:
    score = np.array([np.nan, 3.0, 1.0, 2.0, 1.0, 5.0, 4.0])
    blocks = [Block(np.array([1, 2, 3, 4]), np.array([4.0, 2.0, 1.0])), Block(np.array([5, 6]), np.array([2.0, 1.0]))]
    first, second = by_score(blocks, score)
    assert first.order.tolist() == [2, 4, 3]
    assert first.error.tolist() == [0, 2, 4]
    assert first.gone.tolist() == [0, 2, 3]
    assert first.kept.tolist() == [[4], [2], [1]]
    assert (second.order.tolist(), second.error.tolist()) == ([6], [0, 4])


@pytest.mark.parametrize(("name", "probe"), [("plain", False), ("residual", True), ("densely_connected", True)])
def test_ways_down_of_the_zoo(name: str, probe: bool, zoo: Zoo) -> None:
    judged = Judged(zoo[name](), 8, probe=probe)
    for path in judged.paths:
        check(path, judged.blocks)
    assert sorted(b for p in judged.paths for b in p.blocks) == list(range(len(judged.blocks)))


def test_blocks_that_the_same_layer_reads_are_one_way_down(zoo: Zoo) -> None:
    assert [len(p.blocks) for p in Judged(zoo["plain"](), 8).paths] == [1, 1, 1]
    widest = max(len(p.blocks) for p in Judged(zoo["densely_connected"](), 8).paths)
    assert widest == 4


def twins(net: Any) -> onnx.ModelProto:
    """Two branches that make the same, side by side."""
    n = net()
    x = n.relu(n.conv("x", 3, 8))
    weight = n.normal(8, 8, 3, 3)
    same = n.constant(onnx.numpy_helper.to_array(n.weights[-1]))
    both = [n.relu(n.op("Conv", x, w, pads=[1] * 4)) for w in (weight, same)]
    proto: onnx.ModelProto = n.model(n.conv(n.op("Concat", *both, axis=1), 16, 6, 1))
    return proto


def test_of_two_copies_one_stays(net: Any) -> None:
    judged = Judged(twins(net), 1)
    left, right = (judged.classes(name).tolist() for name in ("Conv2", "Conv4"))
    path = next(p for p in judged.paths if len(p.blocks) == 2)
    check(path, judged.blocks)
    # The first eight to go are one copy of each, at no cost to speak of.
    copies = [left.index(c) if c in left else right.index(c) for c in path.order[:8]]
    assert sorted(copies) == list(range(8))
    assert path.error[8] < 1e-2 * path.error[-1]


@pytest.mark.parametrize("step", [1, 4])
def test_a_single_block_goes_by_elimination(step: int, net: Any) -> None:
    n = net("N", 12)
    judged = Judged(n.model(n.dense(n.relu(n.dense("x", 12, 16)), 16, 6)), step)
    (path,) = judged.paths
    reader = judged.model.graph.nodes[-1]
    name = reader.inputs[0].name
    session = Session(judged.model, outputs=[name])
    x = np.concatenate([session.run(feed)[name] for feed in judged.context.dataset.batches(8)]).astype(np.float64)
    elimination = Elimination(unrolled.read(reader)[0][0], Moments.of(x, np.zeros((len(x), 0))).covariance)
    order = judged.classes("Gemm0").tolist()
    left, spent = list(range(16)), [0.0]
    while len(left) > judged.blocks[0].levels[-1]:
        costs = elimination.costs([np.array([i]) for i in left])
        spent.append(spent[-1] + costs.min() / elimination.power)
        gone = left.pop(int(np.argmin(costs)))
        elimination.remove(np.array([gone]))
        assert path.order[len(spent) - 2] == order[gone]
    np.testing.assert_allclose(path.error, np.array(spent)[path.gone], rtol=1e-6)


def test_what_no_layer_reads_goes_by_score(net: Any) -> None:
    n = net("N", 6, 8)
    query, key = (n.op("MatMul", "x", n.normal(8, 16)) for _ in range(2))
    proto = n.model(n.op("MatMul", query, n.op("Transpose", key, perm=[0, 2, 1])))
    judged = Judged(proto)
    (path,), (expected,) = judged.paths, by_score(judged.blocks, judged.score)
    assert path.order.tolist() == expected.order.tolist()
    np.testing.assert_allclose(path.error, expected.error / judged.score[judged.blocks[0].classes].sum())


def test_what_no_layer_reads_costs_what_zeros_in_its_place_do_with_a_probe(net: Any) -> None:
    n = net("N", 6, 8)
    query, key = (n.op("MatMul", "x", n.normal(8, 16)) for _ in range(2))
    proto = n.model(n.op("MatMul", query, n.op("Transpose", key, perm=[0, 2, 1])))
    judged = Judged(proto, probe=True)
    (path,) = judged.paths
    check(path, judged.blocks)
    probe = Probe(judged.model, judged.context, 16)
    for state in (1, 2):
        masked = Cut(judged.coupling, path.order[: path.gone[state]]).masked(judged.model)
        assert path.error[state] == pytest.approx(probe.of(masked))


def test_errors_are_those_of_the_outputs_with_a_probe(net: Any) -> None:
    """A layer whose answer hardly matters: its own errors are large, what they do to the output is not."""
    n = net()
    x = n.op("Flatten", n.op("GlobalAveragePool", "x"))
    strong, weak = (n.dense(n.relu(n.dense(x, 3, 16)), 16, 4) for _ in range(2))
    proto = n.model(n.op("Add", strong, n.op("Mul", weak, n.constant(1e-3))))
    own, measured = (Judged(proto, probe=probe).paths for probe in (False, True))
    assert own[1].error[-1] > 1e-2 * own[0].error[-1]
    assert measured[1].error[-1] < 1e-4 * measured[0].error[-1]
