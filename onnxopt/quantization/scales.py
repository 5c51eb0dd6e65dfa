"""Where several tensors must share one scale, their ranges have to agree."""

from __future__ import annotations

from collections.abc import Mapping

from onnxopt.core.pass_ import label
from onnxopt.graph.ir import is_constant
from onnxopt.numerics.ranges import Range
from onnxopt.quantization.placement import Placement

# A branch with an eighth of the widest range has 5 of 8 bits left.
_RATIO = 8.0


def uneven_concats(placement: Placement, ranges: Mapping[str, Range]) -> dict[str, str]:
    """The Concats in integers that would rob one of their inputs of its resolution, with the reason.

    Where only integer layers read the result they need it on one scale anyway, and nothing is gained by floats.
    """
    found = {}
    for unit in placement.units:
        if unit.node.op != "Concat" or not _reaches_floats(unit.writes[0].name, placement):
            continue
        names = [t.name for t in unit.reads]
        widths = [_width(ranges[placement.roots[n]]) for n in names]
        widths += [float(t.values.max() - t.values.min()) for t in unit.node.inputs if is_constant(t)]
        widest, narrowest = max(widths), min((w for w in widths if w > 0), default=0.0)
        if widest > _RATIO * narrowest > 0:
            times = widest / narrowest
            found[label(unit.node)] = f"on one scale an input would lose its bits: ranges differ {times:.0f} times"
    return found


def _width(values: Range) -> float:
    low, high = values
    return float(max(high, 0) - min(low, 0))


def _reaches_floats(name: str, placement: Placement) -> bool:
    """Does anything but a layer read a tensor, or what is moved of it?"""
    tensor = placement.made[name]
    units = placement.readers(tensor)
    nodes = {id(n) for n in tensor.outputs}
    if not nodes or nodes - {id(u.node) for u in units}:
        return True
    return any(
        _reaches_floats(t.name, placement) for u in units if u.moves for t in u.writes if t.name in placement.made
    )
