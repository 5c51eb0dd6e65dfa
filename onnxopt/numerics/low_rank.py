"""Low rank: w (m, n) as ``left @ right`` with left (m, r) and right (r, n), by the singular value decomposition.

The truncated decomposition is the best of its rank (Eckart and Young, 1936). With ``second_moment`` S = E[x x^T] of the
inputs it minimises E|(w - left right) x|^2 instead of |w - left right|^2: decompose w S^(1/2), then undo the root.

Singular vectors come from the smaller Gram matrix, several times faster than from w; what that loses lies under 1e-8
of the largest singular value, beyond what float32 weights hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

Floats = npt.NDArray[np.float64]


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
    """All singular values of ``w`` (of w S^(1/2) with ``second_moment``), falling."""
    a = np.asarray(w, np.float64)
    a = a if second_moment is None else a @ _roots(second_moment)[0]
    gram = a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a
    return np.sqrt(np.maximum(scipy.linalg.eigvalsh(gram)[::-1], 0.0))


def factorize(w: npt.NDArray[Any], rank: int, second_moment: Floats | None = None) -> tuple[Floats, Floats]:
    """``left`` (m, rank) and ``right`` (rank, n), float64, the singular values shared evenly between them.

    1 <= ``rank`` <= min(m, n). ``second_moment`` is (n, n), symmetric and positive semidefinite.
    """
    a = np.asarray(w, np.float64)
    if second_moment is None:
        return _factors(a, rank)
    root, inverse = _roots(second_moment)
    left, right = _factors(a @ root, rank)
    return left, right @ inverse


def _factors(a: Floats, rank: int) -> tuple[Floats, Floats]:
    """Projection on the leading singular vectors of the shorter side: u (u^T a)."""
    if a.shape[0] > a.shape[1]:
        left, right = _factors(a.T, rank)
        return right.T, left.T
    size = len(a)
    u = scipy.linalg.eigh(a @ a.T, subset_by_index=(size - rank, size - 1))[1][:, ::-1]
    projected = u.T @ a
    share = np.sqrt(np.linalg.norm(projected, axis=1, keepdims=True))
    return u * share.T, np.divide(projected, share, out=np.zeros_like(projected), where=share > 0)


def _roots(moment: Floats) -> tuple[Floats, Floats]:
    """S^(1/2) and its pseudo-inverse; directions without any energy are damped, so that both exist."""
    values, vectors = scipy.linalg.eigh(moment)
    values = np.maximum(values, values[-1].clip(np.finfo(np.float64).tiny) * 1e-9)
    return (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T
