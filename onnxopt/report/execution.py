"""What the runtime executes of a model: frozen values, without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Runs: TypeAlias = Literal["integer", "float", "folded"]


@dataclass(frozen=True)
class Product:
    """A convolution, matrix product, recurrent cell or attention of the model, and the ``kernel`` that computes it.

    ``runs`` is ``folded`` where nothing is left to execute. ``share`` is that of the model's known MACs; None where its
    ``macs`` are not known. ``why`` it is float, or what is wrong with its integer kernel, and what would ``mend`` it.
    """

    node: str
    op: str
    runs: Runs
    kernel: str
    macs: int | None
    share: float | None
    why: str
    mend: str


@dataclass(frozen=True)
class Step:
    """A QuantizeLinear or DequantizeLinear of the model. ``left``: it is executed, not a part of another kernel."""

    node: str
    op: str
    left: bool


@dataclass(frozen=True)
class Execution:
    """One model by one set of ``rules``. ``integer_share`` is that of the MACs which integer kernels do, of those that
    are known (None: of none); ``uncounted`` products have unknown ones. ``quantizations`` and ``dequantizations`` are
    those left in what is executed; ``operators`` counts all of that by type."""

    path: str
    rules: str
    versions: Mapping[str, str]
    integer_share: float | None
    integer: int
    islands: int
    folded: int
    uncounted: int
    quantizations: int
    dequantizations: int
    operators: Mapping[str, int]
    products: tuple[Product, ...]
    steps: tuple[Step, ...]
