"""What a model is made of, and what passes could do to it: frozen values, without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxopt.graph.cost import OperatorCost
from onnxopt.report.cut import Stays, Tied


@dataclass(frozen=True)
class Prospect:
    """What one pass, with its default options, would do: places changed, and (node, reason) left alone.

    ``exact``: it keeps the results. ``failed`` says why it could not be tried; empty if it could.
    """

    spec: str
    exact: bool
    changed: int
    skips: tuple[tuple[str, str], ...] = ()
    failed: str = ""


@dataclass(frozen=True)
class Coupled:
    """Who is tied to whom, before anything is cut: groups of channels, and what each reason to stay costs."""

    groups: tuple[Tied, ...]
    frozen: tuple[Stays, ...]


@dataclass(frozen=True)
class Inspection:
    """A model at a glance. ``inputs`` and ``outputs`` as ``x: float32[N,3,32,32]``; ``opsets`` by domain.

    ``bytes`` are those of the weights; MACs are those of one sample (None: not to be counted). ``operators`` come with
    the most MACs first. ``coupling`` is None where it was not asked for.
    """

    path: str
    producer: str
    opsets: Mapping[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    total: OperatorCost
    operators: tuple[OperatorCost, ...]
    passes: tuple[Prospect, ...]
    notes: tuple[str, ...] = ()
    coupling: Coupled | None = None
