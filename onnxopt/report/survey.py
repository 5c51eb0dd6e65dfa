"""What quantization would do to a model, told before it is done: frozen values, without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerDamage:
    """One layer. ``share`` is that of the model's MACs.

    ``sqnr_db``, ``agreement`` and ``accuracy_drop`` are those of the model in which it alone runs in integers;
    ``gain_db`` is by how much the all-integer model gets better with it alone float, and ``lost_ms`` what a run then
    takes longer. None: could not be told.
    """

    layer: str
    op: str
    share: float | None
    sqnr_db: float
    gain_db: float | None
    agreement: float | None
    accuracy_drop: float | None
    lost_ms: float


@dataclass(frozen=True)
class Ranking:
    """The layers of a model, the most harmful first; ``sqnr_db`` is that of the model with all of them in integers.
    ``skips`` are (node, reason) of layers that stay float."""

    path: str
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    samples: int
    sqnr_db: float
    layers: tuple[LayerDamage, ...]
    skips: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outlook:
    """What one pass would do: places changed, (code, node, reason) left alone, figures by name; and why it would gain
    nothing, if so. ``asked`` is False for a pass that cannot tell before it runs."""

    spec: str
    asked: bool
    changed: int = 0
    skips: tuple[tuple[str, str, str], ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    refusal: str = ""


@dataclass(frozen=True)
class DryRun:
    """A run that was planned, not made."""

    path: str
    passes: tuple[Outlook, ...]
    notes: tuple[str, ...] = ()
