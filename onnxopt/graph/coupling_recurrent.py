"""Rules of recurrent layers."""

from __future__ import annotations

import numpy as np

from onnxopt.graph.labels import Rules, Site

rules = Rules()


@rules.on("RNN", "GRU", "LSTM")
def recurrent(site: Site) -> None:
    """Inputs and hidden units, a unit in all gates and in the same place of both directions.

    x (length, batch, in), w (directions, gates * units, in), r (directions, gates * units, units), bias (directions,
    2 * gates * units), peepholes (directions, 3 * units); all states and outputs end in units. What a unit held
    before is summed over by ``r``.
    """
    x, w, r = site.operands()[:3]
    site.contract(x, 2, w, 2)
    units, gates = r[2], w.shape[1] // r.shape[2]
    for operand, times in ((w, gates), (r, gates), (site.input(3), 2 * gates), (site.input(7), 3)):
        if operand is not None:
            site.equal(operand[1], np.tile(units, times))
    for state in (site.input(5), site.input(6), *site.outputs):
        if state is not None:
            site.equal(state[-1], units)
    site.ends(r, 2)
