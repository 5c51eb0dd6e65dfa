"""The cheapest way to part the nodes of a network in two: minimum cut by maximum flow (Ford and Fulkerson, 1956)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.sparse.csgraph

# scipy counts in int32. All finite capacities together stay under one infinite one, and two of those fit.
_FINITE, _INFINITE = 2**28, 2**30


def minimum_cut(nodes: int, arcs: Sequence[tuple[int, int, float]], source: int, sink: int) -> npt.NDArray[np.bool_]:
    """For each of ``nodes`` whether it lies on the side of ``source``, (nodes,); as few as possible do.

    An arc (start, end, capacity >= 0) is paid for when it leads from that side to the side of ``sink``; one of capacity
    inf is never cut, as long as there is a way without. Capacities are rounded up to a 2^28th of their sum.
    """
    start, end, capacity = (np.array(column) for column in zip(*arcs, strict=True))
    finite = np.isfinite(capacity)
    step = float(capacity[finite].sum()) / _FINITE or 1.0
    steps = np.full(len(arcs), _INFINITE, np.int32)
    steps[finite] = np.ceil(capacity[finite] / step)
    network = scipy.sparse.coo_array((steps, (start, end)), (nodes, nodes)).tocsr()
    residual = network - scipy.sparse.csgraph.maximum_flow(network, source, sink).flow
    residual.data = np.maximum(residual.data, 0)
    residual.eliminate_zeros()
    side = np.zeros(nodes, np.bool_)
    side[scipy.sparse.csgraph.breadth_first_order(residual, source, return_predecessors=False)] = True
    return side
