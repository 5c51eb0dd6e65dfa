"""Low rank: w (m, n) as ``left @ right`` with left (m, r) and right (r, n), by the singular value decomposition.

The truncated decomposition is the best of its rank (Eckart and Young, 1936). With ``second_moment`` S = E[x x^T] of the
inputs it minimises E|(w - left right) x|^2 instead of |w - left right|^2: decompose w S^(1/2), then undo the root.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

Floats = npt.NDArray[np.float64]

# From here on, and for ranks under a quarter of the full one, a randomised range finder is many times faster.
_LARGE = 768


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
    """All singular values of ``w`` (of w S^(1/2) with ``second_moment``), falling.

    From the smaller Gram matrix: several times faster; values under 1e-8 of the largest are not resolved.
    """
    a = np.asarray(w, np.float64)
    a = a if second_moment is None else a @ _roots(second_moment)[0]
    gram = a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a
    return np.sqrt(np.maximum(scipy.linalg.eigvalsh(gram)[::-1], 0.0))


def factorize(w: npt.NDArray[Any], rank: int, second_moment: Floats | None = None) -> tuple[Floats, Floats]:
    """``left`` (m, rank) and ``right`` (rank, n), float64, the singular values shared evenly between them.

    ``second_moment`` is (n, n), symmetric and positive semidefinite.
    """
    a = np.asarray(w, np.float64)
    root, inverse = (None, None) if second_moment is None else _roots(second_moment)
    u, s, vt = _truncated_svd(a if root is None else a @ root, rank)
    share = np.sqrt(s)
    right = share[:, None] * vt
    return u * share, right if inverse is None else right @ inverse


def _truncated_svd(a: Floats, rank: int) -> tuple[Floats, Floats, Floats]:
    if min(a.shape) >= _LARGE and rank * 4 <= min(a.shape):
        # Halko, Martinsson and Tropp, 2011: subspace iteration, orthonormal after each product.
        q: npt.NDArray[Any] = np.random.default_rng(0).standard_normal((a.shape[1], rank + 16))
        for _ in range(5):
            q = scipy.linalg.qr(a.T @ scipy.linalg.qr(a @ q, mode="economic")[0], mode="economic")[0]
        u, s, small = scipy.linalg.svd(a @ q, full_matrices=False)
        return u[:, :rank], s[:rank], small[:rank] @ q.T
    u, s, vt = scipy.linalg.svd(a, full_matrices=False)
    return u[:, :rank], s[:rank], vt[:rank]


def _roots(moment: Floats) -> tuple[Floats, Floats]:
    """S^(1/2) and its pseudo-inverse; directions without any energy are damped, so that both exist."""
    values, vectors = scipy.linalg.eigh(moment)
    values = np.maximum(values, values[-1].clip(np.finfo(np.float64).tiny) * 1e-9)
    return (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T
