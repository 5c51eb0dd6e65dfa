"""Gates: which are judged, what holds, and what they say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from onnxopt.check.gates import Gates, evaluate
from onnxopt.report.report import GateResult, Latency, OutputQuality, Validation

GOOD = Validation(
    target="native",
    samples=500,
    sqnr_db=28.4,
    cosine=0.999,
    outputs=(OutputQuality("scores", 28.4, 0.999, 0.1),),
    agreement=0.985,
    accuracy=0.805,
    accuracy_reference=0.81,
    accuracy_top5=None,
    accuracy_top5_reference=None,
    latency_ms=1.0,
    latency_reference_ms=2.0,
    latency=Latency(1.0, 0.9, 1.1),
    latency_reference=Latency(2.0, 1.9, 2.1),
    speedup=2.0,
    speedup_low=1.95,
    speedup_high=2.05,
    threads=1,
    batch=1,
    peak_memory_bytes=None,
    peak_memory_reference_bytes=None,
)
UNLABELLED = replace(GOOD, accuracy=None, accuracy_reference=None)
NO_CLASSES = replace(UNLABELLED, agreement=None)


def judge(validation: Validation, size: int = 300_000, **limits: float) -> dict[str, GateResult]:
    return {g.name: g for g in evaluate(Gates(**limits), validation, 1_000_000, size)}  # type: ignore[arg-type]


def test_the_default_judges_answers_by_the_best_there_is() -> None:
    assert list(judge(GOOD)) == ["max-drop", "min-speedup", "max-size"]
    assert list(judge(UNLABELLED)) == ["min-agreement", "min-speedup", "max-size"]
    assert list(judge(NO_CLASSES)) == ["min-sqnr", "min-speedup", "max-size"]
    assert all(g.holds for v in (GOOD, UNLABELLED, NO_CLASSES) for g in judge(v).values())


def test_too_few_labels_to_tell_a_point_do_not_judge() -> None:
    assert "max-drop" in judge(replace(GOOD, samples=300))
    few = judge(replace(GOOD, samples=299))
    assert "max-drop" not in few
    assert "min-agreement" in few


def test_what_is_asked_for_is_what_is_judged() -> None:
    assert list(judge(GOOD, min_sqnr=20)) == ["min-sqnr", "min-speedup", "max-size"]
    assert list(judge(GOOD, max_drop=0.01, min_agreement=0.9, min_sqnr=20))[:3] == [
        "max-drop",
        "min-agreement",
        "min-sqnr",
    ]


def test_accuracy_lost() -> None:
    gate = judge(GOOD, max_drop=0.005)["max-drop"]
    assert gate.holds
    assert gate.measured == pytest.approx(0.005)
    assert gate.why == "accuracy 80.5 % after 81.0 % on 500 samples: 0.5 points lost, 0.5 allowed"
    assert judge(replace(GOOD, accuracy=0.795))["max-drop"].holds is False
    assert "nothing lost" in judge(replace(GOOD, accuracy=0.82))["max-drop"].why


def test_agreement() -> None:
    gate = judge(GOOD, min_agreement=0.99)["min-agreement"]
    assert gate.holds is False
    assert gate.why == "98.5 % of the top answers stay on 500 samples, 99.0 % wanted"


def test_few_samples_are_coarse() -> None:
    few = replace(UNLABELLED, samples=16, agreement=13 / 16)
    why = judge(few)["min-agreement"].why
    assert why == "81.2 % of the top answers stay on 16 samples (one is 6.2 points), 90.0 % wanted"


def test_signal_to_noise() -> None:
    gate = judge(GOOD, min_sqnr=30)["min-sqnr"]
    assert (gate.holds, gate.measured, gate.limit) == (False, 28.4, 30)
    assert gate.why == "28.4 dB signal to noise in 'scores', 30 dB wanted"
    equal = judge(replace(NO_CLASSES, sqnr_db=math.inf))["min-sqnr"]
    assert (equal.holds, equal.why) == (True, "the outputs are equal")
    broken = judge(replace(NO_CLASSES, sqnr_db=-math.inf))["min-sqnr"]
    assert broken.holds is False
    assert "'scores' is unusable" in broken.why
    nothing = judge(replace(NO_CLASSES, sqnr_db=math.nan))["min-sqnr"]
    assert (nothing.holds, nothing.why) == (False, "no output could be compared")


@pytest.mark.parametrize(
    ("limits", "validation", "why"),
    [
        ({"max_drop": 0.01}, UNLABELLED, "accuracy cannot be measured: the data has no labels that fit"),
        ({"min_agreement": 0.9}, NO_CLASSES, "agreement cannot be measured: no output looks like scores of classes"),
    ],
)
def test_a_gate_that_was_asked_for_and_cannot_be_measured_fails(
    limits: dict[str, float], validation: Validation, why: str
) -> None:
    gate = next(iter(judge(validation, **limits).values()))
    assert (gate.holds, gate.measured) == (False, None)
    assert why in gate.why


@pytest.mark.parametrize(
    ("speedup", "high", "limit", "holds"),
    [
        (0.98, 1.00, None, True),
        (0.98, 0.985, None, False),  # slower in every round
        (0.985, 0.99, None, True),  # by less than timing can tell
        (0.80, 1.01, None, True),  # nobody knows
        (0.79, 13.7, None, False),  # mostly slower, whatever else the machine does
        (0.90, 0.95, None, False),
        (1.60, 1.70, 1.5, True),
        (1.45, 1.55, 1.5, False),  # what was asked for is meant
        (0.60, 0.62, 0.5, True),
    ],
)
def test_speed(speedup: float, high: float, limit: float | None, holds: bool) -> None:
    validation = replace(GOOD, speedup=speedup, speedup_low=speedup - 0.01, speedup_high=high)
    limits = {} if limit is None else {"min_speedup": limit}
    gate = judge(validation, **limits)["min-speedup"]
    assert gate.holds is holds
    assert gate.why.startswith(f"{speedup:.2f} times as fast (")


def test_size() -> None:
    assert judge(GOOD, 1_020_000)["max-size"].holds  # 1 % and the remarks
    assert judge(GOOD, 1_030_000)["max-size"].holds is False
    gate = judge(GOOD, 300_000, max_size=250_000)["max-size"]
    assert gate.holds is False
    assert gate.why == "300 kB after 1.00 MB, at most 250 kB wanted"


def test_the_speed_here_says_nothing_of_another_processor() -> None:
    slow = replace(GOOD, speedup=0.5, speedup_low=0.49, speedup_high=0.51)
    gate = evaluate(Gates(), slow, 1_000_000, 300_000, elsewhere=True)[1]
    assert (gate.name, gate.holds, gate.measured) == ("min-speedup", None, 0.5)
    assert gate.why.endswith("but on native, which says nothing of the processor it is made for")
    assert evaluate(Gates(min_speedup=0.6), slow, 1_000_000, 300_000, elsewhere=True)[1].holds is False
