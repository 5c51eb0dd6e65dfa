"""How many channels of each block go, so that a budget is met at the least error.

From the whole model on, the step that costs the least error for what it saves is taken again and again; a step may go
down several states of a path at once, since an error curve may be flat before it rises. Savings are counted anew after
every step, because a layer between two blocks is the smaller for both. What was saved beyond the budget is given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onnxopt.graph.labels import Labels
from onnxopt.graph.layer import Floats
from onnxopt.pruning.costs import Costs
from onnxopt.pruning.selection import Path


class Allocation(NamedTuple):
    """The state of every path, the classes that stay by block, and the way there: (cost, predicted error) by step."""

    states: Labels
    kept: Floats
    way: list[tuple[float, float]]


def allocate(paths: Sequence[Path], costs: Costs, limit: float) -> Allocation:
    """States so that the cost is at most ``limit``; the last of every path, where that cannot be."""
    at = np.zeros(len(paths), np.intp)
    kept = costs.full.copy()
    of_block = {b: i for i, path in enumerate(paths) for b in path.blocks}
    best = [_best(path, 0, costs, kept) for path in paths]
    total, error = costs.total(kept), 0.0
    way = [(total, error)]
    while total > limit:
        slopes = np.array([slope for slope, _ in best])
        if not len(slopes) or not np.isfinite(slopes).any():
            break
        i = int(np.argmin(slopes))
        path, state = paths[i], best[i][1]
        error += float(path.error[state] - path.error[at[i]])
        at[i], kept[list(path.blocks)] = state, path.kept[state]
        total = costs.total(kept)
        way.append((total, error))
        for j in {of_block[n] for b in path.blocks for n in costs.neighbours[b].tolist() if n in of_block}:
            best[j] = _best(paths[j], int(at[j]), costs, kept)
    _give_back(paths, costs, limit, at, kept)
    error = float(sum(p.error[i] for p, i in zip(paths, at, strict=True)))
    return Allocation(at, kept, [*way, (costs.total(kept), error)])


def _best(path: Path, at: int, costs: Costs, kept: Floats) -> tuple[float, int]:
    """The least error per unit saved on the way down from state ``at``, and the state that gives it."""
    below = path.kept[at + 1 :]
    if not len(below):
        return np.inf, at
    saved = costs.saved(kept, path.blocks, below)
    rise = path.error[at + 1 :] - path.error[at]
    slopes = np.where(saved > 0, np.maximum(rise, 0) / np.maximum(saved, 1e-300), np.inf)
    least = int(np.argmin(slopes))
    return float(slopes[least]), at + 1 + least


def _give_back(paths: Sequence[Path], costs: Costs, limit: float, at: Labels, kept: Floats) -> None:
    """Go back up as far as the budget has room, where it spares the most error first."""
    spare = limit - costs.total(kept)
    while spare > 0:
        found = []
        for i, path in enumerate(paths):
            above = path.kept[: at[i]]
            fits = -costs.saved(kept, path.blocks, above) <= spare
            found += [(float(path.error[at[i]] - path.error[state]), i, int(state)) for state in np.flatnonzero(fits)]
        gain, i, state = max(found, default=(0.0, 0, 0))
        if gain <= 0:
            return
        at[i], kept[list(paths[i].blocks)] = state, paths[i].kept[state]
        spare = limit - costs.total(kept)
