"""Ranges against brute force: the quantizer itself, run on the values."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics.qparams import INT8, UINT8, QuantType, dequantize, qparams_asymmetric, quantize
from onnxopt.numerics.ranges import METHODS, Method, Range, choose_range, percentile

BINS = 4096


def histogram(x: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    width = np.abs(x).max() * 1.000001 / bins
    edges = np.arange(-bins, bins + 1) * width
    return np.histogram(x[x != 0], edges)[0], edges


def extremes(x: np.ndarray) -> Range:
    return Range(float(x.min()), float(x.max())).with_zero()


def error(x: np.ndarray, found: Range, qtype: QuantType = UINT8) -> float:
    params = qparams_asymmetric(found.lo, found.hi, qtype)
    return float(np.square(dequantize(quantize(x, params, qtype), params).astype(np.float64) - x).mean())


def draw(name: str, n: int = 100_000) -> np.ndarray:
    rng = np.random.default_rng(1)
    normal = rng.normal(size=n)
    made = {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "laplace": rng.laplace(size=n),
        "heavy": rng.standard_t(3, size=n),
        "heavy relu": np.maximum(rng.standard_t(3, size=n), 0),
        "silu": 3 * normal / (1 + np.exp(-3 * normal)),
        "relu6": np.clip(4 * normal, 0, 6),
        "uniform": rng.random(n),
        "negative": -rng.gamma(2.0, size=n),
        "outliers": np.append(normal, [60.0, -25.0]),
        "far from zero": 100 + normal,
    }
    return made[name].astype(np.float32)


NAMES = [
    "normal",
    "relu",
    "laplace",
    "heavy",
    "heavy relu",
    "silu",
    "relu6",
    "uniform",
    "negative",
    "outliers",
    "far from zero",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [8, 4])
def test_mse_is_within_two_percent_of_brute_force(name: str, bits: int) -> None:
    x, qtype = draw(name), QuantType(bits, signed=False)
    exact = extremes(x)
    found = choose_range("mse", exact, *histogram(x), levels=qtype.levels)
    lows = exact.lo * np.geomspace(1, 0.02, 24) if exact.lo < 0 else [exact.lo]
    highs = exact.hi * np.geomspace(1, 0.02, 24) if exact.hi > 0 else [exact.hi]
    few = x[:: max(1, len(x) // 4000)] if name not in ("heavy", "heavy relu", "outliers") else x[:: len(x) // 10_000]
    coarse = sorted(itertools.product(lows, highs), key=lambda r: error(few, Range(*r), qtype))[:8]
    best = min(error(x, Range(float(lo), float(hi)), qtype) for lo, hi in [*coarse, exact])
    assert error(x, found, qtype) <= 1.02 * best


@pytest.mark.parametrize("name", NAMES)
def test_mse_is_never_worse_than_min_max(name: str) -> None:
    x = draw(name)
    found = choose_range("mse", extremes(x), *histogram(x))
    assert error(x, found) <= error(x, extremes(x)) * 1.001


def divergence(x: np.ndarray, found: Range, levels: int = 256) -> float:
    """Straight from the definition, one bin at a time."""
    counts, edges = histogram(x)
    width = edges[1] - edges[0]
    first = max(0, int(np.floor((found.lo - edges[0]) / width)))
    last = min(len(counts), int(np.ceil((found.hi - edges[0]) / width)))
    inside = counts[first:last].astype(float)
    p = inside.copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    q = np.zeros_like(p)
    chance = 0.0
    for k in range(levels):
        cell = slice(k * len(p) // levels, (k + 1) * len(p) // levels)
        filled = p[cell] > 0
        if filled.any():
            chance += (filled.sum() - 1) / 2
            q[cell][filled] = max(inside[cell].sum(), 0.5) / filled.sum()
    p, q = p / p.sum(), q / inside.sum()
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum() - chance / counts.sum())


@pytest.mark.parametrize("name", ["normal", "relu", "laplace", "heavy", "heavy relu", "outliers", "negative"])
def test_entropy_is_a_minimum_of_the_divergence_as_defined(name: str) -> None:
    x = draw(name)
    exact = extremes(x)
    found = choose_range("entropy", exact, *histogram(x))
    here = divergence(x, found)
    assert here <= divergence(x, exact) + 1e-12
    for factor in np.linspace(0.5, 1.0, 30):
        if exact.hi > 0 and exact.hi * factor > exact.hi / 4:
            assert here <= divergence(x, Range(found.lo, exact.hi * factor)) + 2e-4
        if exact.lo < 0:
            assert here <= divergence(x, Range(exact.lo * factor, found.hi)) + 2e-4


def test_entropy_clips_a_heavy_tail_on_its_own_side_only() -> None:
    x = np.concatenate((np.clip(draw("normal"), -3, 3), [50.0])).astype(np.float32)
    found = choose_range("entropy", extremes(x), *histogram(x))
    assert found.hi < 25
    assert -3 <= found.lo < -2.5


def test_zeros_do_not_vote() -> None:
    x = draw("heavy relu")
    more = np.concatenate((x, np.zeros(10 * len(x), np.float32)))
    for method in METHODS:
        assert choose_range(method, extremes(x), *histogram(x)) == choose_range(
            method, extremes(more), *histogram(more)
        )


def test_percentile_leaves_its_share_outside_each_end() -> None:
    x = draw("normal")
    lo, hi = percentile(extremes(x), *histogram(x), percent=99.0)
    assert np.mean(x < lo) == pytest.approx(0.01, rel=0.05)
    assert np.mean(x > hi) == pytest.approx(0.01, rel=0.05)


@given(
    values=st.lists(
        st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda v: v == 0 or abs(v) > 1e-30), min_size=1, max_size=30
    ),
    method=st.sampled_from(METHODS),
)
@settings(max_examples=200, deadline=None)
def test_any_range_lies_within_the_extremes_and_can_be_quantized(values: list[float], method: Method) -> None:
    x = np.array(values, np.float32)
    if not x.any():
        return
    exact = extremes(x)
    found = choose_range(method, exact, *histogram(x))
    widest = exact.with_zero()
    assert widest.lo <= found.lo <= 0 <= found.hi <= widest.hi
    assert qparams_asymmetric(found.lo, found.hi, INT8).scale > 0


def test_nothing_but_zeros_has_the_range_zero() -> None:
    for method in METHODS:
        assert choose_range(method, Range(0, 0), np.zeros(10, np.int64), np.arange(-5.0, 6.0)) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_choosing_is_quick(method: Method) -> None:
    counts, edges = histogram(draw("heavy"))
    exact = Range(edges[0], edges[-1])
    spent = []
    for _ in range(5):
        began = time.perf_counter()
        choose_range(method, exact, counts, edges)
        spent.append(time.perf_counter() - began)
    assert min(spent) < 0.02  # about 0.002 on a quiet machine
