"""What a model costs, as a function of how many channels stay: MACs or parameters.

Every product and every constant is as large as the product of the lengths of some axes, and the length of an axis is
what is frozen of it plus, for each block on it, the classes that stay times how often one occurs:

    cost(k) = sum_t size_t * prod_{a in t} (frozen_a + sum_b often_ab k_b) / length_a

with k_b the number of classes of block b that stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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


class Costs:
    """``total(k)`` for k (blocks,), the classes that stay. ``neighbours[b]`` are the blocks whose savings b changes."""

    def __init__(self, blocks: Sequence[Labels], terms: Iterable[tuple[float, Sequence[Labels]]], count: int) -> None:
        """``terms`` are sizes, and the classes along the axes that each is proportional to; ``count`` is of classes."""
        block_of = np.full(count + 1, -1, np.intp)
        for b, block in enumerate(blocks):
            block_of[block] = b
        self.full = np.array([len(block) for block in blocks], np.float64)
        axes: dict[bytes, int] = {}
        frozen: list[float] = []
        often: list[Floats] = []
        sizes: list[float] = []
        members: list[list[int]] = []
        self.fixed = 0.0
        for size, along in terms:
            moving = []
            for classes in along:
                of = block_of[classes]
                if not len(of) or (of < 0).all():
                    continue
                key = of.tobytes()
                if key not in axes:
                    axes[key] = len(frozen)
                    counts = np.bincount(of[of >= 0], minlength=len(blocks)) / self.full
                    frozen.append(float((of < 0).mean()))
                    often.append(counts / len(of))
                moving.append(axes[key])
            if moving:
                sizes.append(float(size))
                members.append(moving)
            else:
                self.fixed += float(size)
        self._frozen = np.array(frozen)
        self._often = np.array(often).reshape(len(frozen), len(blocks))
        self._sizes = np.array(sizes)
        width = max(map(len, members), default=0)
        # Terms of fewer axes are padded with one whose share is 1.
        padded = [m + [len(frozen)] * (width - len(m)) for m in members]
        self._members = np.array(padded, np.intp).reshape(len(members), width)
        on = np.zeros((len(frozen) + 1, len(blocks)), np.bool_)
        on[:-1] = self._often > 0
        touched = np.asarray(on[self._members].any(axis=1))
        self._terms_of = [np.flatnonzero(touched[:, b]) for b in range(len(blocks))]
        self.neighbours = [np.flatnonzero(touched[t].any(axis=0)) for t in self._terms_of]

    def total(self, kept: Floats) -> float:
        """The cost with so many classes of each block."""
        return self.fixed + float(self._values(self._shares(kept), slice(None)).sum())

    def saved(self, kept: Floats, block: int, levels: Floats) -> Floats:
        """What it would save to go from ``kept`` to each of ``levels`` classes of one block."""
        terms, shares = self._terms_of[block], self._shares(kept)
        now = self._values(shares, terms).sum()
        by_level = shares[:, None] + np.append(self._often[:, block], 0.0)[:, None] * (levels - kept[block])
        members = self._members[terms]
        then = self._sizes[terms, None] * np.prod(by_level[members], axis=1)
        return np.asarray(now - then.sum(axis=0))

    def _shares(self, kept: Floats) -> Floats:
        return np.append(self._frozen + self._often @ kept, 1.0)

    def _values(self, shares: Floats, terms: slice | Labels) -> Floats:
        return np.asarray(self._sizes[terms] * np.prod(shares[self._members[terms]], axis=1))


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
                along = [coupling.input(node, slot, k) for k in range(len(tensor.shape))]
                elements = float(np.prod(tensor.shape))
                terms.append((elements * (tensor.dtype.itemsize if in_bytes else 1), along))
    return Costs(blocks, terms, coupling.count)


def _axes(node: Node, coupling: Coupling) -> list[Labels]:
    """The axes that a node's MACs are proportional to, as far as channels go."""
    if node.op in _WEIGHT_AXES:
        return [coupling.input(node, *at) for at in _WEIGHT_AXES[node.op]]
    if node.op == "MatMul":
        ranks = [coupling.rank(t) if not is_constant(t) else len(t.shape) for t in node.inputs]
        rows = [coupling.input(node, 0, k) for k in range(ranks[0])]
        return rows + ([coupling.input(node, 1, -1)] if ranks[1] > 1 else [])
    if node.op in ("LSTM", "GRU", "RNN"):
        return [coupling.input(node, 2, 1)]
    return []
