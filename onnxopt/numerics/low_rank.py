"""Low rank: w (m, n) as ``left @ right`` with left (m, r) and right (r, n), by the singular value decomposition.

The truncated decomposition is the best of its rank (Eckart and Young, 1936). With ``second_moment`` S = E[x x^T] of the
inputs it minimises E|(w - left right) x|^2 instead of |w - left right|^2: decompose w L with L L^T = S, then undo L.

Singular vectors come from the smaller Gram matrix, several times faster than from w; what that loses lies under 1e-8
of the largest singular value, beyond what float32 weights hold. Of large matrices few vectors are found by subspace
iteration from a random start (Halko, Martinsson and Tropp, Finding Structure with Randomness, 2011).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

Floats = npt.NDArray[np.float64]
# From this size of a Gram matrix on, and for a share of its vectors up to this, random starts are quicker.
_LARGE, _FEW = 1024, 0.25
_OVERSAMPLED, _ITERATIONS = 16, 4
# Of the mean power of the inputs, added to each so that the root of their moments has an inverse.
_TINY = 1e-10


def rank_for_ratio(rows: int, columns: int, ratio: float) -> int:
    """The largest rank, at least 1, with ``rank * (rows + columns) <= ratio * rows * columns`` parameters."""
    return max(1, int(ratio * rows * columns / (rows + columns)))


def rank_for_energy(singular_values: npt.NDArray[Any], energy: float) -> int:
    """The smallest rank, at least 1, whose squared singular values sum to ``energy`` (0..1) of the whole."""
    kept = np.cumsum(np.square(np.asarray(singular_values, np.float64)))
    if not kept.size or kept[-1] == 0:
        return 1
    return min(len(kept), int(np.searchsorted(kept, energy * kept[-1] * (1 - 1e-12))) + 1)


def singular_values(w: npt.NDArray[Any], second_moment: Floats | None = None) -> Floats:
    """All singular values of ``w`` (of w L with ``second_moment`` L L^T), falling: min(m, n) of them."""
    a = np.asarray(w, np.float64)
    if a.shape[0] <= a.shape[1]:
        gram = a @ a.T if second_moment is None else a @ second_moment @ a.T
    else:
        a = a if second_moment is None else a @ _root(second_moment)
        gram = a.T @ a
    return np.sqrt(np.maximum(scipy.linalg.eigvalsh(gram)[::-1], 0.0))


def factorize(w: npt.NDArray[Any], rank: int, second_moment: Floats | None = None) -> tuple[Floats, Floats]:
    """``left`` (m, rank) and ``right`` (rank, n), float64, the singular values shared evenly between them.

    1 <= ``rank`` <= min(m, n). ``second_moment`` is (n, n), symmetric and positive semidefinite.
    """
    a = np.asarray(w, np.float64)
    if a.shape[0] <= a.shape[1]:
        # The leading directions of the outputs, and the weights projected on them: no root is needed.
        u = _leading(a @ a.T if second_moment is None else a @ second_moment @ a.T, rank)
        return _shared(u, u.T @ a, second_moment)
    if second_moment is None:
        v = _leading(a.T @ a, rank)
        return _shared(a @ v, v.T, None)
    root = _root(second_moment)
    b = a @ root
    v = _leading(b.T @ b, rank)
    return _shared(b @ v, scipy.linalg.solve_triangular(root, v, lower=True, trans="T").T, second_moment)


def _leading(gram: Floats, rank: int) -> Floats:
    """The eigenvectors of the largest eigenvalues, (n, rank), the largest first."""
    size = len(gram)
    if size < _LARGE or rank > _FEW * size:
        return np.asarray(scipy.linalg.eigh(gram, subset_by_index=(size - rank, size - 1))[1][:, ::-1])
    start = np.random.default_rng(0).standard_normal((size, rank + _OVERSAMPLED))
    basis = scipy.linalg.qr(gram @ start, mode="economic")[0]
    for _ in range(_ITERATIONS):
        basis = scipy.linalg.qr(gram @ basis, mode="economic")[0]
    vectors = scipy.linalg.eigh(basis.T @ gram @ basis)[1][:, ::-1]
    return np.asarray(basis @ vectors[:, :rank])


def _shared(left: Floats, right: Floats, second_moment: Floats | None) -> tuple[Floats, Floats]:
    """The same product with factors whose scales are alike, each of their inner channels: of what they make, with a
    second moment."""
    power = np.square(right).sum(axis=1) if second_moment is None else ((right @ second_moment) * right).sum(axis=1)
    into = np.sqrt(np.maximum(power, 0.0)) + np.finfo(np.float64).tiny
    share = np.sqrt(into / np.maximum(np.linalg.norm(left, axis=0), np.finfo(np.float64).tiny))
    share[(share == 0) | ~np.isfinite(share)] = 1.0
    return left * share, right / share[:, None]


def _root(moment: Floats) -> Floats:
    """Lower triangular L with L L^T = S; directions without any energy get a trace of it, so that L has an inverse."""
    size = len(moment)
    tiny = _TINY * float(np.trace(moment)) / size or 1.0
    while True:
        try:
            return np.asarray(scipy.linalg.cholesky(moment + tiny * np.eye(size), lower=True))
        except scipy.linalg.LinAlgError:
            tiny *= 10
