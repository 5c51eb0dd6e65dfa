"""The rank that stands out of noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics import variational


def spectrum(rows: int, columns: int, rank: int, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    return np.linalg.svd(signal + noise * rng.standard_normal((rows, columns)), compute_uv=False)


@settings(deadline=None, max_examples=30)
@given(rank=st.integers(0, 12), wide=st.booleans(), noise=st.floats(0.05, 0.6), seed=st.integers(0, 9))
def test_the_rank_under_noise_is_found(rank: int, wide: bool, noise: float, seed: int) -> None:
    shape = (60, 100) if wide else (100, 60)
    assert variational.rank(spectrum(*shape, rank, noise, seed), *shape) == rank


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_scale_is_of_no_account(scale: float) -> None:
    assert variational.rank(scale * spectrum(50, 80, 7, 0.3), 50, 80) == 7


def test_without_noise_it_is_the_rank() -> None:
    assert variational.rank(np.append(np.geomspace(3, 1, 5), np.zeros(45)), 50, 80) == 5
    assert variational.rank(np.zeros(4), 4, 9) == 0
    assert variational.rank(np.zeros(0), 0, 9) == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (2, 2), (3, 2), (3, 3)])
def test_tiny_matrices_have_some_rank(shape: tuple[int, int]) -> None:
    found = variational.rank(np.linalg.svd(np.random.default_rng(0).standard_normal(shape))[1], *shape)
    assert 0 <= found <= min(shape)
