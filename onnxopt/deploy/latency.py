"""How long one sample takes, and whether the model is at least as fast as the one that it was made from."""

from __future__ import annotations

import numpy as np

from onnxopt.check.gates import Gates, fast_enough
from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
from onnxopt.deploy.trial import TIME_LIMIT_S
from onnxopt.report import words
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.session import Session
from onnxopt.runtime.timing import interleave
from onnxopt.targets.find import find_way
from onnxopt.targets.spec import one_target
from onnxopt.targets.way import Unavailable

_NAME = "latency"
_BUDGET_S = 0.5
_LEAST_RUNS, _MOST_RUNS = 7, 200
# The first runs of a session allocate and fill caches.
_WARM_UP = 2
# Nobody would notice less.
_NOTICED_MS = 0.01


def check_latency(subject: Subject, policy: Policy) -> list[Finding]:
    """The median of runs of the first sample in a process of its own, and the speed beside the reference's.

    Raises SpecError for what is not one target, ExecutionError and TargetError where it fails there.
    """
    if subject.trial.answer is None:
        return subject.trial.instead(_NAME)
    return [_median(subject, policy), *_beside(subject, policy)]


def _median(subject: Subject, policy: Policy) -> Finding:
    wanted, most = one_target(policy.latency.target), policy.latency.max_ms
    way = find_way(wanted)
    if isinstance(way, Unavailable):
        return Finding(_NAME, "not run", f"{wanted.name} is not available: {way}", limit=most)
    if not way.timed:
        return Finding(_NAME, "not run", f"a clock says nothing of {wanted.name} when it is {way.how}", limit=most)
    once = max(subject.trial.ran().runs[0].run_s[-1], 1e-6)
    runs = int(np.clip(_BUDGET_S / once, _LEAST_RUNS, _MOST_RUNS))
    job = Job(
        models=(subject.path,),
        feeds=(subject.trial.feed,),
        threads=policy.latency.threads,
        runs=runs,
        keep=False,
        timeout_s=TIME_LIMIT_S,
    )
    median = float(np.median(way.run(job).runs[0].run_s[_WARM_UP:])) * 1000
    threads = words.many(policy.latency.threads, "thread")
    took = f"one sample takes {words.milliseconds(median)} with {threads} on {wanted.name}"
    if most is None:
        return Finding(_NAME, "not run", f"{took}; no limit is given", median, remedy="give [latency] max-ms")
    why = f"{took}, {most:g} ms allowed"
    if median <= most:
        return Finding(_NAME, "passed", why, median, most)
    return Finding(_NAME, "failed", why, median, most, remedy="optimize it for this processor, or give it more threads")


def _beside(subject: Subject, policy: Policy) -> list[Finding]:
    """Slower than its reference for certain, and by what could be noticed: then all that was done to it cost speed."""
    reference = policy.accuracy.reference
    if reference is None:
        return []
    threads = policy.latency.threads
    original, other = (Session(path, threads=threads) for path in (reference, subject.path))
    timing = interleave(original, other, subject.trial.feed, budget_s=_BUDGET_S)
    lost = float(np.median(timing.candidate_ms) - np.median(timing.reference_ms))
    slower = not fast_enough(Gates(), timing.speedup, timing.speedup_high) and lost > _NOTICED_MS
    span = f"{timing.speedup_low:.2f} to {timing.speedup_high:.2f}"
    why = f"{timing.speedup:.2f} times as fast as the reference on this machine ({span})"
    if not slower:
        return [Finding(_NAME, "passed", why, timing.speedup, 1.0)]
    remedy = "deploy the reference, or see 'audit' for what executes as float between integers"
    return [Finding(_NAME, "failed", why, timing.speedup, 1.0, remedy=remedy)]
