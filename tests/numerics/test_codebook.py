"""Levels are the best there are, and codes chosen for outputs never lose more of them than the nearest."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxopt.numerics import codebook
from onnxopt.numerics.rounding import output_error

FINITE = st.floats(-100, 100, allow_nan=False, width=32)


def loss(x, w, levels) -> float:
    return float((w * np.square(x[:, None] - np.asarray(levels)[None]).min(axis=1)).sum())


def best_by_trial(x, w, levels) -> float:
    """Over all ways to cut the sorted values into runs."""
    order = np.argsort(x)
    x, w = x[order], w[order]
    found = np.inf
    for cuts in combinations(range(1, len(x)), levels - 1):
        runs = np.split(np.arange(len(x)), cuts)
        found = min(found, loss(x, w, [np.average(x[r], weights=w[r]) for r in runs]))
    return found


@given(arrays(np.float64, 9, elements=FINITE), arrays(np.float64, 9, elements=st.floats(0.01, 10)), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_levels_are_the_best_that_there_are(x, w, levels) -> None:
    found = codebook.kmeans(x, w, levels)
    assert len(found) <= levels
    assert (np.diff(found) >= 0).all()
    assert loss(x, w, found) <= best_by_trial(x, w, levels) * (1 + 1e-6) + 1e-6


def test_many_values_are_served_as_well_as_the_best_known_quantizer_serves_them() -> None:
    x = np.random.default_rng(0).standard_normal(200_000)
    error = loss(x[:20_000], np.ones(20_000), codebook.kmeans(x, np.ones_like(x), 16))
    assert error / 20_000 == pytest.approx(0.009497, rel=0.03)  # Max, 1960: 16 levels for a normal distribution


def test_few_different_values_are_kept_as_they_are() -> None:
    x = np.array([3.0, -1.0, 3.0, 0.5, -1.0])
    np.testing.assert_array_equal(codebook.kmeans(x, np.ones(5), 16), [-1.0, 0.5, 3.0])


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("form", ["binary", "ternary"])
def test_two_and_three_levels_lose_no_more_than_any_scale_would(form, per_channel) -> None:
    weight = np.random.default_rng(1).standard_normal((2, 3, 40))
    book = codebook.plain(weight, form, per_channel=per_channel)
    error = np.square(weight - book.values).sum()
    for factor in np.linspace(0.5, 1.6, 23):
        scaled = book.scale * factor
        near = book.levels[codebook.nearest(weight / scaled, book.levels)] * scaled
        assert error <= np.square(weight - near).sum() + 1e-9
    assert len(np.unique(book.scale)) == (6 if per_channel else 1)


def moments(rng, groups: int, inputs: int) -> np.ndarray:
    x = rng.standard_normal((groups, 4 * inputs, inputs)) @ rng.standard_normal((groups, inputs, inputs))
    return x.swapaxes(1, 2) @ x / (4 * inputs)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("form", [4, 16, 64, "ternary", "binary"])
def test_codes_for_outputs_lose_less_of_them(form, per_channel) -> None:
    rng = np.random.default_rng(2)
    weight, gram = rng.standard_normal((2, 12, 36)), moments(rng, 2, 36)
    near = codebook.plain(weight, form, per_channel=per_channel)
    found = codebook.for_outputs(weight, gram, near, form, per_channel=per_channel)
    plain, solved = (output_error(weight - b.values, gram).sum() for b in (near, found))
    assert solved < 0.6 * plain
    assert found.codes.max() < len(found.levels)
    assert (np.diff(found.levels) >= 0).all()
    if form == "ternary":
        assert set(np.unique(found.levels)) == {-1.0, 0.0, 1.0}
    if not per_channel:
        assert len(np.unique(found.scale)) == 1


def test_a_channel_of_zeros_stays_zero() -> None:
    rng = np.random.default_rng(3)
    weight, gram = rng.standard_normal((1, 4, 10)), moments(rng, 1, 10)
    weight[0, 2] = 0
    for form in (16, "ternary"):
        book = codebook.plain(weight, form)
        found = codebook.for_outputs(weight, gram, book, form)
        assert np.abs(found.values[0, 2]).max() < 0.05
        assert np.isfinite(found.values).all()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_parts_hold_every_channel_once_and_no_more_than_they_may(groups, outputs, size) -> None:
    found = codebook.parts(groups, outputs, size)
    count = np.zeros((groups, outputs), int)
    for part in found:
        count[part] += 1
        assert not size or 0 < count[part].size <= size
    assert (count == 1).all()
    assert len(found) == 1 if not size or size >= groups * outputs else len(found) > 1


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("groups", "outputs"), [(1, 16), (16, 1), (4, 4)])
def test_fewer_channels_to_a_book_lose_less(groups, outputs, per_channel) -> None:
    weight = np.random.default_rng(4).standard_normal((groups, outputs, 30))
    weight *= np.random.default_rng(5).uniform(0.1, 3, (groups, outputs, 1))

    def found(size: int) -> codebook.Shelf:
        return codebook.shelf(
            lambda part: codebook.plain(weight[part], 6, per_channel=per_channel), groups, outputs, size
        )

    one = codebook.plain(weight, 6, per_channel=per_channel)
    np.testing.assert_array_equal(found(0).values, one.values)
    np.testing.assert_array_equal(found(16).values, one.values)
    errors = [np.square(weight - found(size).values).sum() for size in (16, 8, 4, 2, 1)]
    assert (np.diff(errors) <= 1e-9).all()
    assert errors[-1] < 0.95 * errors[0]
    assert [len(found(size).levels) for size in (16, 8, 4, 2, 1)] == [1, 2, 4, 8, 16]


def test_books_of_few_levels_repeat_their_last() -> None:
    weight = np.array([[[1.0, 2.0, 1.0, 2.0], [1.0, 5.0, 7.0, 9.0]]])
    found = codebook.shelf(lambda part: codebook.plain(weight[part], 4, per_channel=False), 1, 2, 1)
    np.testing.assert_array_equal(found.levels, [[1, 2, 2, 2], [1, 5, 7, 9]])
    np.testing.assert_array_equal(found.values, weight)
