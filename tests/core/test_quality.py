"""Quality in batches equals quality in one go, and says what it cannot compare."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.core import quality as quality_module
from onnxopt.core.quality import Comparison, Quality

RNG = np.random.default_rng(0)
IMAGE = {"x": np.zeros((8, 3, 4, 4), np.float32)}


def compare(reference: object, candidate: object, samples: int = 8, labels: np.ndarray | None = None) -> Quality:
    comparison = Comparison(labels)
    comparison.add(IMAGE, {"y": reference}, {"y": candidate})
    return comparison.result(samples)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_figures_by_hand() -> None:
    found = compare(np.array([3.0, 4.0], np.float32), np.array([3.0, 4.5], np.float32))
    assert found.sqnr_db == pytest.approx(10 * math.log10(25 / 0.25))
    assert found.cosine == pytest.approx((9 + 18) / (5 * math.sqrt(9 + 4.5**2)))
    assert found.outputs[0].max_error == 0.5
    assert found.outputs[0].equal is None
    assert found.notes == ()


@pytest.mark.parametrize(("largest", "faint"), [(2e-7, True), (2e-6, False)])
def test_an_output_that_no_sample_raises_is_noted(largest: float, faint: bool) -> None:
    scores = np.array([0, largest, largest / 2], np.float32)
    found = compare(scores, scores * np.float32(1.5))
    said = "these samples hardly raise 'y', 2e-07 at most in the original: its signal to noise says little"
    assert found.sqnr_db == pytest.approx(20 * math.log10(2), abs=1e-4)
    assert found.notes == ((said,) if faint else ())
    assert compare(scores, scores).notes == ()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 50))
def test_chunks_and_batches_do_not_matter(sizes: list[int], chunk: int) -> None:
    rng = np.random.default_rng(sum(sizes))
    a = rng.standard_normal((sum(sizes), 5))
    b = a + 0.1 * rng.standard_normal(a.shape)
    comparison, kept = Comparison(), quality_module._CHUNK
    quality_module._CHUNK = chunk
    try:
        for rows in np.split(np.arange(len(a)), np.cumsum(sizes)[:-1]):
            comparison.add({}, {"y": a[rows]}, {"y": b[rows]})
    finally:
        quality_module._CHUNK = kept
    found = comparison.result(len(a))
    assert found.sqnr_db == pytest.approx(10 * math.log10((a**2).sum() / ((a - b) ** 2).sum()))
    assert found.cosine == pytest.approx((a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum()))
    assert found.agreement == pytest.approx((a.argmax(1) == b.argmax(1)).mean())


def test_equal_outputs() -> None:
    same = f32(8, 3, 5)
    found = compare(same, same.copy())
    assert (found.sqnr_db, found.cosine) == (math.inf, pytest.approx(1))
    silent = np.zeros((8, 3), np.float32)
    assert (compare(silent, silent).sqnr_db, compare(silent, silent).cosine) == (math.inf, 1)


def test_something_where_there_was_nothing() -> None:
    found = compare(np.zeros((8, 3, 2), np.float32), f32(8, 3, 2))
    assert (found.sqnr_db, found.cosine) == (-math.inf, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_lost_numbers_fail_clearly(value: float) -> None:
    a = f32(8, 3, 4)
    b = a.copy()
    b[2, 1, :2] = value
    found = compare(a, b)
    assert found.sqnr_db == -math.inf
    assert found.notes == ("NaN or infinity came into 'y' in 2 places",)


def test_numbers_that_the_original_lacks_are_left_out() -> None:
    a = f32(8, 3, 4)
    b = a + 0.1
    a[0, 0, 0] = math.nan
    b[0, 0, 0] = math.nan
    a[0, 0, 1] = -math.inf
    found = compare(a, b)
    assert 10 < found.sqnr_db < 30
    assert found.notes == ("the original itself gives NaN or infinity in 2 places of 'y': left out",)


def test_the_worst_output_counts() -> None:
    a, b = f32(8, 3, 4), f32(8, 3, 4)
    comparison = Comparison()
    comparison.add(IMAGE, {"a": a, "b": b}, {"a": a + 0.001, "b": b + 0.1})
    found = comparison.result(8)
    assert [o.name for o in found.outputs] == ["a", "b"]
    assert found.sqnr_db == found.outputs[1].sqnr_db < found.outputs[0].sqnr_db
    assert found.cosine == found.outputs[1].cosine


def test_names_are_compared_by_their_equal_share() -> None:
    a = np.arange(200, dtype=np.int64).reshape(2, 100)
    b = a.copy()
    b[0, :20] += 1
    found = compare(a, b)
    assert (found.outputs[0].equal, found.cosine) == (0.9, 0.9)
    assert found.sqnr_db == pytest.approx(10)
    assert math.isnan(found.outputs[0].max_error)
    text = np.array(["cat", "dog"], object)
    assert compare(text, text.copy()).sqnr_db == math.inf
    assert compare(text, text[::-1]).outputs[0].equal == 0


def test_names_do_not_count_beside_numbers() -> None:
    a, best = f32(8, 3, 4), np.arange(8)
    comparison = Comparison()
    comparison.add(IMAGE, {"best": best, "y": a}, {"best": best[::-1], "y": a + 0.01})
    assert comparison.result(8).sqnr_db > 30


def test_small_integers_are_numbers() -> None:
    a = np.array([[100, 200], [50, 25]], np.uint8)
    assert compare(a, a + np.uint8(1)).sqnr_db > 30
    assert compare(a, a + np.uint8(1)).outputs[0].equal is None


def test_another_shape_counts_as_no_answer() -> None:
    a = np.ones((4, 6), np.float32)
    comparison = Comparison()
    for _ in range(9):
        comparison.add({}, {"boxes": a}, {"boxes": a})
    comparison.add({}, {"boxes": a}, {"boxes": a[:3]})
    found = comparison.result(10)
    assert found.sqnr_db == pytest.approx(10)
    assert found.notes == ("'boxes' has another shape than the original's in 1 of 10 batches: counted as wrong",)
    names = np.arange(4)
    assert compare(names, names[:2]).outputs[0].equal == 0
    assert compare(names[:0], names[:0]).outputs[0].equal == 1
    assert compare(names[:0], names[:1]).outputs[0].equal == 0


def test_what_is_no_tensor_is_not_compared() -> None:
    found = compare([{"cat": 0.5}], [{"cat": 0.5}])
    assert (found.outputs, math.isnan(found.sqnr_db), math.isnan(found.cosine)) == ((), True, True)
    assert found.notes == ("the output 'y' is no tensor: not compared",)


def test_large_values_do_not_overflow() -> None:
    a = np.full((2, 3, 2), 1e30, np.float32)
    assert compare(a, a * np.float32(1.1)).sqnr_db == pytest.approx(20, abs=0.01)
    half = np.full((2, 3, 2), 60_000, np.float16)
    assert compare(half, half / np.float16(2)).sqnr_db == pytest.approx(6.02, abs=0.01)
