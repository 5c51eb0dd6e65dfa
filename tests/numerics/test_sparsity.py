"""Zeros: as many as asked for, where asked for, and with the least error where that can be counted out."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics.rounding import output_error
from onnxopt.numerics.sparsity import Runs, by_splitting, by_surgery, settle, smallest

CHOOSE = [by_splitting, by_surgery]
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**31))


def problem(groups, outputs, inputs, seed=0, rows=None):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, rows or 2 * inputs + 5, inputs)) @ rng.standard_normal((groups, inputs, inputs))
    gram = x.swapaxes(1, 2) @ x / x.shape[1]
    return rng.standard_normal((groups, outputs, inputs)), gram


def exact(weight, gram, mask):
    """Row by row, by the normal equations of the weights that are left."""
    found = np.zeros_like(weight)
    for g, o in np.ndindex(*weight.shape[:2]):
        left = ~mask[g, o]
        found[g, o, left] = np.linalg.solve(gram[g][np.ix_(left, left)], gram[g][left] @ weight[g, o])
    return found


def least(weight, gram, mask):
    return float(output_error(weight - exact(weight, gram, mask), gram).sum())


@pytest.mark.parametrize("choose", CHOOSE)
@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, share=st.floats(0, 1))
def test_exactly_so_many_go(choose, sizes, share):
    weight, gram = problem(*sizes)
    goes = round(share * weight.size)
    mask = choose(weight, gram, goes)
    assert mask.shape == weight.shape
    assert mask.sum() == goes
    found = settle(weight, gram, mask)
    assert (found[mask] == 0).all()
    merely = output_error(np.where(mask, weight, 0.0), gram)
    assert (output_error(weight - found, gram) <= merely * (1 + 1e-6) + 1e-12).all()


@pytest.mark.parametrize("choose", CHOOSE)
@pytest.mark.parametrize("runs", [Runs(2, 4), Runs(1, 3), Runs(7, 8), Runs(1, 100)])
def test_every_run_keeps_so_many(choose, runs):
    weight, gram = problem(2, 3, 2 * runs.length)
    mask = choose(weight, gram, runs)
    assert ((~mask).reshape(-1, runs.length).sum(axis=1) == runs.kept).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.floats(0, 1))
def test_the_smallest_go_and_of_equals_the_first(score, share):
    values, goes = np.array(score, float), round(share * len(score))
    mask = smallest(values, goes)
    assert np.flatnonzero(mask).tolist() == sorted(np.argsort(values, kind="stable")[:goes].tolist())


def test_what_is_left_is_solved_for():
    weight, gram = problem(2, 4, 30)
    mask = smallest(np.abs(weight), weight.size // 2)
    np.testing.assert_allclose(settle(weight, gram, mask), exact(weight, gram, mask), atol=1e-3)
    np.testing.assert_array_equal(settle(weight, gram, np.zeros_like(mask)), weight)
    assert not settle(weight, gram, np.ones_like(mask)).any()


@pytest.mark.parametrize("choose", CHOOSE)
def test_inputs_that_say_nothing_of_each_other_lose_what_has_least_power(choose):
    weight, _ = problem(1, 5, 40)
    power = np.random.default_rng(1).uniform(0.1, 2.0, 40)
    row = weight[:, :1]
    mask = choose(row, np.diag(power)[None], 16)
    assert (mask == smallest(np.square(row) * power, 16)).all()
    assert (settle(row, np.diag(power)[None], mask)[~mask] == row[~mask]).all()


def test_the_best_of_all_zeros_is_found_in_most_small_problems():
    found, worst = dict.fromkeys(CHOOSE, 0), 0.0
    for seed in range(25):
        weight, gram = problem(1, 1, 6, seed)
        masks = [np.isin(np.arange(6), picked)[None, None] for picked in itertools.combinations(range(6), 3)]
        best = min(least(weight, gram, mask) for mask in masks)
        for choose in CHOOSE:
            found[choose] += least(weight, gram, choose(weight, gram, 3)) <= best * (1 + 1e-9)
        worst = max(worst, best)
    assert found[by_splitting] >= 18
    assert found[by_surgery] >= 6


def test_one_zero_is_that_of_optimal_brain_surgery():
    """The weight whose square over the diagonal of the inverse is least goes, and the rest moves along the inverse."""
    hits = 0
    for seed in range(10):
        weight, gram = problem(1, 1, 8, seed)
        inverse, w = np.linalg.inv(gram[0]), weight[0, 0]
        gone = int(np.argmin(w**2 / np.diag(inverse)))
        mask = by_splitting(weight, gram, 1)
        hits += mask[0, 0, gone]
        at = int(np.flatnonzero(mask)[0])
        expected = w - w[at] / inverse[at, at] * inverse[at]
        np.testing.assert_allclose(settle(weight, gram, mask)[0, 0], expected, atol=2e-3)
    assert hits >= 9


@pytest.mark.parametrize("goes", [64 * 60, Runs(2, 4)])
def test_correlated_inputs_gain_decibels(goes):
    weight, gram = problem(1, 64, 120, rows=400)
    merely = output_error(np.where(smallest(np.abs(weight), goes), weight, 0.0), gram).sum()
    errors = [merely]
    for choose in (by_surgery, by_splitting):
        found = settle(weight, gram, choose(weight, gram, goes))
        errors.append(output_error(weight - found, gram).sum())
    gains = 10 * np.log10(np.array(errors[:-1]) / errors[1:])
    assert gains[0] > 2
    assert gains[1] > 1


@pytest.mark.parametrize("choose", CHOOSE)
@pytest.mark.parametrize("gram", [np.zeros((1, 3, 3)), np.diag([1.0, 0.0, 0.0])[None], np.full((1, 3, 3), 2.0)])
def test_moments_without_a_root_are_no_obstacle(choose, gram):
    weight = np.array([[[0.3, 1.6, -2.4]]])
    mask = choose(weight, gram, 1)
    assert mask.sum() == 1
    assert np.isfinite(settle(weight, gram, mask)).all()


@pytest.mark.parametrize("text", ["", "4", "4:2", "4:4", "0:4", "2:4:8", "-1:4", "a:b", "2:4000"])
def test_patterns_that_are_none(text):
    with pytest.raises(ValueError, match="write two numbers, the smaller first, such as 2:4"):
        Runs.parse(text)


def test_a_pattern_is_two_numbers():
    assert Runs.parse("2:4") == Runs(2, 4)
