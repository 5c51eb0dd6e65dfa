"""The layers that a pass says an error of, the worst first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxopt.report.report import LayerNoise

# Layers that a page draws.
_WORST = 20


@dataclass(frozen=True)
class LayerError:
    """Shares of the worst error drawn, from 0 to 1, and the figure as text. ``before`` None: there is only one."""

    layer: str
    before: float | None
    after: float
    figure: str


@dataclass(frozen=True)
class LayerErrors:
    """What is drawn, its layers, and how many others there are."""

    title: str
    layers: tuple[LayerError, ...]
    others: int


def layer_errors(figures: Mapping[str, Any]) -> list[LayerErrors]:
    """What the figures of a step tell by layer; one of another form is left out: it is another pass's."""
    return [found for found in _found(figures) if found is not None]


def noise_by_layer(layers: Sequence[LayerNoise]) -> LayerErrors | None:
    """What validation found by layer; None where there is nothing or all is equal."""
    rows = [{"layer": noise.tensor, "sqnr_db": noise.sqnr_db} for noise in layers]
    return _harmed("Noise of what layers make, scales of channels left out", rows)


def _found(figures: Mapping[str, Any]) -> Iterator[LayerErrors | None]:
    for name in ("repaired", "layers"):
        yield _repaired("Relative error of each layer, before and after its repair", figures.get(name))
    yield _harmed("What integers would do to each layer that stays float", figures.get("left_float"))


def _repaired(title: str, value: Any) -> LayerErrors | None:
    """Records with the ``layer`` and its relative error ``before`` and ``after``."""
    try:
        rows = [(str(row["layer"]), float(row["before"]), float(row["after"])) for row in value]
    except (KeyError, TypeError, ValueError):
        return None
    rows = sorted((r for r in rows if math.isfinite(r[1]) and math.isfinite(r[2])), key=lambda r: (-r[2], r[0]))
    most = max((max(before, after) for _, before, after in rows[:_WORST]), default=0.0)
    if most <= 0:
        return None
    drawn = [LayerError(n, max(b, 0) / most, max(a, 0) / most, f"{b:.2g} → {a:.2g}") for n, b, a in rows[:_WORST]]
    return _made(title, drawn, len(rows))


def _harmed(title: str, value: Any) -> LayerErrors | None:
    """Records with the ``layer`` and ``sqnr_db``: drawn is the error's amplitude."""
    try:
        rows = sorted((float(row["sqnr_db"]), str(row["layer"])) for row in value)
    except (KeyError, TypeError, ValueError):
        return None
    rows = [row for row in rows if math.isfinite(row[0])]
    worst = rows[0][0] if rows else 0.0
    drawn = [LayerError(name, None, 10 ** ((worst - db) / 20), f"{db:.1f} dB") for db, name in rows[:_WORST]]
    return _made(title, drawn, len(rows))


def _made(title: str, drawn: Sequence[LayerError], known: int) -> LayerErrors | None:
    return LayerErrors(title, tuple(drawn), known - len(drawn)) if drawn else None
