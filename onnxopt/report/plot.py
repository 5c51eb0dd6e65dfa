"""A curve laid out for drawing: where its points and ticks lie on a canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

WIDTH, HEIGHT = 640, 240
# Room for the ticks' texts.
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 26, 12, 44
_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A round number on an axis, and where it stands."""

    at: float
    value: float


@dataclass(frozen=True)
class Plot:
    """Points in pixels from the upper left corner, ticks on both axes, and the frame they stand in."""

    points: tuple[tuple[float, float], ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


def plot(points: Sequence[tuple[float, float]], *, from_zero: bool = True) -> Plot:
    """Lay out finite points; both axes begin at 0 or below, or else near the least values."""
    xs, ys = (_ticks([p[i] for p in points], from_zero) for i in (0, 1))

    def place(value: float, ticks: Sequence[float], start: float, end: float) -> float:
        return round(start + (end - start) * (value - ticks[0]) / (ticks[-1] - ticks[0]), 2)

    def x_of(value: float) -> float:
        return place(value, xs, Plot.left, Plot.right)

    def y_of(value: float) -> float:
        return place(value, ys, Plot.bottom, Plot.top)

    return Plot(
        points=tuple((x_of(x), y_of(y)) for x, y in points),
        across=tuple(Tick(x_of(x), x) for x in xs),
        up=tuple(Tick(y_of(y), y) for y in ys),
    )


def _ticks(values: Sequence[float], from_zero: bool) -> list[float]:
    """Round numbers in even steps from 0 (or below, or at most the least value) to at least the largest value."""
    low, high = (min(0.0, *values), max(0.0, *values)) if from_zero else (min(values), max(values))
    if high - low <= 0 or high - low == float("inf"):
        high = low + 1
    raw = (high - low) / _TICKS
    power = 10.0 ** floor(log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [step * i for i in range(first, max(last, first + 1) + 1)]
