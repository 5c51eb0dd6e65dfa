"""What a pass tried, as points of a plot: what each trial costs in time, and how near its answers are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxopt.report import words
from onnxopt.report.plot import Plot, plot


@dataclass(frozen=True)
class Trial:
    """``front``: no other trial is both quicker and nearer. ``chosen``: it became the result."""

    name: str
    cost: float
    sqnr_db: float
    front: bool
    chosen: bool


@dataclass(frozen=True)
class Trials:
    """``cost`` says what is on the axis across; trials come in its order."""

    cost: str
    trials: tuple[Trial, ...]

    @property
    def layout(self) -> Plot:
        """Where the trials lie; up is the signal to noise in dB."""
        return plot([(t.cost, t.sqnr_db) for t in self.trials], from_zero=False)


def trials(figures: Mapping[str, Any]) -> Trials | None:
    """The figures of a step that tell of two trials or more; None where none do."""
    try:
        return _mixes(figures) or _forms(figures)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _mixes(figures: Mapping[str, Any]) -> Trials | None:
    """Layers left float for the answers' sake: each costs time."""
    left = figures.get("left_float", ())
    paid = sum(max(float(layer["lost_ms"]), 0.0) for layer in left)
    found = [(int(n), float(ms), float(db)) for n, ms, db in figures.get("trials", ())]
    same = [trial for trial in found if trial[0] == len(left)]
    best = min(same, key=lambda trial: abs(trial[1] - paid), default=None)
    named = [(f"{words.many(n, 'layer')} float", ms, db, (n, ms, db) == best) for n, ms, db in found]
    return _made("milliseconds that layers left float take longer", named)


def _forms(figures: Mapping[str, Any]) -> Trials | None:
    """Static and dynamic scales, where both were timed."""
    forms = {k: v for k, v in figures.get("forms", {}).items() if isinstance(v, Sequence) and not isinstance(v, str)}
    timed = [(name, float(speed), float(db)) for name, (speed, db) in forms.items() if speed]
    named = [(f"{name} scales", 1 / speed, db, name == figures.get("activations")) for name, speed, db in timed]
    return _made("time of one run, of the original's", named)


def _made(cost: str, found: Sequence[tuple[str, float, float, bool]]) -> Trials | None:
    known = sorted({t for t in found if math.isfinite(t[1]) and math.isfinite(t[2])}, key=lambda t: (t[1], -t[2], t[0]))
    if len(known) < 2:
        return None
    best, made = -math.inf, []
    for name, at, db, chosen in known:
        made.append(Trial(name, at, db, db > best, chosen))
        best = max(best, db)
    return Trials(cost, tuple(made))
