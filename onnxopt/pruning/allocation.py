"""How many channels of each block go, so that a budget is met at the least error.

From the whole model on, the step that costs the least error for what it saves is taken again and again; a step may go
down several levels at once, since an error curve may be flat before it rises. Savings are counted anew after every
step, because a layer between two blocks is the smaller for both. What was saved beyond the budget is given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onnxopt.graph.labels import Labels
from onnxopt.graph.layer import Floats
from onnxopt.pruning.costs import Costs


class Levels(NamedTuple):
    """The numbers of classes that a block may be left with, from all of them down, and the error of each."""

    kept: Floats
    error: Floats


class Allocation(NamedTuple):
    """Classes that stay by block, and the way there: (cost, predicted error) after every step."""

    kept: Floats
    way: list[tuple[float, float]]


def allocate(blocks: Sequence[Levels], costs: Costs, limit: float) -> Allocation:
    """The classes that stay so that the cost is at most ``limit``; as few as there may be, where that cannot be."""
    at = np.zeros(len(blocks), np.intp)
    kept = np.array([b.kept[0] for b in blocks], np.float64)
    best = [_best(b, 0, costs, kept, i) for i, b in enumerate(blocks)]
    total, error = costs.total(kept), 0.0
    way = [(total, error)]
    while total > limit:
        slopes = np.array([slope for slope, _ in best])
        if not len(slopes) or not np.isfinite(slopes).any():
            break
        chosen = int(np.argmin(slopes))
        level = best[chosen][1]
        error += float(blocks[chosen].error[level] - blocks[chosen].error[at[chosen]])
        at[chosen], kept[chosen] = level, blocks[chosen].kept[level]
        total = costs.total(kept)
        way.append((total, error))
        for b in costs.neighbours[chosen].tolist():
            best[b] = _best(blocks[b], int(at[b]), costs, kept, b)
    _give_back(blocks, costs, limit, at, kept)
    error = float(sum(b.error[i] for b, i in zip(blocks, at, strict=True)))
    return Allocation(kept, [*way, (costs.total(kept), error)])


def _best(block: Levels, at: int, costs: Costs, kept: Floats, index: int) -> tuple[float, int]:
    """The least error per unit saved on the way down from level ``at``, and the level that gives it."""
    below = block.kept[at + 1 :]
    if not len(below):
        return np.inf, at
    saved = costs.saved(kept, index, below)
    rise = block.error[at + 1 :] - block.error[at]
    slopes = np.where(saved > 0, np.maximum(rise, 0) / np.maximum(saved, 1e-300), np.inf)
    least = int(np.argmin(slopes))
    return float(slopes[least]), at + 1 + least


def _give_back(blocks: Sequence[Levels], costs: Costs, limit: float, at: Labels, kept: Floats) -> None:
    """Raise levels as far as the budget has room, what spares the most error first."""
    spare = limit - costs.total(kept)
    while spare > 0:
        found = [
            (float(block.error[at[b]] - block.error[level]), b, level)
            for b, block in enumerate(blocks)
            for level in range(int(at[b]))
            if -costs.saved(kept, b, block.kept[level : level + 1])[0] <= spare
        ]
        gain, b, level = max(found, default=(0.0, 0, 0))
        if gain <= 0:
            return
        at[b], kept[b] = level, blocks[b].kept[level]
        spare = limit - costs.total(kept)
