"""Which layers are factored, and into which ranks; and why the others are not: what would not pay is left whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Skip, label
from onnxopt.factoring import moments
from onnxopt.factoring.choose import Offer, Rule, share, thinned
from onnxopt.factoring.forms import Choice, Conv, Form, form
from onnxopt.factoring.site import Site
from onnxopt.factoring.trial import Trial
from onnxopt.graph.cost import cost
from onnxopt.graph.model import Model
from onnxopt.runtime.session import Session
from onnxopt.runtime.timing import Timing, seconds

# What is added to second moments to choose by: hardly more than they need.
_LEVEL = 1e-4


@dataclass(frozen=True)
class Settings:
    """``timed``: leave whole what would not run faster here. ``samples``: how many to lose least on; 0: the weights."""

    rule: Rule
    conv: Conv
    timed: bool
    samples: int


@dataclass(frozen=True)
class Planned:
    """A layer with its form, the ranks chosen for it, and how fast the chain is in place of the layer."""

    site: Site
    form: Form
    choice: Choice
    timing: Timing | None = None


@dataclass
class Plan:
    """What shall be factored, what not and why, and what becomes of a budget: the cost before and after, the limit."""

    layers: list[Planned] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    budget: tuple[float, float, float] | None = None

    def skip(self, site: Site, why: str) -> None:
        self.skips.append(Skip(label(site.node), why))


def plan(model: Model, sites: Sequence[Site], settings: Settings, context: Context) -> Plan:
    """Choose the ranks. The model is left as it is."""
    made, shapes = Plan(), context.shapes(model)
    budget, step = settings.rule.budget, context.target.channel_step
    forms: dict[Site, Form] = {}
    for site in sites:
        if isinstance(found := form(site, settings.conv), str):
            made.skip(site, found)
        else:
            forms[site] = found
    timed = settings.timed or (budget is not None and budget.quantity == "latency")
    trial = Trial(model, list(forms) if timed else [], context)
    offers: list[tuple[Site, Form, list[Choice]]] = []
    watched = moments.gathered(model, list(forms), context, settings.samples, _LEVEL)
    for site, found_of in context.track(watched, "svd: ranks", len(forms)):
        made_of = forms[site]
        weight, moment = moments.weighted(site, found_of)
        fixed = settings.rule.rank is not None or settings.rule.auto
        choices = [] if fixed else made_of.choices(weight, moment, step)
        if not choices and not fixed:
            made.skip(site, "no rank that suits the target saves parameters")
            continue
        if budget is not None:
            offers.append((site, made_of, thinned(choices, made_of.whole)))
            continue
        choice = settings.rule.pick(made_of, choices, weight, step)
        if isinstance(choice, str):
            made.skip(site, choice)
        else:
            _accept(made, Planned(site, made_of, choice), _positions(site, made_of, shapes), trial)
    if budget is not None:
        _spread(made, offers, settings, model, shapes, trial, context)
    order = {id(n): i for i, n in enumerate(model.nodes())}
    made.layers.sort(key=lambda p: order[id(p.site.node)])
    return made


def _positions(site: Site, form: Form, shapes: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """At how many places, for one sample, the first of the chain is applied, and the others."""
    if not all(t.name in shapes for t in (site.x, site.node.outputs[0])):
        return 1, 1
    x, y = shapes[site.x.name], shapes[site.node.outputs[0].name]
    behind = prod(y) // site.sizes[0]
    if form.kind == "matrix":
        return behind, behind
    if form.kind == "spatial":  # a column of the kernel, at all columns of the input
        return behind // y[-1] * x[-1], behind
    return prod(x) // site.sizes[1], behind


def _accept(made: Plan, planned: Planned, positions: tuple[int, int], trial: Trial) -> None:
    """Into the plan, if multiplications and time fall as well."""
    site, made_of, choice = planned.site, planned.form, planned.choice
    if site.is_table:
        made.layers.append(planned)
        return
    macs, whole = choice.macs(*positions), made_of.whole * positions[1]
    if macs >= whole:
        made.skip(site, f"it would take {macs:,} multiplications instead of {whole:,}")
        return
    timing = trial.time(site, made_of, choice.ranks)
    if timing is not None and timing.speedup <= 1:
        made.skip(site, f"it would run {timing.speedup:.2f} times as fast, {_microseconds(timing)}")
        return
    made.layers.append(Planned(site, made_of, choice, timing))


def _microseconds(timing: Timing) -> str:
    before, after = (float(np.median(t)) * 1e3 for t in (timing.reference_ms, timing.candidate_ms))
    return f"{after:.3g} us instead of {before:.3g}"


def _spread(
    made: Plan,
    offers: Sequence[tuple[Site, Form, list[Choice]]],
    settings: Settings,
    model: Model,
    shapes: Mapping[str, tuple[int, ...]],
    trial: Trial,
    context: Context,
) -> None:
    """Share a budget between the layers, of each those ranks only with which it gets cheaper in every respect."""
    budget = settings.rule.budget
    assert budget is not None
    kept: list[tuple[Offer, dict[Choice, Planned]]] = []
    for site, made_of, choices in context.track(offers, "svd: times"):
        tried = Plan()
        for choice in choices:
            _accept(tried, Planned(site, made_of, choice), _positions(site, made_of, shapes), trial)
        if budget.quantity == "latency":
            tried.layers = [p for p in tried.layers if p.timing is not None]
        if not tried.layers:
            made.skips.append(tried.skips[0] if tried.skips else Skip(label(site.node), "it cannot be timed"))
            continue
        by_choice = {p.choice: p for p in tried.layers}
        kept.append((_offer(site, tried.layers, budget.quantity, _positions(site, made_of, shapes)), by_choice))
    now = _cost(model, budget.quantity, shapes, context)
    limit = budget.limit(now)
    chosen, reached = share([offer for offer, _ in kept], now, limit)
    made.budget = (now, reached, limit)
    for (offer, by_choice), taken in zip(kept, chosen, strict=True):
        if taken is None:
            made.skip(offer.site, "the budget is met without it")
        else:
            made.layers.append(by_choice[taken])


def _offer(site: Site, tried: Sequence[Planned], quantity: str, positions: tuple[int, int]) -> Offer:
    choices = [p.choice for p in tried]
    whole = tried[0].form.whole
    if quantity == "latency":
        times = [p.timing for p in tried if p.timing is not None]
        before = float(np.median([np.median(t.reference_ms) for t in times])) / 1e3
        return Offer(site, choices, before, [before / t.speedup for t in times])
    if quantity == "macs":
        lookup = site.is_table
        costs = [0.0 if lookup else float(c.macs(*positions)) for c in choices]
        return Offer(site, choices, 1e-9 if lookup else float(whole * positions[1]), costs)
    return Offer(site, choices, float(whole), [float(c.parameters) for c in choices])


def _cost(model: Model, quantity: str, shapes: Mapping[str, tuple[int, ...]], context: Context) -> float:
    if quantity == "latency":
        batch = context.latency_batch
        feed = next(iter(context.dataset.batches(batch, stop=batch)))
        return seconds(Session(model, threads=context.threads), feed)
    rows = cost(model, shapes)
    return float(rows.total.parameters if quantity == "params" else sum(row.macs or 0 for row in rows.nodes))
