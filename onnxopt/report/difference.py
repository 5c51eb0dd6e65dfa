"""How two models differ: frozen values, without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from onnxopt.report.report import OutputQuality

WeightChange: TypeAlias = Literal["changed", "retyped", "reshaped", "added", "removed"]


@dataclass(frozen=True)
class Field:
    """Something that both have, or one of them: as text, empty where it is not there."""

    what: str
    a: str
    b: str


@dataclass(frozen=True)
class WeightDifference:
    """One constant input of two nodes that belong together, as its type and shape.

    ``retyped`` weights are compared as what they stand for: integers times their scale. ``max_error`` is absolute,
    ``relative_error`` is that over the largest magnitude of the first, ``sqnr_db`` infinite where only the type is
    another. None: shapes differ, or these are no numbers.
    """

    input: int
    change: WeightChange
    a: str
    b: str
    max_error: float | None = None
    relative_error: float | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True)
class Pair:
    """Two nodes that belong together, and how they differ. ``macs`` None: not known; ``bytes`` are of the weights."""

    a: str
    b: str
    op: str
    fields: tuple[Field, ...]
    weights: tuple[WeightDifference, ...]
    macs: tuple[int | None, int | None]
    bytes: tuple[int, int]

    @property
    def same(self) -> bool:
        """Do they compute the same?"""
        return not self.fields and not self.weights


@dataclass(frozen=True)
class Lone:
    """A node that the other model has no counterpart of."""

    node: str
    op: str


@dataclass(frozen=True)
class Size:
    """What a model is in all. ``macs`` of one sample, None where not known."""

    nodes: int
    parameters: int
    weight_bytes: int
    file_bytes: int
    macs: int | None


@dataclass(frozen=True)
class Numbers:
    """What both compute from the same ``samples``: their outputs, and other tensors that both have by name, in the
    order in which the first makes them. ``first`` is the first of all these that is another beyond rounding."""

    samples: int
    outputs: tuple[OutputQuality, ...]
    tensors: tuple[OutputQuality, ...]
    first: str | None


@dataclass(frozen=True)
class Difference:
    """Two models, ``a`` and ``b``. ``same``: the same graph with the same weights, whatever the nodes are called.

    ``header`` differs without changing what is computed, ``interface`` does change it (inputs, outputs, opsets,
    functions). ``renamed`` counts nodes that differ by name alone.
    """

    a: str
    b: str
    same: bool
    versions: Mapping[str, str]
    sizes: tuple[Size, Size]
    header: tuple[Field, ...] = ()
    interface: tuple[Field, ...] = ()
    pairs: tuple[Pair, ...] = ()
    removed: tuple[Lone, ...] = ()
    added: tuple[Lone, ...] = ()
    renamed: int = 0
    numbers: Numbers | None = None
    notes: tuple[str, ...] = field(default=())
