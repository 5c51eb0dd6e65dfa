"""Just as many layers in floats as the answers need: those that do most harm for each millisecond that they gain.

In floats, not in integers of 16 bits: ONNX Runtime's CPU provider has no kernel for a Conv, Gemm or MatMul of uint16 or
int16 activations (1.31 leaves QuantizeLinear, DequantizeLinear and a float kernel), so that they take longer than
floats and are no more accurate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from onnxopt.core.pass_ import Figure
from onnxopt.core.quality import Quality
from onnxopt.errors import ExecutionError, SpecError
from onnxopt.progress import Track, silent
from onnxopt.quantization.candidate import Builder, Candidate
from onnxopt.quantization.judge import Judge
from onnxopt.quantization.sensitivity import SAMPLES as RANKED_ON
from onnxopt.quantization.sensitivity import Sensitivity, drop, rank

if TYPE_CHECKING:
    from onnxopt.data.dataset import Dataset
    from onnxopt.graph.model import Model

# Samples that the goal is judged on.
SAMPLES = 128
# How often layers are tried in integers again, once the goal is met.
_RETURNS = 16
# Times are not known better than to this share of the whole gain.
_RESOLUTION = 0.002


class Short(NamedTuple):
    """By how much a goal is missed: a share of the samples, and decibels. Zeros where it is met."""

    share: float
    db: float

    def __str__(self) -> str:
        missed = [f"{100 * self.share:.2g} % of the answers"] * (self.share > 0) + [f"{self.db:.1f} dB"] * (self.db > 0)
        return " and ".join(missed)


@dataclass(frozen=True)
class Goal:
    """What is asked for. ``max_drop``: the share of samples by which accuracy may fall, where there are labels, or
    whose top answer may change. ``min_sqnr``: decibels of the worst output."""

    max_drop: float | None = None
    min_sqnr: float | None = None

    @property
    def asked(self) -> bool:
        """Is there any?"""
        return self.max_drop is not None or self.min_sqnr is not None

    def short(self, quality: Quality) -> Short:
        """How far from the goal. Raises SpecError where answers cannot be told."""
        share = db = 0.0
        if self.max_drop is not None:
            if (lost := answers_lost(quality)) is None:
                raise SpecError("quant:max-drop: no output looks like scores of classes; ask for min-sqnr instead")
            share = max(lost - self.max_drop - 1e-9, 0.0)
        if self.min_sqnr is not None:
            db = math.inf if math.isnan(quality.sqnr_db) else max(self.min_sqnr - quality.sqnr_db, 0.0)
        return Short(share, db)


def answers_lost(quality: Quality) -> float | None:
    """Accuracy lost, or else the share of answers that changed; None where there are no answers."""
    lost = drop(quality)
    return 1 - quality.agreement if lost is None and quality.agreement is not None else lost


@dataclass(frozen=True)
class Mixed:
    """The best candidate that was found: ``left`` float are these layers. ``short`` is zero where the goal is met;
    ``judge`` says so. ``tried`` are the candidates that were built: layers left float, what these take longer than in
    integers (milliseconds), decibels."""

    candidate: Candidate
    quality: Quality
    short: Short
    left: tuple[Sensitivity, ...]
    goal: Goal
    judge: Judge
    tried: tuple[tuple[int, float, float], ...] = ()

    @property
    def met(self) -> bool:
        """Is nothing missing?"""
        return not any(self.short)

    def with_other(self, other: Candidate) -> Mixed:
        """The same with another candidate that serves other ends, unless that takes it further from the goal."""
        quality = self.judge(other.model)
        short = self.goal.short(quality)
        return replace(self, candidate=other, quality=quality, short=short) if short <= self.short else self

    @property
    def lost_ms(self) -> float:
        """What the float layers take longer than in integers; one that is quicker in floats makes up for no other."""
        return sum(max(s.lost_ms, 0.0) for s in self.left)

    def figures(self) -> dict[str, Figure]:
        """For a report."""
        return {
            "goal": "met" if self.met else f"missed by {self.short}",
            "reached_db": _rounded(self.quality.sqnr_db),
            "answers_lost": answers_lost(self.quality),
            "judged_on": self.judge.samples,
            "tried": len(self.tried),
            "trials": [[layers, round(ms, 5), _rounded(db)] for layers, ms, db in self.tried],
            "left_float": [
                {"layer": s.layer, "op": s.op, "sqnr_db": _rounded(s.sqnr_db), "lost_ms": round(s.lost_ms, 5)}
                for s in self.left
            ],
        }


def mix(
    goal: Goal, builder: Builder, full: Candidate, reference: Model, held_out: Dataset, *, timed: bool = True
) -> Mixed:
    """Leave layers of a full-integer candidate float until it meets the goal, compared with the reference on samples
    that were held back. ``timed``: what floats cost is measured here, not estimated. Raises SpecError for a goal that
    cannot be judged."""
    context = builder.context

    def ranking() -> tuple[Sensitivity, ...]:
        few = Judge(reference, held_out, samples=RANKED_ON, threads=context.threads)
        return rank(builder, full, few, timed=timed, track=context.track)

    judge = Judge(reference, held_out, samples=SAMPLES, threads=context.threads)
    return meet(goal, builder, full, judge, ranking, context.track)


def meet(
    goal: Goal,
    builder: Builder,
    full: Candidate,
    judge: Judge,
    ranking: Callable[[], Sequence[Sensitivity]],
    track: Track = silent,
) -> Mixed:
    """Leave layers of a full-integer candidate float until the goal is met, and no more than that.

    ``ranking`` tells what each layer does; it is asked for only where the candidate misses the goal. Bisection finds
    how many layers, by damage for each millisecond, it takes; then those that cost most are tried in integers again,
    one by one. Where even the last integer layer misses the goal, the result is the nearest.
    """
    search = _Search(goal, builder, judge)
    search.add(full, ())
    if search.best().met:
        return search.best()
    layers = ranking()
    least = _RESOLUTION * max(sum(abs(s.lost_ms) for s in layers), 1e-9)
    order = sorted(layers, key=lambda s: s.noise / max(s.lost_ms, least), reverse=True)
    for chosen in track(search.bisect(order), "leave layers float", len(order).bit_length()):
        search.attempt(chosen)
    for chosen in track(search.returns(), "return layers to integers"):
        search.attempt(chosen)
    return search.best()


@dataclass
class _Search:
    goal: Goal
    builder: Builder
    judge: Judge
    found: list[Mixed] = field(default_factory=list)
    met: bool = False  # by the last attempt

    def best(self) -> Mixed:
        """The quickest of those that meet the goal, or else the nearest."""
        best = min(self.found, key=lambda m: (m.short, m.lost_ms, len(m.left)))
        return replace(best, tried=tuple((len(m.left), m.lost_ms, m.quality.sqnr_db) for m in self.found))

    def add(self, candidate: Candidate, left: Sequence[Sensitivity]) -> None:
        quality = self.judge(candidate.model)
        self.found.append(Mixed(candidate, quality, self.goal.short(quality), tuple(left), self.goal, self.judge))

    def attempt(self, left: Sequence[Sensitivity]) -> None:
        """Build and judge, where any layer is left in integers: a model without any meets every goal."""
        self.met = False
        try:
            candidate = self.builder.build({s.layer: _why(s) for s in left})
        except ExecutionError:  # this one does not load; what was found before still counts
            return
        if isinstance(candidate, Candidate):
            self.add(candidate, left)
        self.met = not isinstance(candidate, Candidate) or self.found[-1].met

    def bisect(self, order: Sequence[Sensitivity]) -> Iterable[Sequence[Sensitivity]]:
        """Shorter and longer beginnings of the order, until the shortest is found that meets the goal."""
        misses, meets = 0, len(order)
        while meets - misses > 1:
            middle = (misses + meets) // 2
            yield order[:middle]
            if self.met:
                meets = middle
            else:
                misses = middle

    def returns(self) -> Iterable[Sequence[Sensitivity]]:
        """The best without one of its float layers, for each of them, as long as that meets the goal too."""
        best = self.best()
        if not best.met:
            return
        kept = list(best.left)
        for layer in sorted(kept, key=lambda s: -s.lost_ms)[:_RETURNS]:
            fewer = [s for s in kept if s is not layer]
            yield fewer
            if self.met:
                kept = fewer


def _why(layer: Sensitivity) -> str:
    return f"left float for the answers' sake: {layer.sqnr_db:.1f} dB by its integers alone, for {layer.lost_ms:.3g} ms"


def _rounded(db: float) -> float:
    return round(db, 2) if math.isfinite(db) else db
