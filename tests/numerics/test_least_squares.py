"""Moments gathered in parts give what the rows themselves give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics.least_squares import Affine, Moments, fit


def problem(
    n: int = 400, inputs: int = 7, targets: int = 3, noise: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, inputs)) @ rng.normal(size=(inputs, inputs)) + 3).astype(np.float32)
    t = x @ rng.normal(size=(inputs, targets)) - 2 + noise * rng.normal(size=(n, targets))
    return x, t.astype(np.float32)


@given(n=st.integers(20, 80), inputs=st.integers(1, 9), targets=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_equal_to_the_direct_solution(n: int, inputs: int, targets: int, seed: int) -> None:
    x, t = problem(n, inputs, targets, seed=seed)
    z = np.column_stack((x, np.ones(n))).astype(np.float64)
    direct = np.linalg.lstsq(z, t.astype(np.float64), rcond=None)[0]
    moments = Moments.of(x, t)
    found = moments.solve(ridge=0)
    np.testing.assert_allclose(z[:, :-1] @ found.weight.T + found.bias, z @ direct, atol=1e-5)
    assert moments.error(found) == pytest.approx(np.square(z @ direct - t).sum(), rel=1e-4, abs=1e-6)


def test_parts_add_up() -> None:
    x, t = problem()
    whole, summed, streamed = Moments.of(x, t), Moments.empty(7, 3), Moments.empty(7, 3)
    for rows in np.array_split(np.arange(len(x)), 9):
        summed = summed + Moments.of(x[rows], t[rows])
        streamed.add(x[rows], t[rows])
    assert whole.count == summed.count == streamed.count == 400
    for part in (summed, streamed):
        np.testing.assert_allclose(part.gram, whole.gram, rtol=1e-12)
        np.testing.assert_allclose(part.solve().weight, whole.solve().weight, rtol=1e-8)


def test_ridge_is_the_penalised_solution_with_a_free_bias() -> None:
    x, t = problem()
    ridge = 0.3
    found = Moments.of(x, t).solve(ridge)
    x64, t64 = x - x.mean(0, dtype=np.float64), t - t.mean(0, dtype=np.float64)
    penalty = ridge * np.trace(x64.T @ x64) / 7
    np.testing.assert_allclose(
        found.weight.T, np.linalg.solve(x64.T @ x64 + penalty * np.eye(7), x64.T @ t64), rtol=1e-8
    )
    np.testing.assert_allclose(found.bias, t.mean(0, dtype=np.float64) - found.weight @ x.mean(0, dtype=np.float64))


def test_ridge_does_not_depend_on_the_scale_or_the_number_of_rows() -> None:
    x, t = problem()
    once, twice = Moments.of(x, t), Moments.of(x, t) + Moments.of(x, t)
    np.testing.assert_allclose(once.solve(0.1).weight, twice.solve(0.1).weight, rtol=1e-9)
    np.testing.assert_allclose(once.solve(0.1).weight, Moments.of(8 * x, t).solve(0.1).weight * 8, rtol=1e-6)


def test_kept_inputs_are_as_if_gathered_alone() -> None:
    x, t = problem()
    kept, alone = Moments.of(x, t).keep([4, 0, 5]), Moments.of(x[:, [4, 0, 5]], t)
    np.testing.assert_allclose(kept.gram, alone.gram, rtol=1e-12)
    np.testing.assert_allclose(kept.cross, alone.cross, rtol=1e-12)
    np.testing.assert_allclose(kept.solve().weight, alone.solve().weight, rtol=1e-9)


@pytest.mark.parametrize("kind", ["duplicates", "constant", "few rows", "all zero"])
def test_inputs_that_depend_on_each_other_are_solved_too(kind: str) -> None:
    x, t = problem(n=5 if kind == "few rows" else 100)
    if kind == "duplicates":
        x[:, 3] = x[:, 2]
    if kind == "constant":
        x[:, 3] = 4
    if kind == "all zero":
        x[:] = 0
    moments = Moments.of(x, t)
    for ridge in (0.0, 1e-4):
        found = moments.solve(ridge)
        assert np.isfinite(found.weight).all()
        assert moments.error(found) <= moments.error(Affine(np.zeros((3, 7)), t.mean(0, dtype=np.float64))) * (1 + 1e-6)
    assert np.abs(moments.solve(0.0).weight).max() < 1e3


def test_no_rows_at_all_give_zeros() -> None:
    found = Moments.empty(4, 2).solve()
    assert not found.weight.any()
    assert not found.bias.any()


def test_the_ridge_is_chosen_on_rows_held_back() -> None:
    x, t = problem(n=10, noise=3.0)
    held = Moments.of(*problem(n=1000, noise=3.0, seed=0))
    best, ridge = fit(Moments.of(x, t), held)
    assert held.error(best) == min(held.error(Moments.of(x, t).solve(r)) for r in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1))
    assert ridge > 1e-6
