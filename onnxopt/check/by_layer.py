"""One pass on the whole model, and on each of its layers alone.

What the pass made of a layer is put into the model that it was given, so that the error is that of this layer alone. A
pass that changes shapes cannot be taken apart like that: it runs anew for each layer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxopt.check.form import Form, executed
from onnxopt.core import spec
from onnxopt.core.manager import PassManager
from onnxopt.core.pass_ import Pass, label
from onnxopt.data.dataset import Dataset
from onnxopt.errors import ExecutionError, ModelError, OnnxOptError
from onnxopt.graph.compressed import compressed_bytes
from onnxopt.graph.ir import Node
from onnxopt.graph.model import Model
from onnxopt.graph.pieces import differences, transplant
from onnxopt.progress import Track
from onnxopt.quantization.judge import Judge
from onnxopt.report.advice import Costs, Offer, Whole
from onnxopt.report.report import Report
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import Target
from onnxopt.runtime.timing import Timing, interleave

# A layer with less of the bytes and of the MACs is one of the small ones.
_SMALL = 0.01
_TIMING_S = 0.6
# Runs anew for each layer, and gets the time that others leave.
RESHAPING = ("prune",)


@dataclass(frozen=True)
class Ways:
    """Offers, each with how many pieces of the model it is of, made as they are asked for; ``count`` pieces in all."""

    count: int = 0
    offers: Iterable[tuple[int, Offer]] = ()

    def within(self, end: float) -> Iterator[tuple[int, Offer]]:
        """At least one offer, then as many as there is time for."""
        for found in self.offers:
            yield found
            if time.monotonic() > end:
                return


class Trial:
    """Tries passes on one model."""

    def __init__(
        self, plain: Model, few: Dataset, judge: Judge, target: Target, seed: int, threads: int, track: Track
    ) -> None:
        self.judge = judge
        self._few, self._target, self._seed, self._threads, self._track = few, target, seed, threads, track
        self._feed = next(iter(few.batches(1, stop=1)))
        self._plain = self._measured(plain)
        self._macs = sum(m or 0 for _, m in self._plain.costs.values())

    def price(self, offer: Offer) -> tuple[bool, float]:
        """Noise for each share of the model's bytes and time that is saved; offers that do not pay come behind."""
        saved_ms = offer.saved_ms if offer.pace > 0 else 0.0
        share = max(offer.saved_bytes, 0) / max(self._plain.bytes, 1) + saved_ms / max(1e3 * self._plain.total, 1e-9)
        noise = 10 ** (-offer.sqnr_db / 10) if not math.isnan(offer.sqnr_db) else math.inf
        return offer.verdict != "pays", noise / max(share, 1e-9)

    def whole(self, name: str, step: Pass) -> tuple[Whole, Ways]:
        """What a pass does to the whole model, and how to try it on layers alone."""
        changed = self._plain.model.clone()
        try:
            report = self._run(step, changed)
        except OnnxOptError as error:
            return Whole(name, why=str(error)), Ways()
        done = report.passes[-1]
        plain = Whole(name, seconds=done.seconds, skips=done.skips)
        if not done.changed:
            why = next((n.partition(": ")[2] for n in report.notes if n.startswith(f"{step} changed nothing")), "")
            return replace(plain, why=why or "it found no place for it"), Ways()
        try:
            before, after, timing = self._timed(changed)
        except ExecutionError as error:
            return replace(plain, why=str(error)), Ways()
        found = replace(
            plain,
            before=before.whole(),
            after=after.whole(),
            sqnr_db=self.judge(changed).sqnr_db,
            speedup=(timing.speedup, timing.speedup_low, timing.speedup_high),
        )
        if step.name in RESHAPING:
            return found, self._anew(name, step, report)
        return found, self._taken_apart(name, before, after)

    def _taken_apart(self, name: str, before: Form, form: Form) -> Ways:
        """Each large piece of the changed model alone, the largest first, then all the small ones together."""
        plain = before.model.clone()
        if plain.opset != form.model.opset:
            try:
                plain.upgrade(form.model.opset)
            except ModelError:
                return Ways()
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

        return Ways(len(shares), offers())

    def _anew(self, name: str, step: Pass, report: Report) -> Ways:
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

        return Ways(len(names), offers())

    def _changed(self, form: Form) -> tuple[list[Node], list[Node]]:
        """The nodes of both forms that cost more or less in the other."""
        a, b = ({label(n): n for n in f.model.nodes()} for f in (self._plain, form))
        same = {name for name in a.keys() & b.keys() if self._plain.costs[id(a[name])] == form.costs[id(b[name])]}
        left, right = ([n for name, n in nodes.items() if name not in same] for nodes in (a, b))
        return left, right

    def _offer(
        self,
        what: tuple[str, str, str],
        before: tuple[Form, Sequence[Node]],
        after: tuple[Form, Sequence[Node]],
        alone: Model,
    ) -> Offer:
        """``what``: layer, operator and pass; forms with those of their nodes that change."""
        (plain, old), (form, new) = before, after
        size, macs, ms = plain.of(old)
        _, macs_after, ms_after = form.of(new)
        if macs == macs_after and executed(old) == executed(new):
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

    def _timed(self, model: Model) -> tuple[Form, Form, Timing]:
        """The given form and this one. They are profiled one after the other, but run in turns: what the profiles
        differ by beyond that is the machine. Raises ExecutionError when it does not run."""
        form = self._measured(model)
        sessions = [Session(m, threads=self._threads) for m in (self._plain.model, model)]
        timing = interleave(sessions[0], sessions[1], self._feed, budget_s=_TIMING_S)
        ms = (timing.reference_ms, timing.candidate_ms)
        before, after = (f.at(float(np.median(m)) / 1e3) for f, m in zip((self._plain, form), ms, strict=True))
        return before, after, timing

    def _measured(self, model: Model) -> Form:
        return Form.measured(model, self._few, self._feed, self._threads)
