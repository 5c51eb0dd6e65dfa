"""Which lossy pass would pay on which layer: each is tried on the whole model, then what it made of a layer alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any

from onnxopt.check.by_layer import RESHAPING, Trial
from onnxopt.core import spec
from onnxopt.core.manager import PassManager
from onnxopt.core.pass_ import Pass
from onnxopt.data.dataset import Dataset, spread
from onnxopt.graph.model import Model
from onnxopt.progress import Track, silent
from onnxopt.quantization.judge import Judge
from onnxopt.report.advice import Advice, Offer, Whole
from onnxopt.runtime.machine import machine, versions
from onnxopt.runtime.target import NATIVE, Target

# Samples that passes look at, and that judge.
_SAMPLES = 64
# Passes that are worth more than one setting, and what saves time at a first look, which is not named.
_TRIED: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "cluster": ({}, {"levels": 256}),
    "quant-weights": ({}, {"bits": 8}),
}
_HASTE: Mapping[str, Mapping[str, Any]] = {"quant": {"effort": "fast", "measure": False}}


def advise(
    model: Model,
    calibration: Dataset,
    test: Dataset,
    *,
    target: Target = NATIVE,
    seed: int = 0,
    threads: int = 1,
    budget_s: float = 60.0,
    track: Track = silent,
) -> Advice:
    """Try every lossy pass on a copy of the model, and then on each of its layers alone, the largest first, for about
    ``budget_s`` seconds in all.

    Raises ExecutionError when the model does not run.
    """
    steps = [step for name in spec.known_passes() for step in _settings(name)]
    steps.sort(key=lambda named: named[1].name in RESHAPING)
    plain = model.clone()
    few = _few(calibration)
    exact = dict.fromkeys(name for _, step in steps for name in step.needs())
    PassManager([spec.make(name, {}) for name in exact]).run(plain, few, target=target, seed=seed)
    trial = Trial(plain, few, Judge(plain, test, samples=_SAMPLES, threads=threads), target, seed, threads, track)
    left = budget_s
    offers: list[Offer] = []
    passes = []
    for i, (name, step) in enumerate(track(steps, "try passes")):
        whole, ways = trial.whole(name, step)
        started = time.monotonic()
        found = list(track(ways.within(started + left / (len(steps) - i)), f"{name} by layer", ways.count))
        left -= time.monotonic() - started
        offers += [offer for _, offer in found]
        passes.append(replace(whole, pieces=ways.count, tried=sum(covered for covered, _ in found)))
    notes = (*few.notes, *test.notes, *_unfinished(passes, budget_s))
    about = str(model.path or ""), versions(), machine(), trial.judge.samples
    ordered = tuple(sorted(offers, key=trial.price)), tuple(sorted(passes, key=lambda p: p.spec))
    return Advice(*about, *ordered, tuple(dict.fromkeys(notes)))


def _settings(name: str) -> Iterator[tuple[str, Pass]]:
    """A lossy pass as a first look needs it, and what it is called; nothing for one that must be told more."""
    kind = spec.known_passes()[name]
    if kind.exact or any(f.default is MISSING and f.default_factory is MISSING for f in fields(kind)):
        return
    for values in _TRIED.get(name, ({},)):
        yield str(spec.make(name, values)), spec.make(name, {**values, **_HASTE.get(name, {})})


def _few(dataset: Dataset) -> Dataset:
    """Some samples, spread over all; whole batches where the graph fixes them."""
    unit = dataset.unit
    groups = dataset.count // unit
    picked = spread(groups, min(groups, -(-_SAMPLES // unit)), seed=0)
    return dataset.subset([i * unit + j for i in picked for j in range(unit)])


def _unfinished(passes: Sequence[Whole], budget_s: float) -> list[str]:
    """What is to be said of layers that there was no time for."""
    left = [f"{p.spec} on {p.pieces - p.tried} of {p.pieces}" for p in passes if p.tried < p.pieces]
    if not left:
        return []
    return [f"not tried alone within {budget_s:g} s, the smallest layers of each pass: {', '.join(left)}"]
