"""What it costs to do without some inputs, against solving from scratch."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.numerics.elimination import Elimination
from onnxopt.numerics.least_squares import Moments


def loss(weight: np.ndarray, covariance: np.ndarray, kept: np.ndarray) -> float:
    """The mean squared error of the best map from the kept inputs alone to what all of them give."""
    target = weight @ covariance
    solved = np.linalg.solve(covariance[np.ix_(kept, kept)], target[:, kept].T)
    return float((weight @ covariance @ weight.T).trace() - (target[:, kept] @ solved).trace())


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 12)) @ rng.standard_normal((12, 12))
    return rng.standard_normal((5, 12)), np.cov(x.T, bias=True)


def test_costs_are_the_rise_of_the_error(problem: tuple[np.ndarray, np.ndarray]) -> None:
    weight, covariance = problem
    state = Elimination(weight, covariance, ridge=0.0)
    groups = [np.arange(i, i + 3) for i in range(0, 12, 3)]
    expected = [loss(weight, covariance, np.setdiff1d(np.arange(12), g)) for g in groups]
    np.testing.assert_allclose(state.costs(groups), expected, rtol=1e-8)
    assert state.power == pytest.approx(float(np.trace(weight @ covariance @ weight.T)))


def test_costs_after_removals_add_up(problem: tuple[np.ndarray, np.ndarray]) -> None:
    weight, covariance = problem
    state = Elimination(weight, covariance, ridge=0.0)
    spent, gone = 0.0, []
    for group in (np.array([4, 5]), np.array([0]), np.array([7, 9, 11])):
        spent += float(state.costs([group])[0])
        state.remove(group)
        gone += group.tolist()
        assert spent == pytest.approx(loss(weight, covariance, np.setdiff1d(np.arange(12), gone)), rel=1e-7)


def test_groups_of_different_and_no_size(problem: tuple[np.ndarray, np.ndarray]) -> None:
    weight, covariance = problem
    state = Elimination(weight, covariance)
    nothing = np.zeros(0, np.intp)
    costs = state.costs([np.array([1]), nothing, np.array([2, 3])])
    assert costs[1] == 0
    assert (costs[[0, 2]] > 0).all()
    state.remove(nothing)
    np.testing.assert_array_equal(state.costs([np.array([1])]), costs[:1])


def test_a_ridge_makes_dead_inputs_free() -> None:
    state = Elimination(np.ones((2, 3)), np.diag([1.0, 0.0, 0.0]))
    assert state.costs([np.array([1]), np.array([2])]).max() < 0.01
    assert Elimination(np.ones((2, 3)), np.zeros((3, 3))).power == 0


def test_covariance_of_moments() -> None:
    x = np.random.default_rng(1).standard_normal((50, 4)) + 3
    np.testing.assert_allclose(Moments.of(x, np.zeros((50, 0))).covariance, np.cov(x.T, bias=True), atol=1e-12)


def test_inputs_that_hardly_vary_are_no_reason_to_fail() -> None:
    """Their covariance is what rounding left over, not positive definite: the floor makes it so."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((6, 6)) * 1e-18
    part = Elimination(rng.standard_normal((3, 6)), noise + noise.T, floor=1e-12)
    assert np.isfinite(part.costs([np.array([i]) for i in range(6)])).all()
