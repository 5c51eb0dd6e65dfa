"""Which channels live and die together.

Every index of every axis of every tensor carries a label; operators state which labels are equal (``coupling_rules``
and its neighbours), and the connected components of those statements are the classes: a class is removed whole or not
at all. Class 0 is what stays: the model's boundary, axes that a rule does not speak for, operators without a rule, axes
without a fixed size. The bodies of If, Loop and Scan take part, and what they capture is the outer tensor.

Constants of rank 0 and 1 (biases, scales) are labelled anew for each use, because equal vectors of unrelated layers are
often stored once; matrices and kernels once for all uses, so that shared weights stay shared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.graph import (
    coupling_attention,
    coupling_bodies,
    coupling_moves,
    coupling_norms,
    coupling_products,
    coupling_quantized,
    coupling_recurrent,
    coupling_rules,
    dims,
)
from onnxopt.graph.ir import Graph, Node, Tensor, is_constant, reads
from onnxopt.graph.labels import Contraction, Fold, Labels, Operand, Rule, Site, Statements
from onnxopt.graph.model import Model

_RULES: Mapping[str, Rule] = (
    coupling_rules.rules
    | coupling_products.rules
    | coupling_moves.rules
    | coupling_norms.rules
    | coupling_attention.rules
    | coupling_recurrent.rules
    | coupling_quantized.rules
    | coupling_bodies.rules
)
_Key: TypeAlias = tuple[int, int]


class Coupling:
    """The classes of a model, numbered from 1 to ``count``.

    Where an axis is folded into several, as into heads and their width, one of these can be cut: ``fold`` says which,
    the longest, the outermost or the innermost.

    ``shapes`` are observed shapes of its tensors by name; a tensor without one freezes the nodes around it. ``free``
    says by name which axes have no fixed size. ``rules`` say what goes together at each operator; bodies of an operator
    that has none are left alone, with all that they read. Changes to the model make it stale.
    """

    def __init__(
        self,
        model: Model,
        shapes: Mapping[str, tuple[int, ...]],
        free: Mapping[str, Iterable[bool]],
        rules: Mapping[str, Rule] = _RULES,
        *,
        fold: Fold = "longest",
    ) -> None:
        self._rules = rules
        self._opset = model.opset
        self._shapes = shapes
        self._free = free
        self._first: dict[_Key, tuple[int, ...]] = {}
        self._said = Statements()
        self._said.freeze(np.zeros(1, np.intp), "they lie in a body that is not followed")
        self._traced = dims.trace(self._followed(model.graph), shapes)
        self._walk(model.graph)
        self._freeze_boundary(model.graph)
        self._said.decide(fold)
        self._component, self._reason = self._said.solve()
        movable = self._reason < 0
        self.count = int(movable.sum())
        self._class: Labels = np.where(movable, np.cumsum(movable), 0)[self._component]

    @property
    def contractions(self) -> list[Contraction]:
        """Every place where channels end in a sum."""
        return self._said.contractions

    def input(self, node: Node | Graph, slot: int, axis: int) -> Labels:
        """The class of every index along an axis of what a node reads, or a body gives back."""
        return self._class[
            self._labels(node, slot, (node.inputs if isinstance(node, Node) else node.outputs)[slot], axis)
        ]

    def output(self, node: Node | Graph, axis: int, slot: int = 0) -> Labels:
        """The class of every index along an axis of what a node makes, or a body is given."""
        return self._class[
            self._labels(node, slot, (node.outputs if isinstance(node, Node) else node.inputs)[slot], axis)
        ]

    def why_frozen(self, node: Node, axis: int) -> str:
        """What holds the first index that stays along an axis of the first output, in words; empty when none does."""
        slot, tensor = next((i, t) for i, t in enumerate(node.outputs) if not t.is_empty())
        labels = self._labels(node, slot, tensor, axis)
        stated = self._reason[self._component[labels]]
        stated = stated[stated >= 0]
        return self._said.why[int(stated[0])] if len(stated) else ""

    def rank(self, tensor: Tensor) -> int:
        """The number of axes of a tensor; 0 also where it is not known."""
        return len(self._shape(tensor) or ())

    def joined(self) -> npt.NDArray[np.bool_]:
        """By class: is it part of a sum of several computed tensors, as a residual stream is?"""
        found = np.zeros(self.count + 1, bool)
        for labels in self._said.joins:
            found[self._class[labels]] = True
        return found

    def blocks(self) -> list[Labels]:
        """Classes that occur along just the same axes of the same tensors: every axis is a union of blocks.

        Something must stay of every block, or an axis would come to nothing.
        """
        starts = np.unique(np.array(self._said.starts, np.intp))
        axis = np.searchsorted(starts, np.arange(self._said.size), side="right")
        names = np.random.default_rng(0).integers(1, 2**63, size=len(starts) + 1, dtype=np.uint64)
        signature = np.zeros(self.count + 1, np.uint64)
        np.add.at(signature, self._class, names[axis])
        _, block = np.unique(signature[1:], return_inverse=True)
        order = np.argsort(block, kind="stable")
        found = np.split(order + 1, np.flatnonzero(np.diff(block[order])) + 1)
        return sorted((b for b in found if len(b)), key=lambda b: int(b[0]))

    def _follows(self, node: Node) -> bool:
        """Do the bodies of this node take part?"""
        return node.kind in self._rules

    def _followed(self, graph: Graph) -> Iterator[Node]:
        """Every node, each after those of its bodies."""
        for node in graph.nodes:
            for body in node.bodies() if self._follows(node) else ():
                yield from self._followed(body)
            yield node

    def _walk(self, graph: Graph) -> None:
        for node in graph.nodes:
            for body in node.bodies():
                if self._follows(node):
                    self._enter(body, node)
                else:
                    self._freeze_captured(body, f"the body of {node.op} '{node.name}' reads them")
            self._state(node)
            self._note_free(node.outputs)

    def _enter(self, body: Graph, node: Node) -> None:
        for slot, tensor in enumerate(body.inputs):
            self._operand(body, slot, tensor)
        self._note_free(body.inputs)
        self._walk(body)
        for tensor in body.outputs:
            self._freeze_sizes(tensor, f"the body of {node.op} '{node.name}' gives their number back")

    def _state(self, node: Node) -> None:
        """Apply the node's rule, and freeze what it did not speak for."""
        inputs, outputs = self._operands(node, node.inputs), self._operands(node, node.outputs)
        bodies = {id(b): self._boundary(b) for b in node.bodies()} if self._follows(node) else {}
        tensors = zip((*node.inputs, *node.outputs), (*inputs, *outputs), strict=True)
        missing = any(o is None and not t.is_empty() for t, o in tensors)
        around = (*inputs, *outputs, *(o for sides in bodies.values() for side in sides for o in side))
        known, made = [o for o in around if o is not None], [o for o in outputs if o is not None]
        site = Site(
            node, inputs, made, self._opset, self._axis_of, self.numbers, lambda body: bodies[id(body)], self._said
        )
        why = _applied(self._rules, site, known) if bodies or not missing else "has a tensor of unknown shape"
        for operand in known:
            for k in set(range(operand.rank)) - operand.spoken:
                self._said.freeze(operand[k], f"{node.kind} '{site.name}' {why}")
        if node.op != "Shape" and not any(id(t) in self._traced for t in node.outputs):
            for tensor in node.inputs:
                self._freeze_sizes(tensor, f"{node.op} '{site.name}' computes with their number", but=site.sizes)

    def _boundary(self, body: Graph) -> tuple[list[Operand | None], list[Operand | None]]:
        return self._operands(body, body.inputs), self._operands(body, body.outputs)

    def _operands(self, node: Node | Graph, tensors: Sequence[Tensor]) -> list[Operand | None]:
        return [self._operand(node, slot, tensor) for slot, tensor in enumerate(tensors)]

    def _note_free(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._said.free += self._axes(tensor, self._free.get(tensor.name, ()))

    def _axes(self, tensor: Tensor, which: Iterable[bool]) -> list[Labels]:
        """The labels of those axes of a tensor that are asked for."""
        first, shape = self._first.get((id(tensor), -1), ()), self._shape(tensor) or ()
        return [np.arange(s, s + n) for s, n, wanted in zip(first, shape, which, strict=False) if wanted]

    def _freeze_tensor(self, tensor: Tensor, why: str) -> None:
        for labels in self._axes(tensor, [True] * self.rank(tensor)):
            self._said.freeze(labels, why)
        self._freeze_sizes(tensor, why)

    def _freeze_sizes(self, tensor: Tensor, why: str, but: Collection[dims.Size] = ()) -> None:
        """The axes whose lengths a tensor holds must keep them."""
        for entry in self._traced.get(id(tensor), ()):
            if isinstance(entry, dims.Size) and entry not in but:
                self._said.freeze(self._axis_of(entry), why)

    def _freeze_captured(self, body: Graph, why: str) -> None:
        for tensor in (*(t for node in body.nodes for t in reads(node)), *body.outputs):
            if not is_constant(tensor):
                self._freeze_tensor(tensor, why)

    def _freeze_boundary(self, graph: Graph) -> None:
        for what, tensors in (("an input", graph.inputs), ("an output", graph.outputs)):
            for tensor in tensors:
                self._freeze_tensor(tensor, f"'{tensor.name}' is {what} of the model")

    def _operand(self, node: Node | Graph, slot: int, tensor: Tensor) -> Operand | None:
        shape = None if tensor.is_empty() else self._shape(tensor)
        if shape is None:
            return None
        key = _key(node, slot, tensor)
        if key not in self._first:
            self._first[key] = self._said.fresh(shape)
            if is_constant(tensor):
                # A length of 1 is stretched to any other, and says nothing about it.
                ranges = zip(self._first[key], shape, strict=True)
                self._said.fixed += [np.arange(start, start + n) for start, n in ranges if n > 1]
        return Operand(tensor, slot, shape, self._first[key])

    def _labels(self, node: Node | Graph, slot: int, tensor: Tensor, axis: int) -> Labels:
        shape, first = self._shape(tensor), self._first.get(_key(node, slot, tensor))
        if shape is None or first is None:
            return np.zeros(0 if shape is None else shape[axis], np.intp)
        return Operand(tensor, slot, shape, first)[axis]

    def _axis_of(self, size: dims.Size) -> Labels:
        start, n = self._first[id(size.tensor), -1][size.axis], self._shapes[size.tensor.name][size.axis]
        return np.arange(start, start + n)

    def numbers(self, tensor: Tensor) -> dims.Entries | None:
        """What is known of the numbers in a small integer tensor; None where not even their count is."""
        return dims.entries(tensor, self._traced, self._shapes)

    def _shape(self, tensor: Tensor) -> tuple[int, ...] | None:
        return tuple(tensor.shape) if is_constant(tensor) else self._shapes.get(tensor.name)


def _applied(rules: Mapping[str, Rule], site: Site, operands: Iterable[Operand]) -> str:
    """Apply the node's rule. Returns why the axes stay that it did not speak for."""
    rule = rules.get(site.node.kind)
    if rule is None:
        return "has no rule"
    try:
        rule(site)
    except (IndexError, TypeError, ValueError):  # what it had stated by then ties too much at worst
        site.sizes.clear()
        for operand in operands:
            operand.spoken.clear()
        return "has a form that its rule does not know"
    return "needs them all"


def _read(node: Node | Graph) -> list[Tensor]:
    """A body is to its surroundings what they are to it: it reads what it gives back."""
    return list(node.inputs if isinstance(node, Node) else node.outputs)


def _made(node: Node | Graph) -> list[Tensor]:
    return list(node.outputs if isinstance(node, Node) else node.inputs)


def _key(node: Node | Graph, slot: int, tensor: Tensor) -> _Key:
    """Where a tensor's labels are kept: by tensor, or by use for small constants."""
    return (id(node), slot) if is_constant(tensor) and len(tensor.shape) < 2 else (id(tensor), -1)
