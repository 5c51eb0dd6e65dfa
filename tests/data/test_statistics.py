"""Summaries add up exactly, whatever the cut, and survive every kind of number."""

import functools
import operator

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.data.statistics import HALF, Histogram, Statistics


def same(a: Statistics, b: Statistics) -> bool:
    plain = all(getattr(a, f) == getattr(b, f) for f in ("count", "minimum", "maximum", "nan_count", "inf_count"))
    x, y = a.histogram, b.histogram
    if x is None or y is None:
        return plain and x is y
    same_bins = (x.exponent, x.zeros, x.sampled) == (y.exponent, y.zeros, y.sampled)
    return plain and same_bins and np.array_equal(x.counts, y.counts)


any_float = st.floats(width=32, allow_subnormal=True) | st.sampled_from(
    [0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0]
)
arrays = hnp.arrays(np.float32, st.integers(0, 30), elements=any_float)


@given(x=arrays, cuts=st.lists(st.integers(0, 30), max_size=5), seed=st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_parts_in_any_order_give_the_whole(x: np.ndarray, cuts: list[int], seed: int) -> None:
    parts = [Statistics.of(p, limit=4096) for p in np.split(x, sorted(min(c, len(x)) for c in cuts))]
    shuffled = [parts[i] for i in np.random.default_rng(seed).permutation(len(parts))]
    whole = Statistics.of(x, limit=4096)
    assert same(functools.reduce(operator.add, shuffled), whole)
    assert same(functools.reduce(lambda a, b: b + a, parts), whole)


@given(x=hnp.arrays(np.float64, st.integers(0, 20)))
def test_float64_beyond_float32_still_counts_every_value(x: np.ndarray) -> None:
    s = Statistics.of(x, limit=4096)
    assert s.histogram is not None
    assert s.histogram.counts.sum() == s.count - s.nan_count - s.inf_count


@given(x=arrays)
def test_merging_with_nothing_changes_nothing(x: np.ndarray) -> None:
    s, nothing = Statistics.of(x, limit=4096), Statistics(histogram=Histogram())
    assert same(s + nothing, s)
    assert same(nothing + s, s)


def test_extremes_leave_out_nan_and_inf_and_count_them() -> None:
    x = np.array([np.nan, -np.inf, 2.0, -3.0, np.inf, np.nan], np.float32)
    s = Statistics.of(x, limit=4096)
    assert (s.count, s.minimum, s.maximum, s.nan_count, s.inf_count) == (6, -3.0, 2.0, 2, 2)
    assert s.histogram is not None
    assert s.histogram.counts.sum() == 2


@pytest.mark.parametrize("x", [np.zeros((0, 3), np.float32), np.array([np.nan, np.inf], np.float32)])
def test_no_finite_value_means_no_range(x: np.ndarray) -> None:
    s = Statistics.of(x, limit=4096)
    assert s.exact is None
    assert s.histogram is not None
    assert s.histogram.counts.sum() == 0


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float16, np.float64, "bfloat16"])
def test_every_numeric_type(dtype: object) -> None:
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    s = Statistics.of(np.array([[0, 1, 1]]).astype(dtype), limit=4096)
    assert s.exact == (0.0, 1.0)
    assert s.histogram is not None
    assert s.histogram.zeros == 1
    assert s.histogram.nonzero.sum() == 2


def test_bins_hold_the_values_that_their_edges_say() -> None:
    x = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    h = Statistics.of(x, limit=5000).histogram
    assert h is not None
    expected, _ = np.histogram(x.astype(np.float64), h.edges)
    assert np.array_equal(h.counts, expected)
    assert HALF // 2 <= np.ceil(np.abs(x).max() / 2.0**h.exponent) <= HALF


def test_large_samples_are_sampled_alike_in_any_batch() -> None:
    x = np.random.default_rng(0).normal(size=(6, 5, 40, 40)).astype(np.float32)
    together = Statistics.of(x, samples=6, limit=1000)
    apart = functools.reduce(operator.add, (Statistics.of(r[None], limit=1000) for r in x))
    assert same(together, apart)
    h = together.histogram
    assert h is not None
    assert h.sampled
    assert 5000 < h.counts.sum() <= 6000
    assert together.exact == (x.min(), x.max())


def test_sampling_reaches_every_channel_and_column() -> None:
    x = np.broadcast_to(np.arange(1, 65, dtype=np.float32), (1, 64, 64)).copy()
    for view in (x, x.swapaxes(1, 2).copy()):
        h = Statistics.of(view, limit=256).histogram
        assert h is not None
        assert np.count_nonzero(h.counts) == 64


def test_without_a_histogram_on_one_side_there_is_none_of_both() -> None:
    x = np.ones(3, np.float32)
    assert (Statistics.of(x, limit=4096) + Statistics.of(x)).histogram is None
