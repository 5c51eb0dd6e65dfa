"""The whole of quantization: which form, what pays, what repairs, what must stay float.

    static or dynamic scales -> what is quicker here -> repairs -> floats where answers need them -> learned rounding

Every step is tried on samples that calibration has not seen, and kept only if it helps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Figure, Skip, label
from onnxopt.errors import ExecutionError
from onnxopt.graph.model import Model
from onnxopt.quantization import dynamic_eligible
from onnxopt.quantization.candidate import Builder, Candidate, Settings
from onnxopt.quantization.eligible import Reasons, is_layer
from onnxopt.quantization.equalization import equalize
from onnxopt.quantization.judge import Judge, hold_back
from onnxopt.quantization.mixed import SAMPLES as GOAL_SAMPLES
from onnxopt.quantization.mixed import Goal, Mixed, meet, mix
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
# Layers with integer kernels for dynamic scales alone.
_DYNAMIC_ONLY = ("LSTM",)
_SAME = "too few samples to hold any back: what repairs bring is judged on those that ranges were taken from"


@dataclass(frozen=True)
class _Pains:
    """``tune``: how many times the data is run through, in floats, to choose ranges; 0 leaves that out. ``refine``: the
    samples that learn to round."""

    tune: int
    refine: int


_PAINS: dict[Effort, _Pains] = {"fast": _Pains(0, 0), "balanced": _Pains(20, 64), "best": _Pains(200, 256)}
# Every tensor is tried in about seven ranges, each on the half of the model that lies behind it, on average.
_RUNS_A_TENSOR = 3.5
_FEWEST, _MOST = 4, 256


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


@dataclass(frozen=True)
class _Form:
    """Static or dynamic scales: the candidate, its builder, and what was found of it."""

    candidate: Candidate
    builder: Builder
    speedup: float
    sqnr_db: float
    figures: Mapping[str, Figure]

    @property
    def measured(self) -> float | None:
        """The speed, for a report."""
        return None if math.isnan(self.speedup) else round(self.speedup, 3)

    @property
    def value(self) -> float:
        """What it is worth, as the logarithm of a speed. Unusable answers are worth nothing."""
        quality = 0.0 if math.isnan(self.sqnr_db) else _DB_FOR_TIME * min(self.sqnr_db, _ENOUGH_DB)
        speed = 0.0 if math.isnan(self.speedup) else math.log(self.speedup)
        return speed + quality - (self.sqnr_db < _USABLE_DB)


class _Search:
    def __init__(self, plain: Model, original: Model, context: Context, wanted: Wanted, left_out: Reasons) -> None:
        self.wanted, self.original, self.left_out = wanted, original, left_out
        self.measured = wanted.measure and wanted.effort != "fast" and context.target == NATIVE
        judged = wanted.effort != "fast" or wanted.goal.asked
        calibration, held_out = hold_back(context.dataset) if judged else (context.dataset, context.dataset)
        self.context, self.held_out = context.over(calibration), held_out
        self.builder = Builder(plain, self.context, wanted.settings, left_out)
        self.judge = Judge(original, held_out, samples=_JUDGED_ON, threads=context.threads) if judged else None
        if self.judge is not None:
            wanted.goal.short(self.judge.perfect)  # a goal that cannot be judged fails before the work
        self.figures: dict[str, Figure] = {"effort": wanted.effort}
        self.notes = [_SAME] if judged and held_out is calibration else []
        self.bought: list[dict[str, Any]] = []

    def run(self) -> Outcome:
        found = self._form()
        if not isinstance(found, Candidate):
            return Outcome(None, found, self.figures)
        candidate = self._repair(found)
        mixed = self._mixed(candidate)
        candidate = candidate if mixed is None else mixed.candidate
        if (pains := _PAINS[self.wanted.effort].refine) and candidate.placement.units:
            last = candidate
            candidate = self._tried("rounding", last, lambda: self.builder.refine(last, pains))
            if mixed is not None and candidate is not last:
                mixed = mixed.with_other(candidate)
                candidate = mixed.candidate
                self.bought[-1]["kept"] = candidate is not last
        if mixed is not None:
            self.figures |= mixed.figures()
            if not mixed.met:
                self.notes.append(f"the goal is missed by {mixed.short}; this is the nearest that was found")
        # Repairs change numbers, not kernels.
        if self.measured and mixed is not None and mixed.left:
            ratio = speed(self.original, candidate.model, self.context)
            self.figures["speedup"] = interval(ratio)
            if loses(ratio, self.original, candidate):
                why = f"left float: what the answers need in floats leaves {ratio.speedup:.2f} times the speed"
                return Outcome(None, (*candidate.skips, Skip("model", why)), self.figures)
        self.figures["repairs"] = self.bought
        self.figures["notes"] = [*self.notes, *self.builder.notes]
        return Outcome(candidate, candidate.skips, self.figures)

    def _form(self) -> Candidate | tuple[Skip, ...]:
        """The best of the forms that are allowed, placed by what pays on this machine; or why there is none."""
        forms: dict[str, _Form] = {}
        failed: dict[str, tuple[Skip, ...]] = {}
        for name, builder in self._forms():
            try:
                found = self._measured(builder)
            except ExecutionError as error:
                found = (Skip("model", f"left float as a whole, because in integers: {error}"),)
            if isinstance(found, _Form):
                forms[name] = found
            else:
                failed[name] = found
        if len(forms) + len(failed) > 1:
            tried: dict[str, Figure] = {n: [f.measured, _rounded(f.sqnr_db)] for n, f in forms.items()}
            self.figures["forms"] = tried | {n: _of_model(skips) for n, skips in failed.items()}
        if not forms:
            return _joined(failed)
        best = max(forms.values(), key=lambda f: f.value)
        self.builder = best.builder
        self.figures |= best.figures
        self.figures["activations"] = "dynamic" if best.builder.dynamic else "static"
        return best.candidate

    def _measured(self, builder: Builder) -> _Form | tuple[Skip, ...]:
        """A builder's candidate, placed by what pays. Raises ExecutionError where it does not run."""
        candidate = builder.build({})
        if not isinstance(candidate, Candidate):
            return candidate
        ratio, figures = math.nan, dict[str, Figure]()
        if self.measured:
            paid = pay_off(builder, candidate, self.original, self.context)
            if paid.candidate is None:
                self.figures |= paid.figures
                return (*candidate.skips, *paid.skips)
            builder.times = paid.times
            candidate, ratio, figures = paid.candidate, paid.speedup, paid.figures
        sqnr = self.judge(candidate.model).sqnr_db if self.judge is not None else math.nan
        return _Form(candidate, builder, ratio, sqnr, figures)

    def _forms(self) -> Iterator[tuple[str, Builder]]:
        """Static scales, with dynamic ones where there are no others; and dynamic ones wherever there can be."""
        able, unable = dynamic_eligible.choose(self.builder.plain, self.builder.sizes, self.left_out)
        layers = [n for n in self.builder.plain.graph.nodes if is_layer(n)]
        static = {label(n) for n in layers if n.op not in _DYNAMIC_ONLY}
        only = [name for name in able if name not in static]
        # Of those that could have dynamic scales alone: why they have none.
        apart = {label(n): unable[label(n)] for n in layers if n.op in _DYNAMIC_ONLY and label(n) in unable}
        if self.wanted.activations == "static":
            yield "static", self.builder
        elif self.wanted.activations == "dynamic":
            apart |= {n: unable.get(n, "only dynamic scales were asked for") for n in static if n not in able}
            yield "dynamic", self.builder.with_dynamic(able, apart)
        elif self.judge is None:
            dynamic = len(able) > len(static) / 2
            yield "auto", self.builder.with_dynamic(able if dynamic else only, apart)
        else:
            yield "static", self.builder.with_dynamic(only, apart)
            if len(able) > len(only):
                yield "dynamic", self.builder.with_dynamic(able, apart)

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
        tensors = {**candidate.placement.read, **candidate.placement.made}.keys() - self.builder.aligned.keys()
        if not equalize(model, self.context, tensors, self.builder.sizes):
            return None
        self.builder = self.builder.of(model)
        return self._built(candidate)

    def _tuned(self, candidate: Candidate, pains: int) -> Candidate | None:
        tensors = len(set(candidate.placement.roots.values()))
        samples = int(pains * self.context.dataset.count / (_RUNS_A_TENSOR * max(tensors, 1)))
        samples = min(max(samples, _FEWEST), _MOST)
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
        failed = ""
        try:
            repaired = repair()
        except ExecutionError as error:
            repaired, failed = None, str(error)
        after = self.judge(repaired.model).sqnr_db if repaired is not None else before
        kept = repaired is not None and after > before + _WORTH_DB
        seconds = round(time.perf_counter() - began, 2)
        step = {"step": name, "before_db": _rounded(before), "after_db": _rounded(after), "kept": kept}
        self.bought.append(step | {"seconds": seconds} | ({"failed": failed} if failed else {}))
        return repaired if kept and repaired is not None else candidate

    def _mixed(self, candidate: Candidate) -> Mixed | None:
        """Layers left float for what was asked for, or for answers that can be used at all."""
        goal = self.wanted.goal
        if not goal.asked:
            # NaN where no output can be compared.
            if self.judge is None or not self.judge(candidate.model).sqnr_db < _USABLE_DB:
                return None
            goal = Goal(min_sqnr=_USABLE_DB)
        if not candidate.placement.units:
            # Dynamic scales only: nothing is ranked, but the report says whether the goal is met.
            judge = Judge(self.original, self.held_out, samples=GOAL_SAMPLES, threads=self.context.threads)
            return meet(goal, self.builder, candidate, judge, tuple)
        try:
            return mix(goal, self.builder, candidate, self.original, self.held_out, timed=self.measured)
        except ExecutionError as error:
            self.notes.append(f"no layer was left float for the answers' sake: {error}")
            return None


def _joined(failed: Mapping[str, tuple[Skip, ...]]) -> tuple[Skip, ...]:
    """Why no form is left: of each layer the first reason, of the model those of all forms."""
    layers = {s.node: s for skips in reversed(list(failed.values())) for s in reversed(skips) if s.node != "model"}
    whole = {n: s for n, skips in failed.items() for s in skips if s.node == "model"}
    several = len(whole) > 1
    return (*layers.values(), *(replace(s, why=f"{n} scales: {s.why}") if several else s for n, s in whole.items()))


def _of_model(skips: tuple[Skip, ...]) -> str:
    return next((s.why for s in skips if s.node == "model"), "no layer would run in integers")


def _rounded(db: float) -> float:
    return round(db, 2) if math.isfinite(db) else db
