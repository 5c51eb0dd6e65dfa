"""Inputs at the edge of what there is: no NaN and no infinity may come of them, and sizes left free must work.

A reference that does the same excuses the model. Integers and truth values keep to what the data has, and an input that
is always the same stays so: a token beyond the vocabulary, or a mask that hides everything, is nobody's fault here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onnxopt.data.batching import is_batch_name, terms
from onnxopt.data.dataset import Dataset, open_dataset
from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
from onnxopt.deploy.trial import run_bounded, telling
from onnxopt.errors import ExecutionError, OnnxOptError
from onnxopt.graph.signature import Array, Feed
from onnxopt.graph.vocabulary import index_bounds

_NAME = "edges"
# So many samples tell the range of the data.
_SAMPLES = 64
_FAR = 10
# So large a dimension is tried where nobody says how large one may be.
_LARGEST = 64


@dataclass(frozen=True)
class Case:
    """A feed and what is special about it. ``judged`` False: only told of. ``promised``: it has to run."""

    what: str
    feed: Feed
    judged: bool = True
    promised: bool = True


@dataclass(frozen=True)
class Outcome:
    """``error`` is why it did not run; ``undefined`` names outputs with NaN, ``infinite`` those with infinities."""

    error: str = ""
    undefined: frozenset[str] = field(default_factory=frozenset)
    infinite: frozenset[str] = field(default_factory=frozenset)


def check_edges(subject: Subject, policy: Policy) -> list[Finding]:
    """Zeros, ones, the ends of the data's range, batches and sizes. Raises DataError for data that cannot be read."""
    trial = subject.trial
    if trial.answer is None:
        return trial.instead(_NAME)
    cases = [*_values(subject.dataset), *_batches(subject, policy), *_sizes(subject, policy)]
    found = _outcomes(subject.path, cases)
    suspect = [i for i, outcome in enumerate(found) if outcome != Outcome()]
    reference = policy.accuracy.reference
    excused = dict(zip(suspect, _outcomes(reference, [cases[i] for i in suspect]), strict=True)) if reference else {}
    usual = found[0].infinite  # some models answer with minus infinity for what they rule out
    judged = {i: _bad(cases[i], found[i], usual if i else frozenset(), excused.get(i)) for i in suspect}
    if failed := [finding for finding in judged.values() if finding is not None]:
        return failed[:1] if judged.get(0) else failed  # what the data itself does, all else does as well
    tried = ", ".join(case.what for i, case in enumerate(cases) if i not in suspect)
    notes = "".join(f"; not held against it: {_told(cases[i], found[i])}" for i in suspect)
    return [Finding(_NAME, "passed", f"no NaN and no infinity for {tried}{notes}")]


def _bad(case: Case, found: Outcome, usual: frozenset[str], reference: Outcome | None) -> Finding | None:
    """The failure that an outcome is; None where it is excused."""
    if found.error:
        wanted = case.promised if reference is None else not reference.error
        if not wanted:
            return None
        remedy = "are sizes of the example input baked in? export it again, or fix the size in its signature"
        return Finding(_NAME, "failed", f"{case.what}: {found.error}", remedy=remedy)
    if not case.judged:
        return None
    undefined = found.undefined - (reference.undefined if reference else frozenset())
    infinite = found.infinite - usual - (reference.infinite if reference else frozenset())
    for what, places in (("NaN", undefined), ("infinity", infinite)):
        if places:
            names = tuple(sorted(places))
            remedy = "look for divisions by zero, logarithms, roots, and exponentials; bound what goes into them"
            return Finding(_NAME, "failed", f"{case.what}: {what} in '{names[0]}'", places=names, remedy=remedy)
    return None


def _told(case: Case, found: Outcome) -> str:
    what = "does not run" if found.error else "NaN" if found.undefined else "infinity"
    return f"{what} for {case.what}"


def _values(dataset: Dataset) -> Iterator[Case]:
    """The data as it is, then feeds that hold one value, those at the ends of its range, and values far outside."""
    sample = next(iter(dataset.batches(1, stop=1)))
    yield Case("a sample of the data", sample)
    low, high = _ranges(dataset)
    varied = {name for name in low if low[name] != high[name]}
    floats = {name for name in varied if sample[name].dtype.kind == "f"}
    for what, number in (("zeros", 0), ("ones", 1)):
        if floats:
            yield Case(what, sample | {name: np.full_like(sample[name], number) for name in floats})
    if not varied:
        return
    filled = [sample | {name: np.full_like(sample[name], end[name]) for name in varied} for end in (low, high)]
    yield Case("the least of the data everywhere", filled[0])
    yield Case("the most of the data everywhere", filled[1])
    mixed = {name: _in_turn(filled[0][name], filled[1][name]) for name in varied}
    yield Case("least and most in turn", sample | mixed)
    if floats:
        with np.errstate(over="ignore"):
            far = {name: _finite(np.asarray(mixed[name] * _FAR, mixed[name].dtype)) for name in floats}
        yield Case(f"{_FAR} times the range of the data", sample | far, judged=False, promised=False)


def _ranges(dataset: Dataset) -> tuple[dict[str, Array], dict[str, Array]]:
    """Least and most of each input of numbers, over some samples."""
    low: dict[str, Array] = {}
    high: dict[str, Array] = {}
    for feed in dataset.batches(1, stop=_SAMPLES):
        for name, value in feed.items():
            if value.dtype.kind not in "fiu" or not value.size:
                continue
            known = value[np.isfinite(value)]
            if known.size:
                low[name] = np.minimum(low.get(name, known.min()), known.min())
                high[name] = np.maximum(high.get(name, known.max()), known.max())
    return low, high


def _in_turn(low: Array, high: Array) -> Array:
    odd = (np.arange(low.size) % 2).reshape(low.shape).astype(bool)
    return np.where(odd, high, low)


def _finite(values: Array) -> Array:
    limit = np.finfo(values.dtype).max
    return np.clip(values, -limit, limit)


def _batches(subject: Subject, policy: Policy) -> Iterator[Case]:
    """Several samples at once, where the graph leaves that open."""
    dataset = subject.dataset
    if dataset.batching.whole or dataset.batching.fixed is not None:
        return
    for size in policy.edges.batches:
        one = next(iter(dataset.batches(1, stop=1)))
        scalars = {s.name for s in dataset.inputs if s.shape == ()}
        feed = {n: v if n in scalars else np.repeat(v, size, axis=0) for n, v in one.items()}
        yield Case(f"batch {size}", feed)


def _sizes(subject: Subject, policy: Policy) -> Iterator[Case]:
    """The smallest and the largest size of each free dimension that is no batch, the others as in the data."""
    seen = _seen(subject.dataset, subject.trial.feed)
    largest = policy.edges.largest
    for name in seen:
        for size in dict.fromkeys((1, largest or _LARGEST)):
            if size != seen[name]:
                feed = _resized(subject, seen | {name: size})
                if feed is not None:
                    yield Case(f"size {size} of '{name}'", feed, promised=size == largest)


def _seen(dataset: Dataset, sample: Feed) -> dict[str, int]:
    """The sizes in the data of the free dimensions that have a name and are no batch or sum."""
    found: dict[str, int] = {}
    for spec in dataset.inputs:
        dims = list(zip(spec.shape or (), sample[spec.name].shape, strict=False))
        for dim, size in dims if dataset.batching.whole else dims[1:]:
            if isinstance(dim, str) and not is_batch_name(dim) and len(terms(dim)) == 1:
                found.setdefault(dim, size)
    return {name: size for name, size in found.items() if size >= 1}


def _resized(subject: Subject, dims: Mapping[str, int]) -> Feed | None:
    """A made-up feed with these sizes; None where none can be made."""
    dataset = subject.dataset
    try:
        made = open_dataset(None, dataset.inputs, samples=dataset.unit, dims=dims, bounds=index_bounds(subject.model))
        return next(iter(made.batches(1, stop=1)))
    except OnnxOptError:
        return None


def _outcomes(path: Path, cases: Sequence[Case]) -> list[Outcome]:
    """What a model makes of each case: all in one process, or, where one of them does not run, those of equal shapes in
    one, or else each in its own."""
    if not cases:
        return []
    try:
        run = run_bounded((path,), [case.feed for case in cases]).runs[0]
    except ExecutionError as error:
        if len(cases) == 1:
            return [Outcome(error=telling(str(error)))]
        groups: dict[object, list[int]] = {}
        for i, case in enumerate(cases):
            groups.setdefault(tuple(value.shape for value in case.feed.values()), []).append(i)
        parts = [[i] for i in range(len(cases))] if len(groups) == 1 else list(groups.values())
        found = {i: o for part in parts for i, o in zip(part, _outcomes(path, [cases[i] for i in part]), strict=True)}
        return [found[i] for i in range(len(cases))]
    return [_outcome(outputs) for outputs in run.outputs] if run.outputs else [Outcome()] * len(cases)


def _outcome(outputs: Mapping[str, Array]) -> Outcome:
    floats = {name: value for name, value in outputs.items() if value.dtype.kind == "f"}
    return Outcome(
        undefined=frozenset(name for name, value in floats.items() if np.isnan(value).any()),
        infinite=frozenset(name for name, value in floats.items() if np.isinf(value).any()),
    )
