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
    near = _neighbours(paths, costs)
    best = np.array([_best(path, 0, costs, kept) for path in paths]).reshape(-1, 3)
    stale = np.zeros(len(paths), np.bool_)
    total, error = costs.total(kept), 0.0
    way = [(total, error)]
    while total > limit and len(paths):
        i = int(np.argmin(best[:, 0]))
        if not np.isfinite(best[i, 0]):
            if not stale.any():
                break
            i = int(np.argmax(stale))
        if stale[i]:
            best[i], stale[i] = _best(paths[i], int(at[i]), costs, kept), False
            continue
        state, saved = int(best[i, 1]), float(best[i, 2])
        error += float(paths[i].error[state] - paths[i].error[at[i]])
        at[i], kept[list(paths[i].blocks)] = state, paths[i].kept[state]
        total -= saved
        way.append((total, error))
        # The smaller its neighbours, the less a step saves: what is stale only looks too good, and waits for its turn.
        stale[near[i]] = True
    _give_back(paths, costs, limit, at, kept, near)
    error = float(sum(p.error[i] for p, i in zip(paths, at, strict=True)))
    return Allocation(at, kept, [*way, (costs.total(kept), error)])


def _neighbours(paths: Sequence[Path], costs: Costs) -> list[Labels]:
    """By path: those whose savings it changes, itself among them."""
    of_block = np.full(len(costs.full), -1, np.intp)
    for i, path in enumerate(paths):
        of_block[list(path.blocks)] = i
    found = []
    for i, path in enumerate(paths):
        near = of_block[np.concatenate([costs.neighbours[b] for b in path.blocks])]
        found.append(np.append(near[near >= 0], i))
    return found


def _best(path: Path, at: int, costs: Costs, kept: Floats) -> tuple[float, float, float]:
    """The least error per unit saved on the way down from state ``at``, the state that gives it, what that saves."""
    below = path.kept[at + 1 :]
    if not len(below):
        return np.inf, at, 0.0
    saved = costs.saved(kept, path.blocks, below)
    rise = path.error[at + 1 :] - path.error[at]
    slopes = np.where(saved > 0, np.maximum(rise, 0) / np.maximum(saved, 1e-300), np.inf)
    least = int(np.argmin(slopes))
    return float(slopes[least]), at + 1 + least, float(saved[least])


def _give_back(
    paths: Sequence[Path], costs: Costs, limit: float, at: Labels, kept: Floats, near: Sequence[Labels]
) -> None:
    """Go back up as far as the budget has room, where it spares the most error first."""
    first = np.cumsum([0, *(len(path.error) for path in paths)])
    needed, gain = np.full(first[-1], np.inf), np.zeros(first[-1])

    def look(i: int) -> None:
        path, up = paths[i], slice(first[i], first[i] + at[i])
        needed[first[i] : first[i + 1]] = np.inf
        needed[up] = -costs.saved(kept, path.blocks, path.kept[: at[i]]) if at[i] else 0.0
        gain[up] = path.error[at[i]] - path.error[: at[i]]

    for i in range(len(paths)):
        look(i)
    spare = limit - costs.total(kept)
    while spare > 0 and len(paths):
        gains = np.where(needed <= spare, gain, 0.0)
        most = int(np.argmax(gains))
        if gains[most] <= 0:
            return
        i = int(np.searchsorted(first, most, side="right")) - 1
        at[i] = most - first[i]
        kept[list(paths[i].blocks)] = paths[i].kept[at[i]]
        for j in set(near[i].tolist()):
            look(j)
        spare = limit - costs.total(kept)
