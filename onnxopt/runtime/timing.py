"""Two models timed against each other: run in turns, in one process, so that what disturbs one disturbs both."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import comb

import numpy as np

from onnxopt.graph.signature import Array, Feed
from onnxopt.runtime.session import Session

_MAX_PAIRS = 1000
_WARM_UP_RUNS = 3


@dataclass(frozen=True)
class Timing:
    """Paired times in ms, ``reference_ms[i]`` taken right before or after ``candidate_ms[i]``.

    ``speedup`` is the median of the paired ratios reference / candidate; ``speedup_low`` and ``speedup_high`` are the
    ends of its 95 % confidence interval.
    """

    reference_ms: Array
    candidate_ms: Array
    speedup: float
    speedup_low: float
    speedup_high: float

    @classmethod
    def of(cls, reference_ms: Array, candidate_ms: Array) -> Timing:
        """What paired times tell."""
        ratios = np.sort(reference_ms / candidate_ms)
        rank = _rank(len(ratios))
        ends = float(ratios[rank]), float(ratios[len(ratios) - 1 - rank])
        return cls(reference_ms, candidate_ms, float(np.median(ratios)), *ends)

    @classmethod
    def over(cls, rounds: Sequence[Timing]) -> Timing:
        """Several rounds as one: all times, the median of the speedups, and the hull of the intervals."""
        return cls(
            np.concatenate([r.reference_ms for r in rounds]),
            np.concatenate([r.candidate_ms for r in rounds]),
            float(np.median([r.speedup for r in rounds])),
            min(r.speedup_low for r in rounds),
            max(r.speedup_high for r in rounds),
        )


def interleave(
    reference: Session, candidate: Session, feed: Feed, *, budget_s: float = 3.0, min_pairs: int = 5
) -> Timing:
    """Time both on the same feed for about ``budget_s`` seconds: at least ``min_pairs`` pairs, at most a thousand.

    The order alternates (A B, B A, ...) and the garbage collector rests. Warm-up is not counted, and takes a fifth of
    the budget at most. Raises ExecutionError when a model fails on the feed.
    """
    _warm_up((reference, candidate), feed, budget_s / 5)
    times: list[tuple[int, int]] = []
    end = time.perf_counter() + budget_s
    with _no_garbage_collection():
        while len(times) < min_pairs or (len(times) < _MAX_PAIRS and time.perf_counter() < end):
            if len(times) % 2:
                late = _run(candidate, feed)
                times.append((_run(reference, feed), late))
            else:
                times.append((_run(reference, feed), _run(candidate, feed)))
    reference_ms, candidate_ms = np.array(times, np.float64).T / 1e6
    return Timing.of(reference_ms, candidate_ms)


def seconds(session: Session, feed: Feed, *, budget_s: float = 0.5) -> float:
    """The shortest time of a run, after some to warm up: what else the machine does only ever adds."""
    _warm_up((session,), feed, budget_s / 5)
    times: list[int] = []
    end = time.perf_counter() + budget_s
    with _no_garbage_collection():
        while len(times) < 5 or (len(times) < _MAX_PAIRS and time.perf_counter() < end):
            times.append(_run(session, feed))
    return min(times) / 1e9


def _run(session: Session, feed: Feed) -> int:
    started = time.perf_counter_ns()
    session.run(feed)
    return time.perf_counter_ns() - started


def _warm_up(sessions: Sequence[Session], feed: Feed, budget_s: float) -> None:
    """The first run allocates, the next fill caches; slow models get just the first."""
    started = time.perf_counter()
    for _ in range(_WARM_UP_RUNS):
        for session in sessions:
            session.run(feed)
        if time.perf_counter() - started > budget_s:
            break


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _rank(n: int) -> int:
    """Counted from either end of ``n`` sorted values: the rank that bounds the median with 95 % confidence.

    The number of values below the median is binomial with p = 1/2: take the largest rank r with P(below <= r) <= 2.5 %.
    Under six values there is none, and the extremes have to do (94 % for five).
    """
    total, below, rank = 2**n, 0, 0
    for r in range(n // 2):
        below += comb(n, r)
        if 40 * below > total:
            break
        rank = r
    return rank
