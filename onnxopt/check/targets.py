"""A candidate on other processors: how good its answers are there, how near to its answers here, how fast.

The float original runs here only: in float32, processors differ by a few units in the last place. The candidate runs
everywhere on the same samples, as many as its time there allows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.check.causes import find_causes
from onnxopt.check.clock import time_limit, time_there, too_slow
from onnxopt.check.departure import Departure, find_departure
from onnxopt.check.gates import Gates, answers
from onnxopt.check.parity import Outputs, apart, compared, estimate, grown, is_coarse
from onnxopt.check.sampling import Sample, affordable, draw
from onnxopt.check.validate import leading
from onnxopt.errors import ExecutionError, TargetError
from onnxopt.graph import io
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Feed
from onnxopt.progress import Track, silent
from onnxopt.report.report import TargetResult, Validation
from onnxopt.runtime.audit import is_quantized
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.session import __version__ as ort_version
from onnxopt.runtime.target import NATIVE, X86_AVX2, X86_AVX512, Target
from onnxopt.targets.counting import Counter, find_counter
from onnxopt.targets.emulated import Emulated
from onnxopt.targets.find import find_way
from onnxopt.targets.native import Native
from onnxopt.targets.spec import Wanted, parse_targets
from onnxopt.targets.way import Unavailable, Way

if TYPE_CHECKING:
    from onnxopt.data.dataset import Dataset

# A way's slowdown is that of the worst: as a rule there is time for more, which the first feed tells.
_PESSIMISM = 10
# What is not worth a process of its own to find out how long it takes.
_CHEAP_S = 2.0
# A run of both models, by the guess above, that is worth waiting for to count its instructions.
_COUNTED_S = 30.0


def default_targets() -> tuple[Wanted, ...]:
    """The machine at hand, the x86 processors whose integer sums may overflow, ARM: those that can be run from here."""
    return tuple(w for w in _default() if not isinstance(find_way(w), Unavailable))


def left_out() -> tuple[str, ...]:
    """Of the default targets those that cannot be run from here, by the reason, a line for each."""
    reasons: dict[str, list[str]] = {}
    for wanted in _default():
        way = find_way(wanted)
        if isinstance(way, Unavailable):
            reasons.setdefault(str(way), []).append(wanted.name)
    return tuple(f"not checked on {', '.join(names)}: {why}" for why, names in reasons.items())


def _default() -> tuple[Wanted, ...]:
    return parse_targets(f"{NATIVE.name},{X86_AVX2.name},{X86_AVX512.name},arm64")


def on_targets(
    reference: Path,
    candidate: Path,
    dataset: Dataset,
    wanted: Sequence[Wanted],
    gates: Gates,
    *,
    native: Validation | None = None,
    threads: int = 1,
    batch: int = 1,
    clock: bool = True,
    made_for: Target = NATIVE,
    track: Track = silent,
) -> tuple[TargetResult, ...]:
    """The candidate on each target: it passes where the gates on answers hold, the error does not grow much over that
    of this machine, and, where the clock means something, it is not slower than the original (``clock`` False: not
    timed at all). ``made_for``: the processor where nothing excuses that.

    ``native`` is the validation on this machine over all samples: where a target can only afford some of them, what it
    changes in those is added to that. Raises ExecutionError when a model cannot be run here.
    """
    ways = [find_way(w) for w in wanted]
    if all(isinstance(way, Unavailable) for way in ways):
        return tuple(_unchecked(w, "", str(way)) for w, way in zip(wanted, ways, strict=True))
    bench, counts = _prepare((reference, candidate), dataset, ways, gates, native, threads, batch)
    bench = replace(bench, clock=clock, made_for=made_for)
    results = []
    for w, way, count in zip(wanted, ways, counts, strict=True):
        for _ in track((w.name,), f"on {w.name}"):
            started = time.perf_counter()
            result = _unchecked(w, "", str(way)) if isinstance(way, Unavailable) else bench.judge(w, way, count)
            results.append(replace(result, seconds=time.perf_counter() - started))
    return tuple(results)


def _prepare(
    paths: tuple[Path, Path],
    dataset: Dataset,
    ways: Sequence[Way | Unavailable],
    gates: Gates,
    native: Validation | None,
    threads: int,
    batch: int,
) -> tuple[_Bench, list[int]]:
    """What all targets share, and how many samples each gets (0 where it cannot be run)."""
    model = io.load(paths[1])
    quantized = is_quantized(model)
    first = next(iter(dataset.batches(batch, stop=batch)))
    size = 1 if dataset.batching.whole else leading(first)
    probe = Native().run(Job(models=paths, feeds=(first,), threads=threads, runs=4, timeout_s=time_limit(60)))
    seconds = tuple(min(run.run_s[1:]) / size for run in probe.runs)
    held = [first, *(outputs for run in probe.runs for outputs in run.outputs)]
    nbytes = sum(value.nbytes for values in held for value in values.values()) // size
    there = [None if isinstance(way, Unavailable) else seconds[1] * _slowdown(way, quantized) for way in ways]
    few = min(affordable(dataset, s, nbytes) for s in there if s is not None)
    counts = [0 if s is None else affordable(dataset, s / _PESSIMISM, nbytes) for s in there]
    sample = draw(dataset, counts, few)
    limit = time_limit(sum(seconds) * sample.dataset.count)
    ran = Native().run(Job(models=paths, feeds=sample.feeds, threads=threads, timeout_s=limit))
    expected, here = (run.outputs or tuple({} for _ in sample.feeds) for run in ran.runs)
    bench = _Bench(
        paths=paths,
        model=model,
        quantized=quantized,
        coarse=is_coarse(model),
        seconds=(seconds[0], seconds[1]),
        first=first,
        batch=size,
        sample=sample,
        expected=expected,
        here=here,
        gates=gates,
        native=native,
        threads=threads,
    )
    return bench, counts


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What all targets share. ``seconds`` that the original and the candidate take here for a sample; ``expected`` and
    ``here`` are what they give for each feed of the sample."""

    paths: tuple[Path, Path]
    model: Model
    quantized: bool
    coarse: bool
    seconds: tuple[float, float]
    first: Feed
    batch: int
    sample: Sample
    expected: Sequence[Outputs]
    here: Sequence[Outputs]
    gates: Gates
    native: Validation | None
    threads: int
    clock: bool = True
    made_for: Target = NATIVE

    def judge(self, wanted: Wanted, way: Way, count: int) -> TargetResult:
        """The candidate on one target, on at least so many samples."""
        try:
            there, feeds, samples, version = self._run(way, count)
        except TargetError as error:
            return _unchecked(wanted, way.how, str(error))
        except ExecutionError as error:
            return TargetResult(wanted.name, way.how, "failed", str(error))
        if not there or not set(there[0]) & set(self.expected[0]):
            return _unchecked(wanted, way.how, "none of its outputs can be brought back to be compared")
        expected = [{k: v for k, v in e.items() if k in t} for e, t in zip(self.expected, there, strict=False)]
        labels = None if self.sample.labels is None else self.sample.labels[:samples]
        quality = compared(feeds, expected, there, labels, samples)
        here = compared(feeds, expected, self.here, labels, samples)
        parity = compared(feeds, self.here, there, None, samples, names=set(expected[0]))
        result = TargetResult(
            target=wanted.name,
            how=way.how,
            status="passed",
            why="",
            samples=samples,
            sqnr_db=quality.sqnr_db,
            native_sqnr_db=here.sqnr_db,
            agreement=quality.agreement,
            native_agreement=here.agreement,
            accuracy=quality.accuracy,
            native_accuracy=here.accuracy,
            parity_db=parity.sqnr_db,
            parity_agreement=parity.agreement,
            parity_error=max((o.max_error for o in parity.outputs if o.equal is None), default=None),
        )
        result, slow, notes = self._timed(self._counted(result, way), wanted, way)
        whole = quality
        if self.native is not None and samples < self.native.samples:
            whole = estimate(self.native, here, quality, samples)
        problems = [g.why for g in answers(self.gates, whole, samples) if g.holds is False]
        problems += grown(here, quality) if self.coarse else apart(self.here, there)
        problems += slow
        if samples < self.sample.total:
            notes.append(f"{samples} of {self.sample.total} samples, as time allows")
        if version != ort_version:
            notes.append(f"ONNX Runtime {version} there, {ort_version} here")
        result = replace(result, status="failed" if problems else "passed", why="; ".join([*problems, *notes]))
        if result.status == "failed" or (self.quantized and way.timed and parity.sqnr_db != np.inf):
            worst = self.sample.worst(self.here, there)
            return self._explained(result, wanted, way, worst)
        return result

    def _run(self, way: Way, count: int) -> tuple[tuple[Outputs, ...], tuple[Feed, ...], int, str]:
        """What the candidate gives there for how many samples of which feeds, and ONNX Runtime's version there.

        The first feed tells how long the others take, unless all take next to nothing: the guess that ``count`` comes
        from may be far too low.
        """
        guess = self.seconds[1] * _slowdown(way, self.quantized)
        few, done = self.sample.first(count if guess * count < _CHEAP_S else 1)
        job = Job(models=(self.paths[1],), feeds=few, threads=self.threads, timeout_s=time_limit(guess * done))
        answer = way.run(job)
        run = answer.runs[0]
        took = sum(run.run_s) / done
        feeds, samples = self.sample.first(max(min(count, affordable(self.sample.dataset, took, 0)), done))
        rest = feeds[len(few) :]
        if not rest:
            return run.outputs, feeds, samples, answer.onnxruntime
        more = way.run(replace(job, feeds=rest, timeout_s=time_limit(max(guess, took) * samples)))
        return (*run.outputs, *more.runs[0].outputs), feeds, samples, answer.onnxruntime

    def _counted(self, result: TargetResult, way: Way) -> TargetResult:
        """The result with the instructions of one run there, where the emulator at hand can count, and soon."""
        counter = find_counter(way) if isinstance(way, Emulated) and self.clock else None
        pair_s = (self.seconds[0] * way.slowdown + self.seconds[1] * _slowdown(way, self.quantized)) * self.batch
        if not isinstance(counter, Counter) or pair_s > _COUNTED_S:
            return result
        job = Job(models=self.paths, feeds=(self.first,), timeout_s=time_limit(2 * pair_s))
        with suppress(ExecutionError, TargetError):  # it is judged without
            original, candidate = counter.count(job)
            return replace(result, instructions=candidate, instructions_reference=original)
        return result

    def _timed(self, result: TargetResult, wanted: Wanted, way: Way) -> tuple[TargetResult, list[str], list[str]]:
        """The result with the times of original and candidate there; what is too slow, and what to say."""
        if not (way.timed and self.clock):
            return result, [], []
        pair_s = (self.seconds[0] * way.slowdown + self.seconds[1] * way.slowdown_int8) * self.batch
        try:
            timing = time_there(self.paths, way, self.first, pair_s, threads=self.threads)
        except (ExecutionError, TargetError) as error:
            return result, [], [f"not timed: {error}"]
        made_for = wanted.target == self.made_for
        slow, notes = too_slow(timing, wanted, self.gates, quantized=self.quantized, made_for=made_for)
        result = replace(
            result,
            latency_ms=float(np.median(timing.candidate_ms)),
            latency_reference_ms=float(np.median(timing.reference_ms)),
            speedup=timing.speedup,
            speedup_low=timing.speedup_low,
            speedup_high=timing.speedup_high,
        )
        return result, slow, notes

    def _explained(self, result: TargetResult, wanted: Wanted, way: Way, feed: Feed) -> TargetResult:
        """The result with the layer that departs first, and for a failure with what causes it."""
        departure: Departure | None = None
        with suppress(ExecutionError, TargetError):  # graphs whose inner tensors cannot be read are still judged
            departure = find_departure(self.model, feed, way, threads=self.threads)
        causes = find_causes(self.model, wanted.target, departure) if result.status == "failed" else ()
        return replace(result, departure=None if departure is None else str(departure), causes=causes)


def _slowdown(way: Way, quantized: bool) -> float:
    return way.slowdown_int8 if quantized else way.slowdown


def _unchecked(wanted: Wanted, how: str, why: str) -> TargetResult:
    return TargetResult(wanted.name, how, "not checked", why)
