"""What a cut corrects beside the constants it compresses: numbers that operators spell out, and factors.

A correction sees the node as it was, constants included, and what stays; it may give the node other inputs,
and gives back the nodes that are to stand before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.graph import corrections_counts, parameters
from onnxopt.graph.ir import Node, Variable, is_constant
from onnxopt.graph.labels import Labels
from onnxopt.graph.model import Model

if TYPE_CHECKING:
    from onnxopt.graph.cutting import Cut

Mask: TypeAlias = npt.NDArray[np.bool_]
Correction: TypeAlias = "Callable[[Model, Node, Cut], list[Node] | None]"


def _split(model: Model, node: Node, cut: Cut) -> None:
    axis = int(node.attrs.get("axis", 0))
    stays = [cut.output(node, axis, slot) for slot in range(len(node.outputs))]
    if all(s.all() for s in stays):
        return
    node.attrs.pop("num_outputs", None)
    parameters.write(model, node, 1, "split", [int(s.sum()) for s in stays], as_input=model.opset >= 13)


def _slice(model: Model, node: Node, cut: Cut) -> list[Node]:
    """Bounds in steps of one move; others become a Gather, since what is left need not lie at even distances."""
    rank = cut.coupling.rank(node.inputs[0])
    taken = parameters.slices(node, rank) or {}
    bounds = [parameters.read(node, i, name) or [] for i, name in ((1, "starts"), (2, "ends"))]
    steps = [1 if part is None else part.step for part in taken.values()]
    stay = [cut.input(node, 0, axis) for axis in taken]
    changed, gathers = False, []
    for at, (axis, part) in enumerate(taken.items()):
        before = stay[at]
        if part is None or before.all():
            continue
        changed = True
        if part.step == 1:
            start, end, _ = part.indices(len(before))
            bounds[0][at], bounds[1][at] = int(before[:start].sum()), int(before[: max(start, end)].sum())
        else:
            picked = np.arange(len(before))[part]
            gathers.append(_gather_before(model, node, axis, _new_places(before)[picked[before[picked]]]))
            bounds[0][at], bounds[1][at] = 0, len(before)
            steps[at] = 1
    if gathers:
        parameters.write(model, node, 4, "steps", steps)
    if changed:
        parameters.write(model, node, 1, "starts", bounds[0])
        parameters.write(model, node, 2, "ends", bounds[1])
    return gathers


def _gather_before(model: Model, node: Node, axis: int, places: Labels) -> Node:
    x = node.inputs[0]
    y = Variable(model.fresh_name(f"{x.name}_picked"), x.dtype)
    indices = model.constant(f"{node.name}_indices", places.astype(np.int64))
    gather = Node("Gather", model.fresh_name(f"{node.name}_gather"), [x, indices], [y], {"axis": axis})
    node.inputs[0] = y
    return gather


def _gather(model: Model, node: Node, cut: Cut) -> None:
    picked = node.inputs[1]
    axis = int(node.attrs.get("axis", 0))
    before = cut.input(node, 0, axis)
    if is_constant(picked) and not before.all():
        places = np.asarray(picked.values)
        new = _new_places(before)[places]
        if places.ndim == 1:
            new = new[cut.output(node, axis)]
        node.inputs[1] = model.constant(picked.name, new.astype(places.dtype))


def _pad(model: Model, node: Node, cut: Cut) -> None:
    amounts = parameters.pads(node, cut.coupling.rank(node.inputs[0])) or {}
    new = []
    for axis, (before, after) in amounts.items():
        stays = cut.output(node, axis)
        changed = before >= 0 and after >= 0 and not stays.all()
        new.append((int(stays[:before].sum()), int(stays[len(stays) - after :].sum())) if changed else (before, after))
    if new != list(amounts.values()):
        parameters.write(model, node, 1, "pads", [n[0] for n in new] + [n[1] for n in new])


def _squeeze(model: Model, node: Node, cut: Cut) -> None:
    """Name the axes: one that has come down to a length of 1 must not go as well."""
    sizes = [len(cut.input(node, 0, k)) for k in range(cut.coupling.rank(node.inputs[0]))]
    if not parameters.is_given(node, 1, "axes") and any(cut.input(node, 0, k).sum() < n for k, n in enumerate(sizes)):
        axes = [k for k, n in enumerate(sizes) if n == 1]
        parameters.write(model, node, 1, "axes", axes, as_input=model.opset >= 13)


def _sizes_at(slot: int) -> Correction:
    """Sizes spelled out for the output's axes: all, or the last ones, or those of the attribute ``axes``."""

    def correct(model: Model, node: Node, cut: Cut) -> list[Node]:
        sizes = cut.coupling.numbers(node.inputs[slot]) if parameters.is_given(node, slot, "") else None
        if sizes is None:
            return []
        rank = cut.coupling.rank(node.outputs[0])
        axes: Iterable[Any] = node.attrs.get("axes", range(rank - len(sizes), rank))
        stays = [cut.output(node, int(k)) for k in axes]
        new = [int(s.sum()) if n == len(s) else n for n, s in zip(sizes, stays, strict=True)]
        if new == list(sizes):
            return []
        if is_constant(node.inputs[slot]):
            parameters.write(model, node, slot, "sizes", [n for n in new if isinstance(n, int)])
            return []
        return [_literals_in(model, node, slot, new)]

    return correct


def _literals_in(model: Model, node: Node, slot: int, numbers: Iterable[object]) -> Node:
    """A Where that puts literals among sizes that are measured at run time."""
    literals = [n if isinstance(n, int) else None for n in numbers]
    old = node.inputs[slot]
    given = model.constant(f"{old.name}_given", np.array([n is not None for n in literals]))
    values = model.constant(f"{old.name}_literals", np.array([n or 0 for n in literals], np.int64))
    node.inputs[slot] = Variable(model.fresh_name(f"{old.name}_corrected"), np.dtype(np.int64))
    return Node("Where", model.fresh_name(f"{node.name}_sizes"), [given, values, old], [node.inputs[slot]])


def _new_places(stays: Mask) -> Labels:
    return np.asarray(np.cumsum(stays) - 1, np.intp)


table: dict[str, Correction] = corrections_counts.table | {
    "ConstantOfShape": _sizes_at(0),
    "Expand": _sizes_at(1),
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _sizes_at(1),
    "Resize": _sizes_at(3),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
}
