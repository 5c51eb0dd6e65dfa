"""Labels on channels, and statements that two of them are equal or that one must stay.

Every index of every axis of every tensor has a label of its own. What a ``Statements`` has collected is solved at
once, as the connected components of a graph. Label 0 stands for everything that may never go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxopt.graph import dims
from onnxopt.graph.ir import Graph, Node, Tensor, is_constant
from onnxopt.graph.signature import Array

_ROUNDS = 8

Labels: TypeAlias = npt.NDArray[np.intp]
Fold: TypeAlias = Literal["longest", "outer", "inner"]


class Contraction(NamedTuple):
    """A place where channels are summed over and end: input ``slot`` of ``node``, along ``axis``."""

    node: Node
    slot: int
    axis: int


class Choice(NamedTuple):
    """One axis folded into several, or the reverse: one of the several may follow the one, the others are frozen."""

    one: Labels
    several: tuple[Labels, ...]
    why: str


class Statements:
    """All that the rules have said: ``size`` labels, equalities, frozen labels and why, choices still open.

    ``fixed`` are labels of constants, and ``free`` those of axes whose length is not known without running.
    """

    def __init__(self) -> None:
        self.size = 1
        self.starts: list[int] = []
        self.left: list[Labels] = []
        self.right: list[Labels] = []
        self.frozen: list[Labels] = []
        self.why: list[str] = []
        self.fixed: list[Labels] = []
        self.free: list[Labels] = []
        self.choices: list[Choice] = []
        self.joins: list[Labels] = []
        self.contractions: list[Contraction] = []
        self._component: Labels = np.zeros(0, np.intp)
        self._solved = 0

    def fresh(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Labels for a new tensor: the first of each axis, the rest follow it."""
        starts = self.size + np.concatenate(([0], np.cumsum(shape, dtype=np.intp)))
        self.size = int(starts[-1])
        first = tuple(starts[:-1].tolist())
        self.starts += first
        return first

    def equal(self, a: Labels, b: Labels) -> None:
        """Index by index, ``a`` and ``b`` go together. Raises ValueError for different lengths: a wrong rule."""
        if len(a) != len(b):
            raise ValueError(f"a rule ties {len(a)} labels to {len(b)}")
        self.left.append(a)
        self.right.append(b)

    def freeze(self, labels: Labels, why: str) -> None:
        """These stay."""
        self.frozen.append(labels)
        self.why.append(why)

    def solve(self) -> tuple[Labels, Labels]:
        """The component of every label; and for every component, the first statement that freezes it, or -1."""
        # Only what was said since the last time, about what was found then.
        new = np.arange(len(self._component), self.size) - len(self._component) + self._component.max(initial=-1) + 1
        before = np.concatenate([self._component, new])
        left, right = (before[_joined(part[self._solved :])] for part in (self.left, self.right))
        edges = coo_array((np.ones(len(left), bool), (left, right)), (int(before.max()) + 1,) * 2)
        component = np.asarray(connected_components(edges, directed=False)[1], np.intp)[before]
        self._component, self._solved = component, len(self.left)
        none = len(self.why)
        first = np.full(int(component.max()) + 1, none, np.intp)
        statement = np.repeat(np.arange(none), [len(f) for f in self.frozen])
        np.minimum.at(first, component[_joined(self.frozen)], statement)
        return component, np.where(first == none, -1, first)

    def decide(self, fold: Fold) -> None:
        """Freeze the free axes, unless the equalities give them the length of a constant; and settle the choices.

        Of the axes of a choice that could be cut one follows: the longest (of equals, everywhere the same), the
        outermost or the innermost.
        """
        component, frozen = self.solve()
        fixed = np.zeros(len(frozen), bool)
        fixed[component[_joined(self.fixed)]] = True
        free = _joined(self.free)
        free = free[~fixed[component[free]]]
        self.freeze(free, "their number is free")
        component, frozen = self._without_stuck_choices()
        for one, several, why in self.choices:
            able = [k for k, part in enumerate(several) if (frozen[component[part]] < 0).any()]
            if fold == "longest":
                able.sort(key=lambda k: (-len(several[k]), component[several[k]].min()))
            chosen = None if not able else able[-1 if fold == "inner" else 0]
            for k, part in enumerate(several):
                if k == chosen:
                    inner = int(np.prod([len(p) for p in several[k + 1 :]]))
                    self.equal(one, np.resize(np.repeat(part, inner), len(one)))
                else:
                    self.freeze(part, why)
                    frozen[component[part]] = len(self.why) - 1
            if chosen is None:
                self.freeze(one, why)
        self.choices.clear()

    def _without_stuck_choices(self) -> tuple[Labels, Labels]:
        """What ``solve`` finds, after freezing all sides of the choices that have a side frozen already."""
        for _ in range(_ROUNDS):
            component, frozen = self.solve()
            held = [not any((frozen[component[p]] < 0).any() for p in c.several) for c in self.choices]
            held = [h or bool((frozen[component[c.one]] >= 0).all()) for h, c in zip(held, self.choices, strict=True)]
            for one, several, why in (c for c, h in zip(self.choices, held, strict=True) if h):
                self.freeze(np.concatenate([one, *several]), why)
            self.choices = [c for c, h in zip(self.choices, held, strict=True) if not h]
            if not any(held):
                break
        return component, frozen


class Operand:
    """One input or output of a node: its shape and, by axis, its labels. Asking for an axis is speaking for it."""

    __slots__ = ("first", "shape", "slot", "spoken", "tensor")

    def __init__(self, tensor: Tensor, slot: int, shape: tuple[int, ...], first: Sequence[int]) -> None:
        self.tensor = tensor
        self.slot = slot
        self.shape = shape
        self.first = first
        self.spoken: set[int] = set()

    def __getitem__(self, axis: int) -> Labels:
        axis = range(len(self.shape))[axis]
        self.spoken.add(axis)
        return np.arange(self.first[axis], self.first[axis] + self.shape[axis])

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def constant(self) -> bool:
        """Is the value fixed in the model?"""
        return is_constant(self.tensor)

    @property
    def values(self) -> Array | None:
        """The value, where it is fixed."""
        return np.asarray(self.tensor.values) if self.constant else None


@dataclass(frozen=True)
class Site:
    """One node as its rule sees it. ``inputs`` holds None for an input that is left out.

    ``measured`` gives the labels of an axis whose length is read somewhere, ``known_numbers`` what a tensor holds,
    ``within`` what a body of the node is given and what it makes. ``sizes`` are those that the rule has spoken for.
    """

    node: Node
    inputs: list[Operand | None]
    outputs: list[Operand]
    opset: int
    measured: Callable[[dims.Size], Labels]
    known_numbers: Callable[[Tensor], dims.Entries | None]
    within: Callable[[Graph], tuple[list[Operand | None], list[Operand | None]]]
    statements: Statements
    sizes: set[dims.Size] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The node's name, or that of what it makes."""
        return str(self.node.name or next((t.name for t in self.node.outputs if t.name), self.node.op))

    @property
    def y(self) -> Operand:
        """The first output."""
        return self.outputs[0]

    def operands(self) -> list[Operand]:
        """The inputs that are there."""
        return [x for x in self.inputs if x is not None]

    def input(self, slot: int) -> Operand | None:
        """An input, or None when it is left out."""
        return self.inputs[slot] if slot < len(self.inputs) else None

    def output(self, slot: int) -> Operand | None:
        """An output, or None when it is left out."""
        return next((y for y in self.outputs if y.slot == slot), None)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return self.node.attrs.get(name, default)

    def numbers(self, slot: int) -> dims.Entries | None:
        """What is known of the numbers in a small integer input."""
        return self.known_numbers(self.node.inputs[slot])

    def axis_of(self, size: dims.Size) -> Labels:
        """The axis that a number is the length of. To ask is to speak for the number; others must not change."""
        self.sizes.add(size)
        return self.measured(size)

    def equal(self, a: Labels, b: Labels) -> None:
        """Index by index, ``a`` and ``b`` go together."""
        self.statements.equal(a, b)

    def pass_on(self, x: Operand, y: Operand, axes: Iterable[int]) -> None:
        """These axes of ``x`` and ``y`` go together."""
        for k in axes:
            self.equal(x[k], y[k])

    def contract(self, a: Operand, axis: int, b: Operand, other: int) -> None:
        """The products of ``a`` and ``b`` are summed along these axes."""
        self.equal(a[axis], b[other])
        self.ends(*((b, other) if a.constant else (a, axis)))

    def ends(self, x: Operand, axis: int) -> None:
        """The indices along an axis of an input are summed over here."""
        self.statements.contractions.append(Contraction(self.node, x.slot, range(x.rank)[axis]))

    def freeze(self, labels: Labels, why: str) -> None:
        """These stay."""
        self.statements.freeze(labels, f"{self.node.op} '{self.name}' {why}")

    def fresh(self, *lengths: int) -> list[Labels]:
        """Labels for axes that no tensor has: a rule unfolds an axis into them."""
        first = self.statements.fresh(lengths)
        return [np.arange(start, start + n) for start, n in zip(first, lengths, strict=True)]

    def choose(self, one: Labels, several: Sequence[Labels]) -> None:
        """``one`` is the product of ``several``, outermost first: at most one of these can be cut.

        Those of length 1 stay.
        """
        why = "folds them with another axis"
        for part in (p for p in several if len(p) == 1):
            self.freeze(part, why)
        long = tuple(p for p in several if len(p) > 1)
        if len(long) == 1:
            self.equal(one, long[0])
        else:
            self.statements.choices.append(Choice(one, long, f"{self.node.op} '{self.name}' {why}"))


Rule: TypeAlias = Callable[[Site], None]


class Rules(dict[str, Rule]):
    """Rules by operator, those of other domains behind the domain: com.microsoft.FusedConv."""

    def on(self, *ops: str) -> Callable[[Rule], Rule]:
        """Register a function as the rule of these operators."""

        def register(function: Rule) -> Rule:
            self.update(dict.fromkeys(ops, function))
            return function

        return register


def _joined(parts: list[Labels]) -> Labels:
    return np.concatenate(parts) if parts else np.zeros(0, np.intp)
