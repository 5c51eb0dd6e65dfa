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
from scipy.sparse import csr_array

from onnxopt.graph.cost import cost, trained
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.ir import Node, is_constant
from onnxopt.graph.labels import Labels
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.graph.recurrent import is_recurrent

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
        often: list[tuple[Labels, Floats]] = []
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
                    on, often_on = np.unique(of[of >= 0], return_counts=True)
                    often.append((on, often_on / self.full[on] / len(of)))
                moving.append(axes[key])
            if moving:
                sizes.append(float(size))
                members.append(moving)
            else:
                self.fixed += float(size)
        self._frozen = np.array([*frozen, 1.0])
        self._often = csr_array(
            (
                np.concatenate([np.zeros(0), *(share for _, share in often)]),
                np.concatenate([np.zeros(0, np.intp), *(b for b, _ in often)]),
                np.cumsum([0, *(len(b) for b, _ in often), 0]),
            ),
            shape=(len(frozen) + 1, len(blocks)),
        )
        self._curves = {i: curve for (_, curve), i in axes.items() if curve is not _LINEAR}
        self._sizes = np.array(sizes)
        width = max(map(len, members), default=0)
        # Terms of fewer axes are padded with one whose factor is 1.
        padded = [m + [len(frozen)] * (width - len(m)) for m in members]
        self._members = np.array(padded, np.intp).reshape(len(members), width)
        self._parts: dict[tuple[int, ...], _Part] = {}
        terms_on: list[list[int]] = [[] for _ in blocks]
        for t, moving in enumerate(members):
            for b in {b for a in moving for b in often[a][0].tolist()}:
                terms_on[b].append(t)
        self._terms_on = [np.array(t, np.intp) for t in terms_on]
        self.neighbours = [
            np.unique(np.concatenate([np.zeros(0, np.intp), *(often[a][0] for t in own for a in members[t])]))
            for own in terms_on
        ]

    def total(self, kept: Floats) -> float:
        """The cost with so many classes of each block."""
        factors = self._bent(range(len(self._frozen)), (self._frozen + self._often @ kept)[:, None])
        return self.fixed + float((self._sizes * np.prod(factors[self._members, 0], axis=1)).sum())

    def saved(self, kept: Floats, blocks: Sequence[int], levels: Floats) -> Floats:
        """What it would save to go from ``kept`` to each row of ``levels``: classes of these blocks."""
        at = tuple(blocks)
        if at not in self._parts:
            self._parts[at] = self._part(at)
        part = self._parts[at]
        ways = np.concatenate([kept[None, list(at)], levels]) - kept[list(at)]
        shares = (part.frozen + part.often @ kept)[:, None] + part.rise @ ways.T
        left = part.sizes @ np.prod(self._bent(part.axes, shares)[part.members], axis=1)
        return np.asarray(left[0] - left[1:])

    def _part(self, blocks: tuple[int, ...]) -> _Part:
        terms = np.unique(np.concatenate([self._terms_on[b] for b in blocks]))
        axes, members = np.unique(self._members[terms], return_inverse=True)
        often = csr_array(self._often[axes])
        rise = often[:, list(blocks)].toarray()
        members = members.reshape(len(terms), self._members.shape[1])
        return _Part(axes.tolist(), self._frozen[axes], often, rise, members, self._sizes[terms])

    def _bent(self, axes: Sequence[int], shares: Floats) -> Floats:
        """Factors from shares: (axes, cases)."""
        for i, a in enumerate(axes if self._curves else ()):
            if a in self._curves:
                shares[i] = np.interp(shares[i], *self._curves[a])
        return shares


class _Part(NamedTuple):
    """What of a cost some blocks change: axes with their frozen shares and how often every block (``often``) and each
    of these (``rise``) is on them; terms by ``members``, places among these axes, and their ``sizes``."""

    axes: list[int]
    frozen: Floats
    often: csr_array
    rise: Floats
    members: Labels
    sizes: Floats


def macs(model: Model, coupling: Coupling, blocks: Sequence[Labels], shapes: Mapping[str, tuple[int, ...]]) -> Costs:
    """Multiply-accumulate operations of one sample; those that cannot be counted are left out."""
    nodes = list(model.nodes())
    sizes = [row.macs or 0 for row in cost(model, shapes).nodes]
    pairs = zip(nodes, sizes, strict=True)
    terms = [term for node, size in pairs if size for term in _terms(node, float(size), coupling)]
    return Costs(blocks, terms, coupling.count)


def parameters(model: Model, coupling: Coupling, blocks: Sequence[Labels], *, in_bytes: bool = False) -> Costs:
    """Trained elements of the constants, or bytes of all; one that several nodes read counts once."""
    seen: set[int] = set()
    terms = []
    for node in model.nodes():
        for slot, tensor in enumerate(node.inputs):
            if is_constant(tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                along = [Axis(coupling.input(node, slot, k)) for k in range(len(tensor.shape))]
                size = np.prod(tensor.shape) * tensor.dtype.itemsize if in_bytes else trained(node, slot, tensor)
                terms.append((float(size), along))
    return Costs(blocks, terms, coupling.count)


def _terms(node: Node, size: float, coupling: Coupling) -> list[tuple[float, list[Axis]]]:
    """A node's MACs, in parts that are proportional to axes each: of a recurrent layer those of W and of R."""
    if not is_recurrent(node):
        return [(size, _axes(node, coupling))]
    parts = [np.prod(node.inputs[slot].shape) for slot in (1, 2)] if all(map(is_constant, node.inputs[1:3])) else []
    return [
        (size * float(part / sum(parts)), [Axis(coupling.input(node, slot, axis)) for axis in (1, 2)])
        for slot, part in enumerate(parts, 1)
    ] or [(size, [])]


def _axes(node: Node, coupling: Coupling) -> list[Axis]:
    """The axes that a node's MACs are proportional to, as far as channels go."""
    if node.op in _WEIGHT_AXES:
        return [Axis(coupling.input(node, *at)) for at in _WEIGHT_AXES[node.op]]
    if node.op == "MatMul":
        ranks = [coupling.rank(t) if not is_constant(t) else len(t.shape) for t in node.inputs]
        rows = [Axis(coupling.input(node, 0, k)) for k in range(ranks[0])]
        return rows + ([Axis(coupling.input(node, 1, -1))] if ranks[1] > 1 else [])
    return []
