"""Integers only where they are quicker here, at the batch that is run: built, measured, placed anew, judged.

A table of times chooses what to try first. What the runtime needs for each node is then measured in both forms, and
decides anew, until nothing changes. In the end the whole models are run in turns, and the quickest wins: the sum of
the parts only proposes.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Figure, Skip, label
from onnxopt.errors import ExecutionError
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Feed
from onnxopt.quantization.candidate import Builder, Candidate
from onnxopt.quantization.times import Times
from onnxopt.runtime.profile import profile
from onnxopt.runtime.session import Session
from onnxopt.runtime.timing import Timing, interleave

# How often measured times place anew; and how much dearer integers are taken to be where they gain less than this, as
# the sum of the parts was too hopeful of the whole.
_ROUNDS = 3
_CAUTION = (1.3, 2.0)
_CLEAR_GAIN = 1.1
_TIMING_ROUNDS = 3
_TIMING_S = 0.3
_MIN_PAIRS = 3
# What timing cannot tell; and what a candidate with less in integers must gain over one with more.
_RESOLUTION = 0.01
_GAIN = 1.02
# At float's speed, integers are worth their rounding if constants shrink to this.
_SMALLER = 0.9


@dataclass(frozen=True)
class _Tried:
    candidate: Candidate
    timing: Timing
    times: Times


@dataclass(frozen=True)
class PayOff:
    """The quickest ``candidate`` (None: floats are), the ``times`` that it was placed by, its speed over the original,
    and what a report should tell."""

    candidate: Candidate | None
    times: Times
    speedup: float
    skips: tuple[Skip, ...]
    figures: dict[str, Figure]


def pay_off(builder: Builder, first: Candidate, original: Model, context: Context) -> PayOff:
    """Find what pays, beginning with the builder's ``first`` candidate; ``original`` is what must not be slower.

    Measures on the context's first ``latency_batch`` samples. Raises ExecutionError when a model fails on them.
    """
    return _Search(builder, original, context).run(first)


def speed(original: Model, candidate: Model, context: Context) -> Timing:
    """Both run in turns, on the context's first ``latency_batch`` samples."""
    feed = next(iter(context.dataset.batches(context.latency_batch, stop=context.latency_batch)))
    return _timed(original, candidate, feed, context.threads)


def loses(timing: Timing, original: Model, candidate: Candidate) -> bool:
    """Is a candidate slower than the original, or as quick and hardly smaller?"""
    smaller = candidate.model.constant_bytes() < _SMALLER * original.constant_bytes()
    return timing.speedup < (1 - _RESOLUTION if smaller else _GAIN)


def interval(timing: Timing) -> list[float]:
    """Median, low and high end of a speed, for a report."""
    return [round(x, 3) for x in (timing.speedup, timing.speedup_low, timing.speedup_high)]


def _timed(original: Model, candidate: Model, feed: Feed, threads: int) -> Timing:
    rounds = []
    for _ in range(_TIMING_ROUNDS):
        floats, integers = (Session(m, threads=threads) for m in (original, candidate))
        rounds.append(interleave(floats, integers, feed, budget_s=_TIMING_S, min_pairs=_MIN_PAIRS))
    return Timing.over(rounds)


class _Search:
    def __init__(self, builder: Builder, original: Model, context: Context) -> None:
        self.builder, self.original, self.threads = builder, original, context.threads
        self.feed: Feed = next(iter(context.dataset.batches(context.latency_batch, stop=context.latency_batch)))
        self.batch = context.latency_batch
        self.times = Times().with_floats(profile(builder.plain, self.feed, threads=self.threads).nodes)
        self.tried: list[_Tried] = []
        self.seen: set[frozenset[str]] = set()

    def run(self, first: Candidate) -> PayOff:
        candidate: Candidate | None = first
        times = self.builder.times
        for _ in range(_ROUNDS):
            if candidate is None or not self._measure(candidate, times) or self._best().candidate is not candidate:
                break
            times = self.times
            candidate = self._build(times, first)
        for caution in _CAUTION:
            if self._best().timing.speedup >= _CLEAR_GAIN:
                break
            times = self.times.dearer(caution)
            if (candidate := self._build(times, first)) is not None:
                self._measure(candidate, times)
        best = self._best()
        return self._nothing() if self._loses(best) else self._chosen(best, first)

    def _build(self, times: Times, first: Candidate) -> Candidate | None:
        try:
            built = self.builder.build(first.left_out, times)
        except ExecutionError:  # this placement does not load; the first does
            return None
        return built if isinstance(built, Candidate) else None

    def _measure(self, candidate: Candidate, times: Times) -> bool:
        """Time a candidate, which was placed by ``times``, and its parts; False for one that is known."""
        units = frozenset(label(u.node) for u in candidate.placement.units)
        if units in self.seen:
            return False
        self.seen.add(units)
        found = profile(candidate.model, self.feed, threads=self.threads)
        self.times = self.times.with_integers(candidate.placement, found.nodes)
        timing = _timed(self.original, candidate.model, self.feed, self.threads)
        self.tried.append(_Tried(candidate, timing, times))
        return True

    def _best(self) -> _Tried:
        """The quickest; of two that are about as quick, the one with more layers in integers."""
        worth = [t for t in self.tried if not self._loses(t)] or self.tried
        best, *others = sorted(worth, key=lambda t: -len(t.candidate.layers))
        for other in others:
            if other.timing.speedup > best.timing.speedup * _GAIN:
                best = other
        return best

    def _loses(self, tried: _Tried) -> bool:
        return loses(tried.timing, self.original, tried.candidate)

    def _nothing(self) -> PayOff:
        timing = max((t.timing for t in self.tried), key=lambda t: t.speedup)
        why = f"left float: as integers it would run {timing.speedup:.2f} times as fast at batch {self.batch}"
        if timing.speedup >= 1 - _RESOLUTION:
            why += ", and be hardly smaller"
        figures: dict[str, Figure] = {"speedup": round(timing.speedup, 3)}
        return PayOff(None, self.times, timing.speedup, (Skip("model", why),), figures)

    def _chosen(self, best: _Tried, first: Candidate) -> PayOff:
        undone = [layer for layer in first.layers if layer not in best.candidate.layers]
        timing = best.timing
        figures: dict[str, Figure] = {
            "speedup": interval(timing),
            "speedup_tried": [round(t.timing.speedup, 3) for t in self.tried],
            "undone": list[object](undone),
        }
        return PayOff(best.candidate, best.times, timing.speedup, best.candidate.skips, figures)
