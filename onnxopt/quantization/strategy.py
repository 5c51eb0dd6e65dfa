"""The whole of quantization: which form, what pays, what repairs, what must stay float.

    static or dynamic scales -> what is quicker here -> repairs -> floats where answers need them -> learned rounding

Every step is tried on samples that calibration has not seen, and kept only if it helps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Figure, Skip
from onnxopt.graph.model import Model
from onnxopt.quantization import dynamic_eligible
from onnxopt.quantization.candidate import Builder, Candidate, Settings
from onnxopt.quantization.eligible import Reasons, is_layer
from onnxopt.quantization.equalization import equalize
from onnxopt.quantization.judge import Judge, hold_back
from onnxopt.quantization.mixed import Goal, Mixed, mix
from onnxopt.quantization.pay_off import interval, loses, pay_off, speed
from onnxopt.runtime.target import NATIVE

Activations = Literal["auto", "static", "dynamic"]
Effort = Literal["fast", "balanced", "best"]

# Below it detectors and token models answer otherwise: layers are left float until it is reached.
_USABLE_DB = 20.0
# Between forms, ten decibels are worth a tenth of the time, up to where no answer changes.
_DB_FOR_TIME, _ENOUGH_DB = 0.01, 45.0
# What a repair must gain to be worth keeping, in dB.
_WORTH_DB = 0.05
_JUDGED_ON = 64


@dataclass(frozen=True)
class _Pains:
    """Samples that steps are measured on; 0 leaves a step out."""

    tune: int
    refine: int


_PAINS: dict[Effort, _Pains] = {"fast": _Pains(0, 0), "balanced": _Pains(16, 64), "best": _Pains(96, 256)}


@dataclass(frozen=True)
class Wanted:
    """What a user asked for. ``measure``: time both forms on this machine."""

    settings: Settings
    activations: Activations = "auto"
    effort: Effort = "balanced"
    goal: Goal = Goal()  # frozen
    measure: bool = True


@dataclass(frozen=True)
class Outcome:
    """The integer model (None: floats are better, ``skips`` say why), and what a report should tell."""

    candidate: Candidate | None
    skips: tuple[Skip, ...]
    figures: dict[str, Figure] = field(default_factory=dict)


def quantize_model(plain: Model, original: Model, context: Context, wanted: Wanted, left_out: Reasons) -> Outcome:
    """Find the best integer form of ``plain``, which is changed; ``original`` is what it is compared with.

    ``left_out`` are the labels of nodes that stay float, with the reason.
    """
    return _Search(plain, original, context, wanted, left_out).run()


class _Search:
    def __init__(self, plain: Model, original: Model, context: Context, wanted: Wanted, left_out: Reasons) -> None:
        self.wanted, self.original, self.left_out = wanted, original, left_out
        self.measured = wanted.measure and wanted.effort != "fast" and context.target == NATIVE
        judged = wanted.effort != "fast" or wanted.goal.asked
        calibration, held_out = hold_back(context.dataset) if judged else (context.dataset, context.dataset)
        self.context, self.held_out = context.over(calibration), held_out
        self.builder = Builder(plain, self.context, wanted.settings, left_out)
        self.judge = Judge(original, held_out, samples=_JUDGED_ON, threads=context.threads) if judged else None
        self.figures: dict[str, Figure] = {"effort": wanted.effort}
        self.bought: list[dict[str, Any]] = []
        self.skips: tuple[Skip, ...] = ()

    def run(self) -> Outcome:
        candidate = self._form()
        if candidate is None:
            return Outcome(None, self.skips, self.figures)
        candidate = self._repair(candidate)
        mixed = self._mixed(candidate)
        if mixed is not None:
            candidate = mixed.candidate
            self.figures |= mixed.figures()
        if self.measured and (self.bought or mixed is not None):
            ratio = speed(self.original, candidate.model, self.context)
            self.figures["speedup"] = interval(ratio)
            if loses(ratio, self.original, candidate):
                why = f"left float: what the answers need in floats leaves {ratio.speedup:.2f} times the speed"
                return Outcome(None, (*candidate.skips, Skip("model", why)), self.figures)
        self.figures["repairs"] = self.bought
        self.figures["notes"] = list(self.builder.notes)
        return Outcome(candidate, (*candidate.skips, *self.skips), self.figures)

    def _form(self) -> Candidate | None:
        """The best of the forms that are allowed, placed by what pays on this machine."""
        best: tuple[float, Candidate, Builder] | None = None
        tried: dict[str, Figure] = {}
        for name, builder in self._forms():
            candidate = builder.build({})
            if not isinstance(candidate, Candidate):
                self.skips = candidate
                continue
            ratio = math.nan
            if self.measured:
                paid = pay_off(builder, candidate, self.original, self.context)
                builder.times = paid.times
                self.figures |= paid.figures
                if paid.candidate is None:
                    self.skips = paid.skips
                    continue
                candidate, ratio = paid.candidate, paid.speedup
            sqnr = self.judge(candidate.model).sqnr_db if self.judge is not None else math.nan
            value = _value(ratio, sqnr)
            tried[name] = [round(ratio, 3), round(sqnr, 2)]
            if best is None or value > best[0]:
                best = (value, candidate, builder)
        if len(tried) > 1:
            self.figures["forms"] = tried
        if best is None:
            return None
        _, candidate, self.builder = best
        self.figures["activations"] = "dynamic" if self.builder.dynamic else "static"
        return candidate

    def _forms(self) -> Iterator[tuple[str, Builder]]:
        """Static scales, with dynamic ones where there are no others; and dynamic ones wherever there can be."""
        able, _ = dynamic_eligible.choose(self.builder.plain, self.builder.sizes, self.left_out)
        static = {n.name for n in self.builder.plain.graph.nodes if is_layer(n) and n.op not in ("LSTM",)}
        only = [name for name in able if name not in static]
        if self.wanted.activations == "static":
            yield "static", self.builder
        elif self.wanted.activations == "dynamic":
            layers = {n: "only dynamic scales were asked for" for n in static if n not in able}
            yield "dynamic", self.builder.with_dynamic(able, layers)
        elif self.judge is None:
            dynamic = len(able) > len(static) / 2
            yield "auto", self.builder.with_dynamic(able if dynamic else only, {})
        else:
            yield "static", self.builder.with_dynamic(only, {})
            if len(able) > len(only):
                yield "dynamic", self.builder.with_dynamic(able, {})

    def _repair(self, candidate: Candidate) -> Candidate:
        """Equalized channels and tuned ranges, where they help."""
        pains = _PAINS[self.wanted.effort]
        if not pains.tune or not candidate.placement.units:
            return candidate
        before = self.builder
        candidate = self._tried("equalization", candidate, lambda: self._equalized(candidate))
        if not self.bought[-1]["kept"]:
            self.builder = before
        known = self.builder.ranges
        current = candidate
        candidate = self._tried("ranges", current, lambda: self._tuned(current, pains.tune))
        if not self.bought[-1]["kept"]:
            self.builder.ranges = known
        return candidate

    def _equalized(self, candidate: Candidate) -> Candidate | None:
        model = self.builder.plain.clone()
        tensors = {**candidate.placement.read, **candidate.placement.made}
        if not equalize(model, self.context, tensors, self.builder.sizes):
            return None
        self.builder = self.builder.of(model)
        return self._built(candidate)

    def _tuned(self, candidate: Candidate, samples: int) -> Candidate | None:
        self.builder.tune(candidate.placement, samples)
        return self._built(candidate)

    def _built(self, candidate: Candidate) -> Candidate | None:
        built = self.builder.build(candidate.left_out)
        return built if isinstance(built, Candidate) else None

    def _tried(self, name: str, candidate: Candidate, repair: Callable[[], Candidate | None]) -> Candidate:
        """The repaired candidate if it is nearer to the original on samples held back; what that bought is noted."""
        assert self.judge is not None
        began = time.perf_counter()
        before = self.judge(candidate.model).sqnr_db
        repaired = repair()
        after = self.judge(repaired.model).sqnr_db if repaired is not None else before
        kept = repaired is not None and after > before + _WORTH_DB
        seconds = round(time.perf_counter() - began, 2)
        self.bought.append(
            {"step": name, "before_db": _rounded(before), "after_db": _rounded(after), "kept": kept, "seconds": seconds}
        )
        return repaired if kept and repaired is not None else candidate

    def _mixed(self, candidate: Candidate) -> Mixed | None:
        """Layers left float for what was asked for, or for answers that can be used at all."""
        goal = self.wanted.goal
        if not goal.asked:
            if self.judge is None or self.judge(candidate.model).sqnr_db >= _USABLE_DB:
                return None
            goal = Goal(min_sqnr=_USABLE_DB)
        if not candidate.placement.units:
            return None
        return mix(goal, self.builder, candidate, self.original, self.held_out)


def _value(speedup: float, sqnr_db: float) -> float:
    """What a form is worth, as the logarithm of a speed. Unusable answers are worth nothing."""
    quality = 0.0 if math.isnan(sqnr_db) else _DB_FOR_TIME * min(sqnr_db, _ENOUGH_DB)
    return (0.0 if math.isnan(speedup) else math.log(speedup)) + quality - (sqnr_db < _USABLE_DB)


def _rounded(db: float) -> float:
    return round(db, 2) if math.isfinite(db) else db
