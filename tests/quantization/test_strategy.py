"""The search over forms, repairs and floats: what is chosen, what is told of it, and what must not get lost."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Skip
from onnxopt.data.dataset import from_feeds
from onnxopt.errors import ExecutionError, SpecError
from onnxopt.passes.quant import Quant
from onnxopt.quantization import strategy
from onnxopt.quantization.candidate import Builder, Candidate, Settings
from onnxopt.quantization.judge import Judge, hold_back
from onnxopt.quantization.mixed import Goal, Mixed
from onnxopt.quantization.pay_off import PayOff
from onnxopt.quantization.strategy import Wanted, quantize_model
from onnxopt.quantization.times import Times
from onnxopt.report.json import plain
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import ANY, ARM64, X86_AVX512_VNNI

CONVS = (
    "[one] h = Conv <pads=[1,1,1,1]> (x, w) r = Relu (h) [two] y = Conv (r, v)",
    "float[8,4,3,3] w, float[8,8,3,3] v",
)
DENSE = "[one] h = MatMul (x, w) r = Relu (h) [two] y = MatMul (r, v)", "float[256,256] w, float[256,256] v"
LSTM = "[rnn] y = LSTM <hidden_size=64> (x, w, r)", "float[1,256,64] w, float[1,256,64] r"
IMAGES, ROWS, STEPS = "float[N,4,8,8] x", "float[N,8,256] x", "float[24,N,64] x"


def data(model, count: int = 32, seed: int = 0):
    rng = np.random.default_rng(seed)
    feeds = []
    for _ in range(count):
        shapes = {s.name: (s.dtype, [d if isinstance(d, int) else 1 for d in s.shape]) for s in model.inputs}
        feeds.append(
            {n: rng.standard_normal(s).astype(t) if t.kind == "f" else np.ones(s, t) for n, (t, s) in shapes.items()}
        )
    return from_feeds(feeds, model.inputs)


def search(model, count: int = 32, target=None, left_out=None, **wanted):
    """The outcome of a search that times nothing, unless told to."""
    options = {"measure": False} | wanted
    context = Context(model, data(model, count), **({"target": target} if target else {}))
    outcome = quantize_model(model.clone(), model, context, Wanted(Settings(), **options), left_out or {})
    json.dumps(plain(outcome.figures), allow_nan=False)
    return outcome


def why(outcome) -> dict[str, str]:
    return {s.node: s.why for s in outcome.skips}


def ops(outcome) -> set[str]:
    return {n.op for n in outcome.candidate.model.nodes()}


@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
def test_convolutions_are_static(build, effort):
    outcome = search(build(*CONVS, IMAGES), effort=effort)
    assert set(outcome.candidate.layers) == {"one", "two"}
    assert outcome.figures["activations"] == "static"
    assert outcome.figures["effort"] == effort
    assert "forms" not in outcome.figures
    assert outcome.skips == ()
    steps = [step["step"] for step in outcome.figures["repairs"]]
    assert steps == ([] if effort == "fast" else ["equalization", "ranges", "rounding"])


@pytest.mark.parametrize("serves", [True, False])
def test_rounding_is_judged_by_the_goal_too(build, monkeypatch, serves):
    """What the report says of the goal is said of the model that it comes with."""
    model = build(*CONVS, IMAGES)
    if not serves:
        monkeypatch.setattr(Mixed, "with_other", lambda self, other: self)
    found = search(model, goal=Goal(min_sqnr=1.0))
    step = found.figures["repairs"][-1]
    assert (step["step"], step["kept"]) == ("rounding", serves)
    assert (found.candidate.learned > 0) == serves
    held_out = hold_back(data(model))[1]
    judged = Judge(model, held_out, samples=128)(found.candidate.model)
    assert found.figures["reached_db"] == pytest.approx(judged.sqnr_db, abs=0.01)


def test_products_are_tried_in_both_forms(build):
    outcome = search(build(*DENSE, ROWS))
    assert set(outcome.figures["forms"]) == {"static", "dynamic"}
    static, dynamic = (outcome.figures["forms"][n][1] for n in ("static", "dynamic"))
    assert 20 < static < dynamic
    assert outcome.figures["activations"] == "dynamic"
    assert set(outcome.candidate.layers) == {"one", "two"}
    assert "MatMulInteger" in ops(outcome)
    assert outcome.skips == ()


@pytest.mark.parametrize(("activations", "op"), [("static", "QuantizeLinear"), ("dynamic", "DynamicQuantizeLinear")])
def test_the_form_that_was_asked_for(build, activations, op):
    outcome = search(build(*DENSE, ROWS), activations=activations)
    assert outcome.figures["activations"] == activations
    assert "forms" not in outcome.figures
    assert op in ops(outcome)
    assert len({"QuantizeLinear", "DynamicQuantizeLinear"} & ops(outcome)) == 1


@pytest.mark.parametrize(("dense", "chosen"), [(2, "dynamic"), (0, "static")])
def test_without_a_judge_the_majority_decides(build, dense, chosen):
    nodes, weights, x = (*DENSE, ROWS) if dense else (*CONVS, IMAGES)
    assert search(build(nodes, weights, x), effort="fast").figures["activations"] == chosen


def test_a_recurrent_layer_gets_dynamic_scales(build):
    outcome = search(build(*LSTM, STEPS))
    assert outcome.figures["activations"] == "dynamic"
    assert outcome.candidate.layers == ("rnn",)
    assert outcome.skips == ()
    assert outcome.figures["repairs"] == []
    static = search(build(*LSTM, STEPS), activations="static")
    assert static.candidate is None
    assert why(static) == {"rnn": "LSTM has integer kernels for dynamic scales only"}


def test_a_recurrent_layer_that_stays_float_says_why(build):
    nodes = "[rnn] y = LSTM <hidden_size=3> (x, w, r)"
    for activations in ("auto", "dynamic"):
        outcome = search(build(nodes, "float[1,12,4] w, float[1,12,3] r", "float[2,N,4] x"), activations=activations)
        assert outcome.candidate is None
        assert "it is too small to gain" in why(outcome)["rnn"]


def test_dynamic_scales_alone_leave_convolutions_float(build):
    outcome = search(build(*CONVS, IMAGES), activations="dynamic")
    assert outcome.candidate is None
    assert set(why(outcome).values()) == {"a convolution hardly gains by dynamic scales, or loses"}
    pixels = "float[N,4,16,16] x"
    nodes = "[one] h = Conv (x, w) f = Flatten (h) [two] y = Gemm (f, v)"
    both = search(build(nodes, "float[8,4,3,3] w, float[1568,512] v", pixels), activations="dynamic")
    assert both.candidate.layers == ("two",)
    assert set(why(both)) == {"one"}


def test_layers_in_bodies_become_dynamic(build):
    model = build(
        """[one] r = MatMul (x, w)
        y = If (go) <
            then_branch = yes () => (float[N,8,256] t) { [in] t = MatMul (r, v) },
            else_branch = no () => (float[N,8,256] e) { e = Neg (r) }
        >""",
        DENSE[1],
        f"{ROWS}, bool go",
    )
    outcome = search(model)
    assert set(outcome.candidate.layers) == {"one", "in"}
    assert outcome.skips == ()
    assert why(search(model, activations="static")) == {"in": "it is in the body of an If, Loop or Scan"}


def test_nothing_to_quantize(build):
    outcome = search(build("y = Relu (x)", "", IMAGES))
    assert outcome.candidate is None
    assert outcome.skips == ()


def test_layers_that_are_excluded(build):
    outcome = search(build(*DENSE, ROWS), left_out={"one": "excluded", "two": "excluded"})
    assert outcome.candidate is None
    assert why(outcome) == {"one": "excluded", "two": "excluded"}
    one = search(build(*DENSE, ROWS), left_out={"one": "excluded"})
    assert one.candidate.layers == ("two",)
    assert why(one) == {"one": "excluded"}


@pytest.mark.parametrize(("count", "noted"), [(1, True), (7, True), (8, False), (32, False)])
def test_too_few_samples_to_hold_back_are_noted(build, count, noted):
    outcome = search(build(*CONVS, IMAGES), count=count)
    assert outcome.candidate is not None
    assert any("too few samples to hold any back" in note for note in outcome.figures["notes"]) == noted


@pytest.mark.parametrize("target", [ARM64, ANY, X86_AVX512_VNNI])
def test_other_machines_are_not_timed(build, target):
    outcome = search(build(*CONVS, IMAGES), target=target, measure=True)
    assert set(outcome.candidate.layers) == {"one", "two"}
    assert outcome.figures.keys().isdisjoint({"speedup", "undone"})


@pytest.mark.parametrize(("nodes", "weights", "x"), [(*CONVS, IMAGES), (*DENSE, ROWS)])
def test_the_same_again_gives_the_same(build, nodes, weights, x):
    first, second = (search(build(nodes, weights, x)) for _ in range(2))
    assert first.candidate.model.digest() == second.candidate.model.digest()
    for step in (*first.figures["repairs"], *second.figures["repairs"]):
        del step["seconds"]
    assert first.figures == second.figures


def wide(build, factor: float):
    """One channel is ``factor`` times as large as the others, and must stay so: the answers show it."""
    nodes = """[one] h = Conv <pads=[1,1,1,1]> (x, w) r = Tanh (h) m = Mul (r, scale) [two] y = Conv (m, v)"""
    model = build(nodes, "float[8,4,3,3] w, float[8,8,3,3] v, float[1,8,1,1] scale", IMAGES)
    mul = next(n for n in model.graph.nodes if n.op == "Mul")
    mul.inputs[1] = model.constant("factors", np.array([factor, *[1] * 7], np.float32).reshape(1, 8, 1, 1))
    conv = model.graph.nodes[-1]
    v = conv.inputs[1].values.copy()
    v[:, 0] /= factor
    conv.inputs[1] = model.constant("v2", v)
    return model


def test_repairs_tell_what_they_bought(build):
    found = search(wide(build, 300.0)).figures["repairs"]
    assert [step["step"] for step in found] == ["equalization", "ranges", "rounding"]
    for step in found:
        assert step["kept"] == (step["after_db"] > step["before_db"] + 0.05)
        assert step["seconds"] >= 0
    assert found[0]["kept"]
    assert found[1]["before_db"] == found[0]["after_db"] > found[0]["before_db"] + 3


@pytest.mark.parametrize("repair", ["equalize", "tune"])
def test_a_repair_that_fails_loses_nothing(build, monkeypatch, repair):
    def fails(*_, **__):
        raise ExecutionError("no such kernel")

    monkeypatch.setattr(*((strategy, repair) if repair == "equalize" else (Builder, repair)), fails)
    outcome = search(build(*CONVS, IMAGES))
    assert set(outcome.candidate.layers) == {"one", "two"}
    steps = {step["step"]: step for step in outcome.figures["repairs"]}
    failed = steps["equalization" if repair == "equalize" else "ranges"]
    assert failed["failed"] == "no such kernel"
    assert not failed["kept"]
    assert sum("failed" in step for step in steps.values()) == 1


@pytest.mark.parametrize("broken", ["static", "dynamic"])
def test_a_form_that_does_not_load_leaves_the_other(build, monkeypatch, broken):
    original = Builder.build

    def built(builder, left_out, times=None):
        if bool(builder.dynamic) == (broken == "dynamic"):
            raise ExecutionError("it does not load")
        return original(builder, left_out, times)

    monkeypatch.setattr(Builder, "build", built)
    outcome = search(build(*DENSE, ROWS))
    assert outcome.figures["activations"] == ("static" if broken == "dynamic" else "dynamic")
    assert outcome.figures["forms"][broken] == "left float as a whole, because in integers: it does not load"
    assert outcome.skips == ()


def test_forms_that_all_fail_are_told_apart(build, monkeypatch):
    def built(builder, *_):
        raise ExecutionError(f"{len(builder.dynamic)} dynamic layers")

    monkeypatch.setattr(Builder, "build", built)
    outcome = search(build(*DENSE, ROWS))
    assert outcome.candidate is None
    assert [s.why for s in outcome.skips] == [
        "static scales: left float as a whole, because in integers: 0 dynamic layers",
        "dynamic scales: left float as a whole, because in integers: 2 dynamic layers",
    ]


@pytest.mark.parametrize("loser", ["static", "dynamic"])
def test_figures_and_skips_are_those_of_the_chosen_form(build, monkeypatch, loser):
    def paid(builder, first, original, context):
        name = "dynamic" if builder.dynamic else "static"
        figures = {"speedup": name}
        if name == loser:
            return PayOff(None, Times(), 0.8, (Skip("model", "left float: 0.80 times as fast"),), figures)
        return PayOff(first, Times(), 1.5, (), figures)

    monkeypatch.setattr(strategy, "pay_off", paid)
    outcome = search(build(*DENSE, ROWS), measure=True)
    winner = "static" if loser == "dynamic" else "dynamic"
    assert outcome.figures["activations"] == outcome.figures["speedup"] == winner
    assert outcome.figures["forms"][loser] == "left float: 0.80 times as fast"
    assert outcome.skips == ()


def test_a_form_that_is_twice_as_quick_wins_unless_unusable(build, monkeypatch):
    speeds = {"static": 3.0, "dynamic": 1.5}

    def paid(builder, first, original, context):
        return PayOff(first, Times(), speeds["dynamic" if builder.dynamic else "static"], (), {})

    monkeypatch.setattr(strategy, "pay_off", paid)
    model = build(*DENSE, ROWS)
    assert search(model, measure=True).figures["activations"] == "static"
    monkeypatch.setattr(strategy, "_USABLE_DB", 36.0)  # more than static scales reach here
    assert search(model, measure=True).figures["activations"] == "dynamic"


def test_answers_that_cannot_be_used_leave_layers_float(build, monkeypatch):
    monkeypatch.setattr(strategy, "equalize", lambda *_: 0)
    outcome = search(wide(build, 3000.0))
    assert outcome.figures["goal"] == "met"
    assert outcome.figures["reached_db"] >= 20
    (left,) = outcome.figures["left_float"]
    assert "left float for the answers' sake" in why(outcome)[left["layer"]]
    assert search(wide(build, 3.0)).figures.keys().isdisjoint({"goal", "left_float"})


def test_floats_that_cost_the_gain_leave_the_model_float(build, monkeypatch):
    def paid(builder, first, original, context):
        return PayOff(first, Times(), 1.5, (), {"speedup": [1.5, 1.4, 1.6]})

    monkeypatch.setattr(strategy, "pay_off", paid)
    monkeypatch.setattr(strategy, "loses", lambda *_: True)
    kept = search(build(*CONVS, IMAGES), measure=True)  # nothing is left float: nothing to time again
    assert kept.figures["speedup"] == [1.5, 1.4, 1.6]
    monkeypatch.setattr(strategy, "equalize", lambda *_: 0)
    outcome = search(wide(build, 3000.0), measure=True)
    assert outcome.candidate is None
    assert "left float: what the answers need in floats leaves" in why(outcome)["model"]
    assert len(outcome.figures["speedup"]) == 3


@pytest.mark.parametrize(("activations", "reached"), [("static", False), ("dynamic", False), ("dynamic", True)])
def test_goals_are_judged_in_either_form(build, activations, reached):
    goal = Goal(min_sqnr=10.0 if reached else 300.0)
    outcome = search(build(*DENSE, ROWS), activations=activations, goal=goal, effort="fast")
    assert outcome.candidate.layers
    assert (outcome.figures["goal"] == "met") == reached
    assert outcome.figures["goal"].startswith("m")
    assert outcome.figures["judged_on"] == 8


def test_a_goal_without_answers(build):
    with pytest.raises(SpecError, match="max-drop: no output looks like scores"):
        search(build(*CONVS, IMAGES), goal=Goal(max_drop=0.01))


def test_a_search_for_floats_that_fails_is_noted(build, monkeypatch):
    def fails(*_, **__):
        raise ExecutionError("no such kernel")

    monkeypatch.setattr(strategy, "mix", fails)
    outcome = search(build(*CONVS, IMAGES), goal=Goal(min_sqnr=300.0))
    assert isinstance(outcome.candidate, Candidate)
    assert "no layer was left float for the answers' sake: no such kernel" in outcome.figures["notes"]


def test_outputs_that_cannot_be_compared(build):
    model = build("[one] h = Conv (x, w) y = SequenceConstruct (h)", "float[8,4,3,3] w", IMAGES)
    outcome = search(model)
    assert outcome.candidate.layers == ("one",)
    assert math.isnan(outcome.figures["repairs"][0]["before_db"])
    assert "goal" not in outcome.figures


@pytest.mark.parametrize(("nodes", "weights", "x"), [(*CONVS, IMAGES), (*DENSE, ROWS), (*LSTM, STEPS)])
def test_the_pass_as_a_whole(build, nodes, weights, x):
    model = build(nodes, weights, x)
    before = model.clone()
    result = Quant(measure=False).run(model, Context(before, data(before)))
    assert result.changed == result.figures["layers"] > 0
    assert result.skips == ()
    feed = next(iter(data(before, 8, seed=1).batches(8)))
    exact, rounded = (Session(m).run(feed)["y"].astype(np.float64) for m in (before, model))
    assert 10 * np.log10(np.square(exact).sum() / np.square(exact - rounded).sum()) > 25


@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
def test_pictures_stay_integers_through_all_repairs(build, effort):
    model = build(*(part.replace("[8,4,3,3]", "[8,3,3,3]") for part in CONVS), "float[N,3,8,8] x")
    n = np.random.default_rng(0).integers(0, 256, (64, 3, 8, 8))
    mean, std = (np.reshape(v, (-1, 1, 1)) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = ((n / 255 - mean) / std).astype(np.float32)
    context = Context(model, from_feeds([{"x": x}], model.inputs))
    outcome = quantize_model(model.clone(), model, context, Wanted(Settings(), effort=effort, measure=False), {})
    (by_channel,) = (m for m in outcome.candidate.model.graph.nodes if m.op == "QuantizeLinear" and m.attrs)
    name = by_channel.outputs[0].name
    made = Session(outcome.candidate.model, outputs=[name], optimize=False).run({"x": x})[name]
    assert np.ptp(made[:, :3, 1:-1, 1:-1].astype(np.int64) - n, axis=(0, 2, 3)).max() == 0


def test_without_timing_no_clock_is_asked_for_a_goal(monkeypatch, build):
    def clock(*_, **__):
        raise AssertionError("a clock was asked")

    monkeypatch.setattr("onnxopt.quantization.sensitivity.profile", clock)
    outcome = search(build(*CONVS, IMAGES), goal=Goal(min_sqnr=200.0))
    assert outcome.figures["goal"].startswith("missed by ")
    (note,) = (n for n in outcome.figures["notes"] if n.startswith("the goal is missed by "))
    assert note.endswith("this is the nearest that was found")
    (left,) = outcome.figures["left_float"]
    # 8 x 8 pixels, 8 channels, 9 or 8 products of 4 or 8 channels each: 10 ps a product.
    assert left["lost_ms"] in (round(1e-8 * 64 * 8 * 4 * 9, 5), round(1e-8 * 36 * 8 * 8 * 9, 5))
