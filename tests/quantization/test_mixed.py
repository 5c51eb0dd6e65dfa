"""Which layers do harm, and how few of them in floats meet a goal: on a net in which one tensor is badly rounded."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from onnxopt.core.context import Context
from onnxopt.core.quality import Quality
from onnxopt.data.dataset import Dataset, from_feeds
from onnxopt.errors import ExecutionError, SpecError
from onnxopt.graph.model import Model
from onnxopt.quantization.candidate import Builder, Candidate, Settings
from onnxopt.quantization.judge import Judge, hold_back
from onnxopt.quantization.mixed import Goal, Mixed, Short, meet, mix
from onnxopt.quantization.sensitivity import rank

NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4,8,8] x) => (float[N,10] y) {
    c1 = Conv <pads=[1,1,1,1]> (x, w1)
    r1 = Relu (c1)
    c2 = Conv <pads=[1,1,1,1]> (r1, w2)
    r2 = Relu (c2)
    c3 = Conv <pads=[1,1,1,1]> (r2, w3)
    r3 = Relu (c3)
    p = GlobalAveragePool (r3)
    f = Flatten (p)
    y = Gemm <transB=1> (f, w4)
}"""
SHAPES = {"w1": (8, 4, 3, 3), "w2": (16, 8, 3, 3), "w3": (16, 16, 3, 3), "w4": (10, 16)}
WIDE = 300.0


def net() -> Model:
    """One channel of r1 is ``WIDE`` times as large as the others, and counts for as much less behind it."""
    proto = onnx.parser.parse_model(NET)
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal(s) / math.sqrt(math.prod(s[1:])) for n, s in SHAPES.items()}
    weights["w1"][0] *= WIDE
    weights["w2"][:, 0] /= WIDE
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items())
    for i, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}{i}"
    return Model.from_proto(proto)


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((1, 4, 8, 8)).astype(np.float32)} for _ in range(48)]
    return from_feeds(feeds, net().inputs)


@pytest.fixture(scope="module")
def built(data) -> tuple[Builder, Candidate, Judge]:
    calibration, held_out = hold_back(data)
    builder = Builder(net(), Context(net(), calibration), Settings(), {})
    full = builder.build({})
    assert isinstance(full, Candidate)
    return builder, full, Judge(net(), held_out, samples=12)


def test_a_quarter_is_held_back_unless_samples_are_few(data):
    calibration, held_out = hold_back(data)
    assert (calibration.count, held_out.count) == (36, 12)
    few = data.subset(range(7))
    assert hold_back(few) == (few, few)


def test_a_judge_says_how_near_a_model_is(built):
    _, full, judge = built
    assert judge.samples == 12
    assert judge(net()).sqnr_db == math.inf
    assert judge(net()) == judge.perfect
    assert 5 < judge(full.model).sqnr_db < 25


def test_a_model_that_does_not_run_is_unusable(built):
    broken = net()
    broken.graph.nodes[0].op = "NoSuchOperator"
    assert built[2](broken).sqnr_db == -math.inf


def test_the_layers_around_the_badly_rounded_tensor_come_first(built):
    builder, full, judge = built
    found = rank(builder, full, judge, gains=True)
    assert {s.layer for s in found[:2]} == {"Conv0", "Conv2"}
    assert {s.layer for s in found} == set(full.layers)
    assert [s.sqnr_db for s in found] == sorted(s.sqnr_db for s in found)
    assert found[0].sqnr_db < found[2].sqnr_db - 10
    assert found[0].noise == pytest.approx(10 ** (-found[0].sqnr_db / 10))
    assert sum(s.share for s in found) == pytest.approx(1)
    assert all(0 <= s.agreement <= 1 and s.accuracy_drop is None for s in found)
    # Neither of the two gains anything alone: the other still reads or writes the tensor.
    assert all(s.gain_db < 6 for s in found)
    assert rank(builder, full, judge)[0].gain_db is None


def test_ranges_are_measured_in_one_run(built, data, monkeypatch):
    _, full, judge = built
    calibration, _ = hold_back(data)
    runs = []
    statistics = Context.statistics
    monkeypatch.setattr(Context, "statistics", lambda *a, **k: (runs.append(a[2]), statistics(*a, **k))[1])
    builder = Builder(net(), Context(net(), calibration), Settings(), {})
    builder.build({})
    rank(builder, full, judge)
    assert len(runs) <= 2


def reach(built, **goal: float) -> Mixed:
    builder, full, judge = built
    return meet(Goal(**goal), builder, full, judge, lambda: rank(builder, full, judge))


def test_the_layers_that_do_harm_are_left_float_and_no_others(built):
    found = reach(built, min_sqnr=30)
    assert found.met
    assert found.quality.sqnr_db >= 30
    assert {s.layer for s in found.left} <= {"Conv0", "Conv2"}
    assert set(found.candidate.layers) >= {"Conv4"}
    figures = found.figures()
    assert figures["goal"] == "met"
    assert figures["judged_on"] == 12
    assert figures["reached_db"] >= 30
    assert [row["layer"] for row in figures["left_float"]] == [s.layer for s in found.left]
    why = {s.node: s.why for s in found.candidate.skips}
    assert all("left float for the answers' sake" in why[s.layer] for s in found.left)


def test_a_goal_that_is_met_costs_one_look(built):
    builder, full, judge = built

    def ranking() -> tuple[()]:
        raise AssertionError("not needed")

    found = meet(Goal(min_sqnr=1), builder, full, judge, ranking)
    assert (found.met, found.left, found.tried) == (True, (), ((0, 0.0, found.quality.sqnr_db),))
    assert found.candidate is full


def test_the_nearest_is_returned_where_the_goal_is_out_of_reach(built):
    found = reach(built, min_sqnr=300)
    assert not found.met
    assert found.candidate.layers
    assert found.quality.sqnr_db > 40
    assert found.figures()["goal"] == f"missed by {300 - found.quality.sqnr_db:.1f} dB"


def test_what_does_not_load_is_passed_over(built, monkeypatch):
    builder, full, judge = built
    layers = rank(builder, full, judge, timed=False)
    build = Builder.build
    calls = []

    def some(self, left_out, times=None):
        calls.append(set(left_out))
        if len(left_out) == 2:
            raise ExecutionError("ONNX Runtime cannot load the model")
        return build(self, left_out, times)

    monkeypatch.setattr(Builder, "build", some)
    found = meet(Goal(min_sqnr=300), builder, full, judge, lambda: layers)
    assert any(len(left) == 2 for left in calls)
    assert found.quality.sqnr_db > judge(full.model).sqnr_db


def test_answers_can_be_the_goal(data):
    builder = Builder(net(), Context(net(), data), Settings(), {})
    full = builder.build({})
    found = mix(Goal(max_drop=0.0), builder, full, net(), data)
    assert found.met
    assert found.figures()["answers_lost"] == 0


def test_another_candidate_is_taken_if_it_is_no_further_from_the_goal(built):
    builder, full, _ = built
    found = reach(built, min_sqnr=30)
    assert found.with_other(full) is found
    finer = builder.build({layer: "float" for layer in ("Conv0", "Conv2", "Conv4")})
    assert found.with_other(finer).candidate is finer


def quality(sqnr_db: float, agreement: float | None = None, accuracy: tuple[float, float] | None = None) -> Quality:
    right = (None, None) if accuracy is None else accuracy
    return Quality((), sqnr_db, 1.0, agreement, *right, None, None, ())


@pytest.mark.parametrize(
    ("goal", "seen", "short"),
    [
        (Goal(min_sqnr=20), quality(25), Short(0, 0)),
        (Goal(min_sqnr=20), quality(17.5), Short(0, 2.5)),
        (Goal(min_sqnr=20), quality(math.nan), Short(0, math.inf)),
        (Goal(max_drop=0.01), quality(5, 0.995), Short(0, 0)),
        (Goal(max_drop=0.01), quality(5, 0.95), Short(0.04, 0)),
        (Goal(max_drop=0.01), quality(5, 0.5, (0.80, 0.805)), Short(0, 0)),
        (Goal(max_drop=0.01), quality(5, 1.0, (0.70, 0.80)), Short(0.09, 0)),
        (Goal(max_drop=0.01, min_sqnr=6), quality(5, 0.9), Short(0.09, 1)),
    ],
)
def test_how_far_from_the_goal(goal, seen, short):
    assert goal.short(seen) == pytest.approx(short, abs=1e-6)


def test_a_goal_that_cannot_be_judged_says_so():
    with pytest.raises(SpecError, match=r"quant:max-drop: no output looks like scores .* min-sqnr"):
        Goal(max_drop=0.01).short(quality(20))


def test_what_is_missing_in_words():
    assert str(Short(0.04, 1.25)) == "4 % of the answers and 1.2 dB"
