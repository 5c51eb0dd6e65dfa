"""Integers that steer an operator: an input in newer operator sets, an attribute in older ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt.graph.ir import Node, is_constant
from onnxopt.graph.model import Model


def is_given(node: Node, slot: int, attribute: str) -> bool:
    """Is the parameter there at all?"""
    return (slot < len(node.inputs) and not node.inputs[slot].is_empty()) or attribute in node.attrs


def read(node: Node, slot: int, attribute: str) -> list[int] | None:
    """The integers; None where they are computed, or left out."""
    if slot < len(node.inputs) and not node.inputs[slot].is_empty():
        tensor = node.inputs[slot]
        return [int(v) for v in tensor.values.reshape(-1)] if is_constant(tensor) else None
    value = node.attrs.get(attribute)
    return None if value is None else [int(v) for v in np.atleast_1d(value)]


def write(model: Model, node: Node, slot: int, attribute: str, values: Sequence[int], *, as_input: bool = True) -> None:
    """Give the parameter other values, in the form in which the node has it; where it has none yet, as asked."""
    has = slot < len(node.inputs)
    if not has and (attribute in node.attrs or not as_input):
        node.attrs[attribute] = list(values)
        return
    tensor = model.constant(f"{node.name}_{attribute}", np.array(values, node.inputs[slot].dtype if has else np.int64))
    if has:
        node.inputs[slot] = tensor
    else:
        node.inputs.append(tensor)


def slices(node: Node, rank: int) -> dict[int, slice | None] | None:
    """What a Slice takes, by axis, as Python writes it: None for an axis whose bounds are computed.

    None instead of all where not even the axes are known. Axes that are not named are taken whole.
    """
    bounds = [read(node, i, name) for i, name in ((1, "starts"), (2, "ends"))]
    axes, steps = read(node, 3, "axes"), read(node, 4, "steps")
    if axes is None:
        known = next((b for b in bounds if b is not None), None)
        if known is None or is_given(node, 3, "axes"):
            return None
        axes = list(range(len(known)))
    if steps is None and not is_given(node, 4, "steps"):
        steps = [1] * len(axes)
    if steps is None or any(b is None for b in bounds):
        return {range(rank)[k]: None for k in axes}
    starts, ends = (b for b in bounds if b is not None)
    return {range(rank)[k]: slice(*s) for k, *s in zip(axes, starts, ends, steps, strict=True)}


def pads(node: Node, rank: int) -> dict[int, tuple[int, int]] | None:
    """What a Pad adds before and after, by axis; None where that is computed."""
    amounts, axes = read(node, 1, "pads"), read(node, 3, "axes")
    if amounts is None or (axes is None and is_given(node, 3, "axes")):
        return None
    named = range(rank) if axes is None else [range(rank)[k] for k in axes]
    return dict(zip(named, zip(amounts[: len(named)], amounts[len(named) :], strict=True), strict=True))
