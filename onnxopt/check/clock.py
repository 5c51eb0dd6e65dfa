"""How fast a model is on a target whose clock means something, and whether that is fast enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxopt.check.gates import MIN_SPEEDUP, Gates, fast_enough
from onnxopt.graph.signature import Feed
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.target import Target
from onnxopt.runtime.timing import Timing
from onnxopt.targets.spec import Wanted
from onnxopt.targets.way import Way

# Seconds for one round, how many rounds, and runs that are not counted.
_ROUND_S, _ROUNDS, _WARM_UP = 1.2, 3, 2
_MIN_PAIRS, _MAX_PAIRS = 5, 300
# A time limit is for what hangs: so much longer than it should take, and the start.
_PATIENCE, _START_S = 10, 120


def time_limit(seconds: float) -> float:
    """Seconds after which a job that should take so many has gone wrong."""
    return _START_S + _PATIENCE * seconds


def time_there(paths: tuple[Path, Path], way: Way, feed: Feed, pair_s: float, *, threads: int) -> Timing:
    """Original and candidate in turn on one feed, in rounds that load both anew; ``pair_s`` is what both may take.

    Raises ExecutionError and TargetError as ``way.run`` does.
    """
    runs = _WARM_UP + int(np.clip(_ROUND_S / pair_s, _MIN_PAIRS, _MAX_PAIRS))
    limit = time_limit(runs * pair_s)
    job = Job(models=paths, feeds=(feed,), threads=threads, runs=runs, keep=False, timeout_s=limit)
    rounds = []
    for _ in range(_ROUNDS):
        original, candidate = (1e3 * np.array(run.run_s[_WARM_UP:]) for run in way.run(job).runs)
        rounds.append(Timing.of(original, candidate))
    return Timing.over(rounds)


def too_slow(
    timing: Timing, wanted: Wanted, gates: Gates, *, quantized: bool, made_for: bool
) -> tuple[list[str], list[str]]:
    """(what fails, what is only said) of a speed there.

    A speed above the original's that was asked for is asked of devices; masked processors must only not be slower.
    Where no integers are faster than float, that is only said, unless the model is ``made_for`` that processor.
    """
    asked = gates.min_speedup
    if wanted.address is None and asked is not None and asked >= MIN_SPEEDUP:
        gates = replace(gates, min_speedup=None)
    if fast_enough(gates, timing.speedup, timing.speedup_high):
        return [], []
    line = f"{timing.speedup:.2f} times as fast as the original"
    if quantized and _without_integer_kernels(wanted.target):
        line += ": processors without AVX2 have no integer kernels that are faster than float"
        return ([line], []) if made_for else ([], [line])
    return [line], []


def _without_integer_kernels(target: Target) -> bool:
    return target.architecture == "x86-64" and "avx2" not in target.instructions
