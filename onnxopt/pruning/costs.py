"""What a model costs, as a function of how many channels stay.

Every product and every constant costs in proportion to factors, one for each of some axes; a factor depends on the
share of the axis that is left, which is what is frozen of it plus, for each block on it, the classes that stay:

    cost(k) = fixed + sum_t size_t * prod_{a in t} f_a(frozen_a + sum_b often_ab k_b)

with k_b the number of classes of block b that stay, and f_a(1) = 1. For MACs and parameters f_a(s) = s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from onnxopt.graph.cost import cost
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.ir import Node, is_constant
from onnxopt.graph.labels import Labels
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model

# Axes of inputs (slot, axis) whose lengths an operator's MACs are proportional to, where its second input is constant.
_WEIGHT_AXES: Mapping[str, Sequence[tuple[int, int]]] = {
    "Conv": ((1, 0), (1, 1)),
    "ConvTranspose": ((1, 0), (1, 1)),
    "Gemm": ((1, 0), (1, 1)),
}
Curve: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
_LINEAR: Curve = ((0.0, 1.0), (0.0, 1.0))


class Axis(NamedTuple):
    """The classes along an axis, and f as (shares, factors), both rising, linear in between."""

    classes: Labels
    curve: Curve = _LINEAR


class Costs:
    """``total(k)`` for k (blocks,), the classes that stay. ``neighbours[b]`` are the blocks whose savings b changes."""

    def __init__(
        self, blocks: Sequence[Labels], terms: Iterable[tuple[float, Sequence[Axis]]], count: int, fixed: float = 0.0
    ) -> None:
        """``terms`` are sizes, and the axes that each depends on; ``count`` is of classes."""
        block_of = np.full(count + 1, -1, np.intp)
        for b, block in enumerate(blocks):
            block_of[block] = b
        self.full = np.array([len(block) for block in blocks], np.float64)
        self.fixed = fixed
        axes: dict[tuple[bytes, Curve], int] = {}
        frozen: list[float] = []
        often: list[Floats] = []
        sizes: list[float] = []
        members: list[list[int]] = []
        for size, along in terms:
            moving = []
            for axis in along:
                of = block_of[axis.classes]
                if (of < 0).all():
                    continue
                key = (of.tobytes(), axis.curve)
                if key not in axes:
                    axes[key] = len(frozen)
                    frozen.append(float((of < 0).mean()))
                    often.append(np.bincount(of[of >= 0], minlength=len(blocks)) / self.full / len(of))
                moving.append(axes[key])
            if moving:
                sizes.append(float(size))
                members.append(moving)
            else:
                self.fixed += float(size)
        self._frozen = np.array(frozen)
        self._often = np.array(often).reshape(len(frozen), len(blocks))
        self._curves = {i: curve for (_, curve), i in axes.items() if curve is not _LINEAR}
        self._sizes = np.array(sizes)
        width = max(map(len, members), default=0)
        # Terms of fewer axes are padded with one whose factor is 1.
        padded = [m + [len(frozen)] * (width - len(m)) for m in members]
        self._members = np.array(padded, np.intp).reshape(len(members), width)
        on = np.zeros((len(frozen) + 1, len(blocks)), np.bool_)
        on[:-1] = self._often > 0
        touched = np.asarray(on[self._members].any(axis=1))
        self._terms_of = [np.flatnonzero(touched[:, b]) for b in range(len(blocks))]
        self.neighbours = [np.flatnonzero(touched[t].any(axis=0)) for t in self._terms_of]

    def total(self, kept: Floats) -> float:
        """The cost with so many classes of each block."""
        return self.fixed + float((self._sizes * np.prod(self._factors(kept)[self._members], axis=1)).sum())

    def saved(self, kept: Floats, blocks: Sequence[int], levels: Floats) -> Floats:
        """What it would save to go from ``kept`` to each row of ``levels``: classes of these blocks."""
        terms = np.unique(np.concatenate([self._terms_of[b] for b in blocks]))
        factors = self._factors(kept)
        members, sizes = self._members[terms], self._sizes[terms]
        now = (sizes * np.prod(factors[members], axis=1)).sum()
        by_level = np.repeat(factors[:, None], len(levels), axis=1)
        often, rise = self._often[:, list(blocks)], (levels - kept[list(blocks)]).T
        for a in np.flatnonzero(often.any(axis=1)).tolist():
            share = self._frozen[a] + self._often[a] @ kept + often[a] @ rise
            by_level[a] = np.interp(share, self._curves[a][0], self._curves[a][1]) if a in self._curves else share
        return np.asarray(now - (sizes[:, None] * np.prod(by_level[members], axis=1)).sum(axis=0))

    def _factors(self, kept: Floats) -> Floats:
        found = np.append(self._frozen + self._often @ kept, 1.0)
        for a, curve in self._curves.items():
            found[a] = np.interp(found[a], curve[0], curve[1])
        return found


def macs(model: Model, coupling: Coupling, blocks: Sequence[Labels], shapes: Mapping[str, tuple[int, ...]]) -> Costs:
    """Multiply-accumulate operations of one sample; those that cannot be counted are left out."""
    nodes = list(model.nodes())
    sizes = [row.macs or 0 for row in cost(model, shapes).nodes]
    terms = [(size, _axes(node, coupling)) for node, size in zip(nodes, sizes, strict=True) if size]
    return Costs(blocks, terms, coupling.count)


def parameters(model: Model, coupling: Coupling, blocks: Sequence[Labels], *, in_bytes: bool = False) -> Costs:
    """Elements of the constants, or their bytes; one that several nodes read counts once."""
    seen: set[int] = set()
    terms = []
    for node in model.nodes():
        for slot, tensor in enumerate(node.inputs):
            if is_constant(tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                along = [Axis(coupling.input(node, slot, k)) for k in range(len(tensor.shape))]
                elements = float(np.prod(tensor.shape))
                terms.append((elements * (tensor.dtype.itemsize if in_bytes else 1), along))
    return Costs(blocks, terms, coupling.count)


def _axes(node: Node, coupling: Coupling) -> list[Axis]:
    """The axes that a node's MACs are proportional to, as far as channels go."""
    if node.op in _WEIGHT_AXES:
        return [Axis(coupling.input(node, *at)) for at in _WEIGHT_AXES[node.op]]
    if node.op == "MatMul":
        ranks = [coupling.rank(t) if not is_constant(t) else len(t.shape) for t in node.inputs]
        rows = [Axis(coupling.input(node, 0, k)) for k in range(ranks[0])]
        return rows + ([Axis(coupling.input(node, 1, -1))] if ranks[1] > 1 else [])
    if node.op in ("LSTM", "GRU", "RNN"):
        return [Axis(coupling.input(node, 2, 1))]
    return []
