"""Low rank against numpy's own decomposition."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics import low_rank
from onnxopt.numerics.low_rank import factorize, rank_for_energy, rank_for_ratio, singular_values


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (1, 5), (5, 1), (8, 8)])
def test_factors_lose_exactly_the_energy_left_out(shape: tuple[int, int]) -> None:
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    s = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(singular_values(w), s, rtol=1e-6)
    for rank in range(1, min(shape) + 1):
        left, right = factorize(w, rank)
        assert left.shape == (shape[0], rank)
        assert right.shape == (rank, shape[1])
        assert np.square(w - left @ right).sum() == pytest.approx(np.square(s[rank:]).sum(), abs=1e-8)
        np.testing.assert_allclose(np.square(left).sum(0), np.square(right).sum(1))  # shared evenly


def test_what_has_low_rank_is_found_exactly() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 60))
    for rank in (5, 9):
        left, right = factorize(w, rank)
        np.testing.assert_allclose(left @ right, w, atol=1e-7)
    left, right = factorize(np.zeros((3, 4)), 2)
    assert not (left @ right).any()


def test_with_a_second_moment_the_outputs_are_what_is_kept() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 12)) * np.geomspace(1, 0.01, 12)
    w = rng.normal(size=(10, 12)) * np.geomspace(0.01, 1, 12)
    s = x.T @ x / len(x)
    plain, weighted = factorize(w, 4), factorize(w, 4, s)
    lost = [np.square(x @ (w - a @ b).T).sum() / len(x) for a, b in (plain, weighted)]
    assert lost[1] == pytest.approx(np.square(singular_values(w, s)[4:]).sum(), rel=1e-6)
    assert lost[1] < 0.7 * lost[0]


def test_inputs_without_any_energy_do_no_harm() -> None:
    w = np.random.default_rng(0).normal(size=(4, 6))
    for s in (np.diag([1.0, 2, 0, 0, 0, 1]), np.zeros((6, 6))):
        left, right = factorize(w, 3, s)
        assert np.isfinite(left @ right).all()
        assert np.abs((w - left @ right) @ np.sqrt(s)).max() < 1e-6


@given(m=st.integers(1, 500), n=st.integers(1, 500), ratio=st.floats(0.001, 1))
def test_rank_for_ratio_is_the_largest_that_fits(m: int, n: int, ratio: float) -> None:
    rank = rank_for_ratio(m, n, ratio)
    assert rank == 1 or rank * (m + n) <= ratio * m * n * (1 + 1e-12)
    assert (rank + 1) * (m + n) > ratio * m * n * (1 - 1e-12)


@pytest.mark.parametrize(("energy", "rank"), [(0.1, 1), (0.5, 1), (0.79, 2), (0.94, 3), (1.0, 4), (0.0, 1)])
def test_rank_for_energy(energy: float, rank: int) -> None:
    assert rank_for_energy(np.sqrt([0.5, 0.3, 0.15, 0.05]), energy) == rank


def test_rank_for_energy_of_nothing() -> None:
    assert rank_for_energy(np.zeros(3), 0.9) == 1
    assert rank_for_energy(np.zeros(0), 0.9) == 1
    assert rank_for_energy([2.0, 0.0, 0.0], 1.0) == 1


@settings(deadline=None, max_examples=15)
@given(rank=st.integers(1, 20), seed=st.integers(0, 99), tall=st.booleans(), aware=st.booleans())
def test_random_starts_find_what_lapack_finds(rank: int, seed: int, tall: bool, aware: bool) -> None:
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(120, 90) if tall else (90, 120)) @ np.diag(np.geomspace(1, 0.01, 90 if tall else 120))
    x = rng.normal(size=(300, w.shape[1]))
    s = x.T @ x / len(x) if aware else None

    def lost() -> float:
        left, right = factorize(w, rank, s)
        d = w - left @ right
        return float(np.vdot(d, d if s is None else d @ s))

    best = lost()
    with patch.object(low_rank, "_LARGE", 1):
        assert best * (1 - 1e-9) <= lost() <= best * 1.01


def test_a_moment_that_rounding_made_indefinite_does_no_harm() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 40)) * 1e3
    w = rng.normal(size=(60, 40))
    left, right = factorize(w, 5, x.T @ x - 1e-3 * np.eye(40))
    assert np.abs(x @ (w - left @ right).T).max() < 1e-3 * np.abs(x @ w.T).max()
