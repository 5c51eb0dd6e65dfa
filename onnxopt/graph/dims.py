"""Where the numbers in a small integer tensor come from: literals, or the sizes of other tensors.

Exporters compute the target of a Reshape as Concat(Gather(Shape(x), 0), -1). Known so far, such a target stays right
when a channel is removed: a size that is read at run time adjusts itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from onnxopt.graph.ir import Node, Tensor, is_constant

_LIMIT = 64


class Size(NamedTuple):
    """The length of one axis of a tensor."""

    tensor: Tensor
    axis: int


Entry: TypeAlias = int | Size | None
Entries: TypeAlias = tuple[Entry, ...]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def trace(nodes: Iterable[Node], shapes: Shapes) -> dict[int, Entries]:
    """Entries of each tensor whose numbers are handed on from a Shape node unchanged, by the tensor's ``id``.

    ``nodes`` come sorted. None stands for a number that is neither a literal nor one axis' size. Where a node reads
    traced numbers and its output is not traced, they are used for something else.
    """
    found: dict[int, Entries] = {}
    for node in nodes:
        if not node.is_standard or not node.outputs:
            continue
        if node.op == "Shape" and not is_constant(node.inputs[0]) and node.inputs[0].name in shapes:
            rank = len(shapes[node.inputs[0].name])
            axes = range(rank)[int(node.attrs.get("start", 0)) : node.attrs.get("end", rank)]
            found[id(node.outputs[0])] = tuple(Size(node.inputs[0], k) for k in axes)
        elif any(id(t) in found for t in node.inputs):
            carried = _carried(node, [entries(t, found, shapes) for t in node.inputs])
            if carried is not None:
                found[id(node.outputs[0])] = carried
    return found


def entries(tensor: Tensor, traced: Mapping[int, Entries], shapes: Shapes) -> Entries | None:
    """The numbers of a tensor, read in order; None where not even their count is known."""
    if id(tensor) in traced:
        return traced[id(tensor)]
    shape = tuple(tensor.shape) if is_constant(tensor) else shapes.get(tensor.name)
    count = _LIMIT + 1 if shape is None else int(np.prod(shape, dtype=np.int64))
    if count > _LIMIT:
        return None
    if is_constant(tensor) and np.issubdtype(tensor.dtype, np.integer):
        return tuple(int(v) for v in tensor.values.reshape(-1))
    return (None,) * count


def _carried(node: Node, parts: list[Entries | None]) -> Entries | None:
    """What the node's output holds; None where it makes something else of its inputs."""
    data, literals = parts[0], [_literals(p) for p in parts[1:]]
    if node.op == "Concat":
        return None if None in parts else tuple(e for part in parts if part is not None for e in part)
    if node.op == "Where" and is_constant(node.inputs[0]):  # as a cut puts literals among sizes
        given, *sides = node.inputs[0].values.reshape(-1).tolist(), *(p or () for p in parts[1:])
        if any(len(side) != len(given) for side in sides):
            return None
        return tuple(sides[0][i] if first else sides[1][i] for i, first in enumerate(given))
    if data is None or node.op not in ("Gather", "Slice", "Unsqueeze", "Squeeze", "Cast", "Identity"):
        return None
    if node.op == "Gather":
        return None if literals[0] is None else tuple(data[i] for i in literals[0])
    if node.op == "Slice":
        if len(literals) < 2 or any(p is None or len(p) != 1 for p in literals):
            return None
        start, end, *rest = (p[0] for p in literals if p is not None)
        return data[slice(start, end, rest[1] if len(rest) == 2 else 1)]
    return data


def _literals(part: Entries | None) -> list[int] | None:
    numbers = [e for e in part or () if isinstance(e, int)]
    return numbers if part is not None and len(numbers) == len(part) else None
