"""The rank of a matrix under noise: empirical variational Bayes matrix factorisation.

Nakajima, Sugiyama, Babacan and Tomioka (Global Analytic Solution of Fully-Observed Variational Bayesian Matrix
Factorization, 2013): given the variance of the noise, a singular value is signal above a threshold in closed form; the
variance itself is the minimum of a function of one variable.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

Floats = npt.NDArray[np.float64]


def rank(singular_values: npt.NDArray[Any], rows: int, columns: int) -> int:
    """How many of all the singular values of a (rows, columns) matrix stand out of the noise: 0 to their number.

    A matrix without noise has the rank that it has.
    """
    short, long = min(rows, columns), max(rows, columns)
    power = np.square(np.asarray(singular_values, np.float64))[:short]
    present = int((power > power[:1].clip(np.finfo(np.float64).tiny) * 1e-12).sum())
    if present < short or not short:
        return present
    shape = short / long
    tau = 2.5129 * np.sqrt(shape)  # the root of an equation without closed form, as the paper approximates it
    edge = (1 + tau) * (1 + shape / tau)
    # At most so many are signal; the noise is at least what the others then are, and at most what all are.
    most = max(0, min(int(np.ceil(short / (1 + shape))), short) - 2)
    least = max(power[most + 1] / (long * edge), power[most + 1 :].mean() / long) if most + 1 < short else power[-1]
    bounds = float(np.log(least)), float(np.log(power.sum() / (short * long)))
    if bounds[0] >= bounds[1]:
        noise = float(np.exp(bounds[1]))
    else:
        grid = np.linspace(*bounds, 65)
        costs = [_cost(g, power, long, shape, edge) for g in grid]
        at = int(np.argmin(costs))
        around = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
        found = minimize_scalar(_cost, bounds=around, args=(power, long, shape, edge), method="bounded")
        noise = float(np.exp(found.x if found.fun < costs[at] else grid[at]))
    return int((power > long * noise * edge).sum())


def _cost(log_noise: float, power: Floats, long: int, shape: float, edge: float) -> float:
    """The free energy, less what does not depend on the noise."""
    x = power / (long * np.exp(log_noise))
    noise, signal = x[x <= edge], x[x > edge]
    inner = signal - (1 + shape)
    tau = (inner + np.sqrt(np.maximum(inner**2 - 4 * shape, 0.0))) / 2
    total = (noise - np.log(noise)).sum() + (signal - tau).sum()
    total += np.log((tau + 1) / signal).sum() + shape * np.log(tau / shape + 1).sum()
    return float(total)
