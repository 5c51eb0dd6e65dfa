"""The same answer to the same question: in one process, in another one, and with more threads."""

from __future__ import annotations

from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
from onnxopt.deploy.trial import run_bounded
from onnxopt.numerics.tolerance import allowed, deviation
from onnxopt.report import words
from onnxopt.runtime.exchange import Run

_NAME = "determinism"
_REMEDY = "look for operators that draw random numbers, and for sizes that depend on chance"


def check_determinism(subject: Subject, policy: Policy) -> list[Finding]:
    """Equal bits over repeats and processes; over numbers of threads, floats within rounding. Raises ExecutionError."""
    if subject.trial.answer is None:
        return subject.trial.instead(_NAME)
    first = subject.trial.ran().runs[0]
    for threads in policy.determinism.threads:
        feeds = [subject.trial.feed] * policy.determinism.repeats
        again = run_bounded((subject.path,), feeds, threads=threads).runs[0]
        where = f"with {words.many(threads, 'thread')}"
        if other := _other_bits(again):
            return [_failed(f"run again {where}, the same session gives another answer", other)]
        if threads == 1 and (other := _unequal(first, again)):
            return [_failed("another process gives another answer", other)]
        if other := _apart(first, again):
            return [_failed(f"{where} it gives another answer than with 1", other)]
    *others, last = policy.determinism.threads
    counts = " and ".join((*map(str, others), words.many(last, "thread")))
    runs = words.many(policy.determinism.repeats, "run")
    why = f"equal answers in {runs}, in other processes, and with {counts}"
    return [Finding(_NAME, "passed", why)]


def _failed(why: str, outputs: tuple[str, ...]) -> Finding:
    return Finding(_NAME, "failed", f"{why}, to the same sample, in '{outputs[0]}'", places=outputs, remedy=_REMEDY)


def _other_bits(run: Run) -> tuple[str, ...]:
    """Outputs that are not the same in all runs of one session."""
    return tuple(name for name, bits in run.sha256[0].items() if any(again[name] != bits for again in run.sha256[1:]))


def _unequal(first: Run, again: Run) -> tuple[str, ...]:
    return tuple(name for name, bits in first.sha256[0].items() if again.sha256[0][name] != bits)


def _apart(first: Run, again: Run) -> tuple[str, ...]:
    """Outputs that differ by more than the order of float sums may do; integers by anything at all."""
    here, there = first.outputs[0] if first.outputs else {}, again.outputs[0] if again.outputs else {}
    return tuple(name for name, a in here.items() if deviation(a, there[name]) > allowed(a.dtype))
