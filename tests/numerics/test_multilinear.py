"""Products of small tensors against einsum by hand, and against brute force where the best is known."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics.multilinear import (
    CP,
    SPATIAL,
    TUCKER,
    compose,
    cp,
    error,
    input_spectrum,
    refine,
    spatial,
    summed,
    tucker,
)

SHAPE = (7, 5, 3, 2)


def weight(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def moment(size: int = 30, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((4 * size, size)) * np.geomspace(1, 0.03, size)
    return x.T @ x / len(x)


def lost(w: np.ndarray, made: np.ndarray, s: np.ndarray) -> float:
    """Over samples x with these moments: the mean of |(w - made) x|^2, output by output."""
    values, vectors = np.linalg.eigh(s)
    x = (vectors * np.sqrt(np.maximum(values, 0))).T
    return float(np.square(x @ (w - made).reshape(len(w), -1).T).sum())


@pytest.mark.parametrize("aware", [False, True])
def test_at_full_rank_nothing_is_lost(aware: bool) -> None:
    w, s = weight(), moment() if aware else None
    found = compose(TUCKER, tucker(w, (7, 5), s)), compose(SPATIAL, spatial(w, 14, s))
    for made in found:
        np.testing.assert_allclose(made, w, atol=1e-6 if aware else 1e-12)


def test_a_canonical_product_is_found() -> None:
    rng = np.random.default_rng(3)
    parts = rng.standard_normal((8, 3)), rng.standard_normal((3, 3, 3)), rng.standard_normal((3, 6))
    w = np.einsum("or,rij,rc->ocij", *parts)
    assert error(w, compose(CP, cp(w, 3, sweeps=100))) < 1e-4 * error(w, np.zeros_like(w))


def test_the_chains_are_what_they_say() -> None:
    w = weight()
    a, g, b = tucker(w, (3, 2))
    assert [f.shape for f in (a, g, b)] == [(7, 3), (3, 2, 3, 2), (2, 5)]
    by_hand = sum(np.multiply.outer(a[:, p], np.multiply.outer(b[q], g[p, q])) for p in range(3) for q in range(2))
    np.testing.assert_allclose(compose(TUCKER, [a, g, b]), by_hand)
    h, v = spatial(w, 4)
    assert [f.shape for f in (h, v)] == [(7, 4, 2), (4, 5, 3)]
    by_hand = sum(np.einsum("oj,ci->ocij", h[:, r], v[r]) for r in range(4))
    np.testing.assert_allclose(compose(SPATIAL, [h, v]), by_hand)
    u, k, i = cp(w, 9)
    assert [f.shape for f in (u, k, i)] == [(7, 9), (9, 3, 2), (9, 5)]
    by_hand = sum(np.einsum("o,ij,c->ocij", u[:, r], k[r], i[r]) for r in range(9))
    np.testing.assert_allclose(compose(CP, [u, k, i]), by_hand)


@pytest.mark.parametrize("rank", range(1, 10))
def test_rows_and_columns_are_the_best_there_are(rank: int) -> None:
    w = weight()
    s = np.linalg.svd(w.transpose(0, 3, 1, 2).reshape(14, 15), compute_uv=False)
    assert error(w, compose(SPATIAL, spatial(w, rank))) == pytest.approx(np.square(s[rank:]).sum(), rel=1e-6)


@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (5, 2), (7, 3), (4, 5)])
def test_tucker_is_no_worse_than_alternating_projections(ranks: tuple[int, int]) -> None:
    """Higher-order orthogonal iteration, written out."""
    w = weight(5, (7, 5, 3, 3))
    v = np.linalg.svd(w.transpose(1, 0, 2, 3).reshape(5, -1))[0][:, : ranks[1]]
    for _ in range(50):
        u = np.linalg.svd(np.einsum("ocij,cb->obij", w, v).reshape(7, -1))[0][:, : ranks[0]]
        v = np.linalg.svd(np.einsum("ocij,oa->caij", w, u).reshape(5, -1))[0][:, : ranks[1]]
    core = np.einsum("ocij,oa,cb->abij", w, u, v)
    by_hand = error(w, np.einsum("oa,abij,cb->ocij", u, core, v))
    assert error(w, compose(TUCKER, tucker(w, ranks))) <= by_hand * 1.02 + 1e-9


def test_it_is_what_tensorly_finds() -> None:
    tensorly = pytest.importorskip("tensorly")
    decomposition = pytest.importorskip("tensorly.decomposition")
    w = weight(2, (12, 10, 3, 3))
    (core, (u, v)), _ = decomposition.partial_tucker(w, rank=[5, 4], modes=[0, 1], n_iter_max=100)
    theirs = error(w, np.einsum("oa,abij,cb->ocij", u, core, v))
    assert error(w, compose(TUCKER, tucker(w, (5, 4)))) == pytest.approx(theirs, rel=0.02)
    train = decomposition.tensor_train(w.transpose(0, 3, 1, 2).reshape(36, 30), rank=[1, 9, 1])
    flat = tensorly.tt_to_tensor(train).reshape(12, 3, 10, 3)
    theirs = error(w, flat.transpose(0, 2, 3, 1))
    assert error(w, compose(SPATIAL, spatial(w, 9))) == pytest.approx(theirs, rel=1e-6)
    parallel = decomposition.parafac(w.reshape(12, 10, 9), 8, n_iter_max=200, random_state=0)
    theirs = error(w, tensorly.cp_to_tensor(parallel).reshape(w.shape))
    assert error(w, compose(CP, cp(w, 8, sweeps=40))) <= 1.02 * theirs


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 99), aware=st.booleans(), form=st.sampled_from([SPATIAL, TUCKER, CP]))
def test_no_sweep_ever_loses(seed: int, aware: bool, form: str) -> None:
    w, s = weight(seed), moment(30, seed) if aware else None
    factors = {SPATIAL: lambda: spatial(w, 3), TUCKER: lambda: tucker(w, (3, 2)), CP: lambda: cp(w, 4)}[form]()
    errors = [error(w, compose(form, refine(form, factors, w, s, sweeps)), s) for sweeps in range(4)]
    assert all(late <= early * (1 + 1e-9) for early, late in pairwise(errors))


def test_what_the_outputs_lose_is_less_with_moments() -> None:
    w, s = weight(1), moment()
    for form, plain, aware in (
        (SPATIAL, spatial(w, 4), spatial(w, 4, s)),
        (TUCKER, tucker(w, (4, 3)), tucker(w, (4, 3), s)),
        (CP, cp(w, 6), cp(w, 6, s)),
    ):
        blind, seeing = (error(w, compose(form, f), s) for f in (plain, aware))
        assert blind == pytest.approx(lost(w, compose(form, plain), s))
        assert seeing < 0.6 * blind


def test_moments_summed_over_an_axis() -> None:
    x = np.random.default_rng(0).standard_normal((50, 5, 3, 2))
    s = x.reshape(50, -1).T @ x.reshape(50, -1)
    by_hand = sum(x[..., j].reshape(50, -1).T @ x[..., j].reshape(50, -1) for j in range(2)) / 2
    np.testing.assert_allclose(summed(s, (5, 3, 2), 2), by_hand)


def test_the_spectrum_of_the_inputs() -> None:
    w = weight()
    s = np.linalg.svd(w.transpose(1, 0, 2, 3).reshape(5, -1), compute_uv=False)
    np.testing.assert_allclose(input_spectrum(w, None), np.square(s), rtol=1e-6)
    assert len(input_spectrum(weight(0, (1, 9, 1, 2)), None)) == 9
