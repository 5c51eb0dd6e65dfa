"""Rules of the operators that hold bodies: what goes in and comes out is the same tensor inside and outside.

A tensor that a body captures is the outer tensor itself, and needs no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from onnxopt.graph.labels import Operand, Rules, Site

rules = Rules()


@rules.on("If")
def if_(site: Site) -> None:
    """Either branch makes the outputs, in their order."""
    made = [site.within(body)[1] for body in site.node.bodies()]
    for slot, operands in enumerate(zip(*made, strict=True)):
        _tie(site, [*operands, *_result(site, slot)])


@rules.on("Loop")
def loop(site: Site) -> None:
    """Inputs: trip count, condition, carried values; of the body too. It makes the condition, carried and stacked."""
    (body,) = site.node.bodies()
    given, made = site.within(body)
    carried = len(given) - 2
    for k in range(carried):
        _tie(site, [site.input(k + 2), given[k + 2], made[k + 1], *_result(site, k)])
    for k in range(carried, len(made) - 1):
        _stack(site, [made[k + 1], *_result(site, k)], 0)


@rules.on("Scan")
def scan(site: Site) -> None:
    """Carried values, then tensors that are taken apart along an axis; it makes carried values, then stacked ones.

    Scan of opset 8 has a batch axis besides, and is left alone.
    """
    if site.opset < 9:
        return
    (body,) = site.node.bodies()
    given, made = site.within(body)
    taken = int(site.attr("num_scan_inputs"))
    carried = len(given) - taken
    for k in range(carried):
        _tie(site, [site.input(k), given[k], made[k], *_result(site, k)])
    for k, axis in enumerate(site.attr("scan_input_axes", [0] * taken), carried):
        _stack(site, [given[k], site.input(k)], int(axis))
    for k, axis in enumerate(site.attr("scan_output_axes", [0] * (len(made) - carried)), carried):
        _stack(site, [made[k], *_result(site, k)], int(axis))


def _tie(site: Site, names: Sequence[Operand | None]) -> None:
    """One tensor under several names. An axis on whose length they do not agree stays."""
    known = [x for x in names if x is not None]
    if len(known) < len(names) or len({x.rank for x in known}) > 1:
        return
    for k in range(known[0].rank):
        if len({x.shape[k] for x in known}) == 1:
            for a, b in pairwise(known):
                site.equal(a[k], b[k])


def _stack(site: Site, names: Sequence[Operand | None], axis: int) -> None:
    """A tensor of one turn, and that of all turns, which has one axis more; the latter may be left out."""
    part, *stacked = names
    for whole in stacked:
        if part is not None and whole is not None and whole.rank == part.rank + 1:
            new = range(whole.rank)[axis]
            for k, n in enumerate(part.shape):
                if whole.shape[k + (k >= new)] == n:
                    site.equal(part[k], whole[k + (k >= new)])


def _result(site: Site, slot: int) -> list[Operand | None]:
    """An output of the node, None where its shape is not known; nothing where it is left out."""
    outputs = site.node.outputs
    if slot >= len(outputs) or outputs[slot].is_empty():
        return []
    return [next((y for y in site.outputs if y.slot == slot), None)]
