"""Which lossy pass would pay on which layer: each is tried on the whole model, and what it made of a layer then alone.

A pass runs once, on a copy. What it made of each layer is put into the model that it was given, so that the error is
that of this layer alone. A pass that changes shapes cannot be taken apart like that: it runs anew for each layer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import numpy as np

from onnxopt.core import spec
from onnxopt.core.context import Context
from onnxopt.core.manager import PassManager
from onnxopt.core.pass_ import Pass, label
from onnxopt.data.dataset import Dataset, spread
from onnxopt.errors import ExecutionError, ModelError, OnnxOptError
from onnxopt.graph.compressed import compressed_bytes
from onnxopt.graph.cost import cost
from onnxopt.graph.ir import Node, is_constant, reads
from onnxopt.graph.model import Model
from onnxopt.graph.pieces import differences, transplant
from onnxopt.progress import Track, silent
from onnxopt.quantization.judge import Judge
from onnxopt.report.advice import Advice, Costs, Offer, Whole
from onnxopt.report.report import Report
from onnxopt.runtime.machine import machine, versions
from onnxopt.runtime.profile import profile
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import NATIVE, Target
from onnxopt.runtime.timing import Timing, interleave

# Samples that passes look at, and that judge.
_SAMPLES = 64
# A layer with less of the bytes and of the MACs is one of the small ones.
_SMALL = 0.01
_PROFILE_S = 0.2
_TIMING_S = 0.6
# Passes that are worth more than one setting, and what saves time at a first look, which is not named.
_TRIED: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "cluster": ({}, {"levels": 256}),
    "quant-weights": ({}, {"bits": 8}),
}
_HASTE: Mapping[str, Mapping[str, Any]] = {"quant": {"effort": "fast", "measure": False}}
# Runs anew for each layer, and gets the time that others leave.
_RESHAPING = ("prune",)


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
    steps.sort(key=lambda named: named[1].name in _RESHAPING)
    plain = model.clone()
    few = _few(calibration)
    exact = dict.fromkeys(name for _, step in steps for name in step.needs())
    PassManager([spec.make(name, {}) for name in exact]).run(plain, few, target=target, seed=seed)
    trial = _Trial(plain, few, Judge(plain, test, samples=_SAMPLES, threads=threads), target, seed, threads, track)
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


@dataclass(frozen=True)
class _Form:
    """One form of the model, with what its nodes cost, by the identity of the node, and take, by label; ``total``
    seconds in all."""

    model: Model
    total_macs: int | None
    costs: Mapping[int, tuple[int, int | None]]
    seconds: Mapping[str, float]
    total: float
    bytes: int
    packed: int

    def at(self, total: float) -> _Form:
        """The same where a run takes so many seconds in all."""
        pace = total / self.total
        return replace(self, seconds={name: s * pace for name, s in self.seconds.items()}, total=total)

    def of(self, nodes: Iterable[Node]) -> tuple[int, int | None, float]:
        """Bytes, MACs and milliseconds of some nodes."""
        once = list(dict.fromkeys(nodes))
        rows = [self.costs[id(n)] for n in once]
        macs = [m for _, m in rows]
        took = sum(self.seconds.get(label(n), 0.0) for n in once)
        return sum(b for b, _ in rows), None if None in macs else sum(m or 0 for m in macs), 1e3 * took

    def whole(self) -> Costs:
        """All of it."""
        return Costs(self.bytes, self.packed, self.total_macs, 1e3 * self.total)


@dataclass(frozen=True)
class _Ways:
    """Offers, each with how many pieces of the model it is of, made as they are asked for; ``count`` pieces in all."""

    count: int = 0
    offers: Iterable[tuple[int, Offer]] = ()

    def within(self, end: float) -> Iterator[tuple[int, Offer]]:
        """At least one offer, then as many as there is time for."""
        for found in self.offers:
            yield found
            if time.monotonic() > end:
                return


class _Trial:
    """Tries passes on one model."""

    def __init__(
        self, plain: Model, few: Dataset, judge: Judge, target: Target, seed: int, threads: int, track: Track
    ) -> None:
        self.judge = judge
        self._few, self._target, self._seed, self._threads, self._track = few, target, seed, threads, track
        self._feed = next(iter(few.batches(1, stop=1)))
        self._plain = self._form(plain)
        self._macs = sum(m or 0 for _, m in self._plain.costs.values())

    def price(self, offer: Offer) -> tuple[bool, float]:
        """Noise for each share of the model's bytes and time that is saved; offers that do not pay come behind."""
        saved_ms = offer.saved_ms if offer.pace > 0 else 0.0
        share = max(offer.saved_bytes, 0) / max(self._plain.bytes, 1) + saved_ms / max(1e3 * self._plain.total, 1e-9)
        noise = 10 ** (-offer.sqnr_db / 10) if not math.isnan(offer.sqnr_db) else math.inf
        return offer.verdict != "pays", noise / max(share, 1e-9)

    def whole(self, name: str, step: Pass) -> tuple[Whole, _Ways]:
        """What a pass does to the whole model, and how to try it on layers alone."""
        changed = self._plain.model.clone()
        try:
            report = self._run(step, changed)
        except OnnxOptError as error:
            return Whole(name, why=str(error)), _Ways()
        done = report.passes[-1]
        plain = Whole(name, seconds=done.seconds, skips=done.skips)
        if not done.changed:
            why = next((n.partition(": ")[2] for n in report.notes if n.startswith(f"{step} changed nothing")), "")
            return replace(plain, why=why or "it found no place for it"), _Ways()
        try:
            before, after, timing = self._timed(changed)
        except ExecutionError as error:
            return replace(plain, why=str(error)), _Ways()
        found = replace(
            plain,
            before=before.whole(),
            after=after.whole(),
            sqnr_db=self.judge(changed).sqnr_db,
            speedup=(timing.speedup, timing.speedup_low, timing.speedup_high),
        )
        if step.name in _RESHAPING:
            return found, self._anew(name, step, report)
        return found, self._taken_apart(name, before, after)

    def _taken_apart(self, name: str, before: _Form, form: _Form) -> _Ways:
        """Each large piece of the changed model alone, the largest first, then all the small ones together."""
        plain = before.model.clone()
        if plain.opset != form.model.opset:
            try:
                plain.upgrade(form.model.opset)
            except ModelError:
                return _Ways()
            before = replace(before, bytes=plain.constant_bytes(), packed=compressed_bytes(plain))
        made = {t.name: n for n in before.model.graph.nodes for t in n.outputs}
        pieces = [p for p in differences(plain, form.model) if p.whole]
        nodes = {p: [made[t.name] for n in p.before for t in n.outputs if t.name in made] for p in pieces}
        shares = {p: self._share(old) for p, old in nodes.items() if old}
        ordered = sorted(shares, key=lambda p: -shares[p])
        small = [p for p in ordered if shares[p] < _SMALL]
        small = small if len(small) > 1 else []  # one is as good as named
        groups = [[p] for p in ordered[: len(ordered) - len(small)]] + ([small] if small else [])

        def offers() -> Iterator[tuple[int, Offer]]:
            for group in groups:
                old, new = [n for p in group for n in nodes[p]], [n for p in group for n in p.after]
                main = max(old, key=lambda n: self._share([n]))
                layer, op = (label(main), main.op) if group is not small else (f"the rest ({len(small)})", "")
                alone = transplant(plain, form.model, group)
                yield len(group), self._offer((layer, op, name), (before, old), (form, new), alone)

        return _Ways(len(shares), offers())

    def _anew(self, name: str, step: Pass, report: Report) -> _Ways:
        """The pass for each group of layers alone that it shortened, the largest first."""
        channels = report.passes[-1].figures.get("channels")
        names = set(channels) if isinstance(channels, Mapping) else set()
        layers = sorted((n for n in self._plain.model.nodes() if label(n) in names), key=lambda n: -self._share([n]))

        def offers() -> Iterator[tuple[int, Offer]]:
            done: set[str] = set()
            for layer in layers:
                if label(layer) in done:
                    continue
                model = self._plain.model.clone()
                alone = spec.make(step.name, {"include": label(layer)})
                try:
                    found = self._run(alone, model).passes[-1].figures.get("channels")
                    before, form, _ = self._timed(model)
                except OnnxOptError:  # a name that is read as a pattern
                    continue
                cut = {label(layer), *(found if isinstance(found, Mapping) else ())} - done
                done |= cut
                old, new = self._changed(form)
                yield len(cut), self._offer((label(layer), layer.op, name), (before, old), (form, new), model)

        return _Ways(len(names), offers())

    def _changed(self, form: _Form) -> tuple[list[Node], list[Node]]:
        """The nodes of both forms that cost more or less in the other."""
        a, b = ({label(n): n for n in f.model.nodes()} for f in (self._plain, form))
        same = {name for name in a.keys() & b.keys() if self._plain.costs[id(a[name])] == form.costs[id(b[name])]}
        left, right = ([n for name, n in nodes.items() if name not in same] for nodes in (a, b))
        return left, right

    def _offer(
        self,
        what: tuple[str, str, str],
        before: tuple[_Form, Sequence[Node]],
        after: tuple[_Form, Sequence[Node]],
        alone: Model,
    ) -> Offer:
        """``what``: layer, operator and pass; forms with those of their nodes that change."""
        (plain, old), (form, new) = before, after
        size, macs, ms = plain.of(old)
        _, macs_after, ms_after = form.of(new)
        if macs == macs_after and _executed(old) == _executed(new):
            ms_after = ms
        change = alone.constant_bytes() - plain.bytes
        return Offer(
            *what,
            Costs(size, plain.packed, macs, ms),
            Costs(size + change, compressed_bytes(alone), macs_after, ms_after),
            self.judge(alone).sqnr_db,
        )

    def _share(self, nodes: Sequence[Node]) -> float:
        """What of the model's bytes or of its MACs nodes have, whichever is more."""
        size, macs, _ = self._plain.of(nodes)
        return max(size / max(self._plain.bytes, 1), (macs or 0) / max(self._macs, 1))

    def _run(self, step: Pass, model: Model) -> Report:
        return PassManager([step]).run(
            model, self._few, target=self._target, threads=self._threads, seed=self._seed, track=self._track
        )

    def _timed(self, model: Model) -> tuple[_Form, _Form, Timing]:
        """The given form and this one. They are profiled one after the other, but run in turns: what the profiles
        differ by beyond that is the machine. Raises ExecutionError when it does not run."""
        form = self._form(model)
        sessions = [Session(m, threads=self._threads) for m in (self._plain.model, model)]
        timing = interleave(sessions[0], sessions[1], self._feed, budget_s=_TIMING_S)
        ms = (timing.reference_ms, timing.candidate_ms)
        before, after = (f.at(float(np.median(m)) / 1e3) for f, m in zip((self._plain, form), ms, strict=True))
        return before, after, timing

    def _form(self, model: Model) -> _Form:
        """Raises ExecutionError when it does not run."""
        context = Context(model, self._few)
        found = cost(model, context.shapes(model))
        rows = zip(model.nodes(), found.nodes, strict=True)
        profiled = profile(model, self._feed, threads=self._threads, budget_s=_PROFILE_S)
        return _Form(
            model,
            found.total.macs,
            {id(node): (row.weight_bytes, row.macs) for node, row in rows},
            profiled.nodes,
            profiled.total,
            model.constant_bytes(),
            compressed_bytes(model),
        )


def _settings(name: str) -> Iterator[tuple[str, Pass]]:
    """A lossy pass as a first look needs it, and what it is called; nothing for one that must be told more."""
    kind = spec.known_passes()[name]
    if kind.exact or any(f.default is MISSING and f.default_factory is MISSING for f in fields(kind)):
        return
    for values in _TRIED.get(name, ({},)):
        yield str(spec.make(name, values)), spec.make(name, {**values, **_HASTE.get(name, {})})


def _executed(nodes: Sequence[Node]) -> list[str]:
    """The operators that run, sorted: what depends on constants alone is computed at loading, but not decoding."""
    fixed: set[int] = set()
    found = []
    for node in nodes:
        if node.op != "DequantizeLinear" and all(is_constant(t) or id(t) in fixed for t in reads(node)):
            fixed.update(map(id, node.outputs))
        else:
            found.append(node.kind)
    return sorted(found)


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
