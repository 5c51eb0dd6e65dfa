"""Factor the layers of a model: choose ranks, leave what would not pay, and fit each to what reaches it by then.

In the order of the graph every layer is given what reaches it from the layers already done, and shall make of it what
it made in the original. Its factors are the best of their ranks for that, bias and all (reduced-rank regression); of
several dampings, and of the weights' own decomposition, those are taken that are nearest on samples held back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.pass_ import Skip, label
from onnxopt.errors import ExecutionError
from onnxopt.factoring import seen
from onnxopt.factoring.choose import Offer, Rule, share, thinned
from onnxopt.factoring.forms import Choice, Conv, Form, form
from onnxopt.factoring.seen import Seat, Seen
from onnxopt.factoring.site import Site
from onnxopt.factoring.split import split
from onnxopt.factoring.trial import Trial
from onnxopt.graph.cost import cost
from onnxopt.graph.ir import Node
from onnxopt.graph.layer import LAYERS, Floats, layout
from onnxopt.graph.model import Model
from onnxopt.pruning.repair import Place, Repaired, Rows, observed, repair
from onnxopt.runtime.session import Session
from onnxopt.runtime.timing import Timing, seconds

_DAMPINGS = (1e-3, 1e-2, 1e-1)
# What takes long to fit is fitted with one of them.
_DAMPING = 1e-2
# What is added to second moments to choose by: hardly more than they need.
_PLAN_LEVEL = 1e-4
# How much more may be lost of samples that were held back than of those that ranks are chosen by.
_SLACK = 2.0


@dataclass(frozen=True)
class Settings:
    """``timed``: leave whole what would not run faster here; ``aware``: lose least on the data."""

    rule: Rule
    conv: Conv
    aware: bool
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
    for part in seen.rounds(list(forms)):
        moments = seen.moments(model, part, context, settings.samples, _PLAN_LEVEL) if settings.aware else {}
        for site in context.track(part, "svd: ranks"):
            made_of = forms[site]
            weight, moment = _weighted(site, moments.get(site))
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


def _weighted(site: Site, moment: Floats | None) -> tuple[Floats, Floats | None]:
    """The weights, and the second moments of what they are multiplied with; a table's rows by how often they are."""
    weight = site.matrix()
    if moment is not None and site.is_table:
        return weight * np.sqrt(moment), None
    return weight, moment


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


def apply(model: Model, made: Plan, settings: Settings, context: Context) -> Iterator[tuple[str, dict[str, Any]]]:
    """Factor what was planned; label and figures of each layer."""
    original = model.clone()
    aware = [p for p in made.layers if settings.aware and p.site.solvable and p.site.graph is model.graph]
    known = {id(p) for p in aware}
    rest = [p for p in made.layers if id(p) not in known]
    for part in seen.rounds([p.site for p in rest]):
        found = seen.moments(model, part, context, settings.samples, _DAMPING) if settings.aware else {}
        for planned in (p for p in rest if p.site in part):
            yield label(planned.site.node), _by_moment(model, planned, found.get(planned.site))
            model.tidy()
    by_layer = {id(p.site.node): p for p in aware}
    places = [Seat.of(p.site) for p in aware]
    for place, rows in observed(model, original, places, context, settings.samples, "svd"):
        planned = by_layer[id(place.layer)]
        fitted = _by_rows(model, planned, rows, settings.rule.energy)
        if isinstance(fitted, str):
            made.skip(planned.site, fitted)
            continue
        yield label(place.layer), fitted
        model.tidy()
        model.release()


def _by_moment(model: Model, planned: Planned, moment: Floats | None) -> dict[str, Any]:
    """Fit a layer to its weights, or to what goes into it in the model before anything was changed."""
    site, made_of, ranks = planned.site, planned.form, planned.choice.ranks
    weight, gram = _weighted(site, moment)
    factors = made_of.fit(weight, ranks, gram)
    lost = weight - made_of.compose(factors)
    whole = float(np.vdot(weight, weight if gram is None else weight @ gram))
    error = float(np.vdot(lost, lost if gram is None else lost @ gram)) / whole if whole else 0.0
    if moment is not None and site.is_table:
        factors = [factors[0], factors[1] / np.sqrt(moment)]
    split(model, site, made_of, factors)
    return _figures(planned, max(error, 0.0), "weights" if moment is None else "outputs")


def _by_rows(model: Model, planned: Planned, rows: Iterator[Rows], energy: float | None) -> dict[str, Any] | str:
    """Fit a layer to what it shall make of what reaches it; why not, if it would then not keep the energy."""
    site, made_of, ranks = planned.site, planned.form, planned.choice.ranks
    weight, bias = site.affine()
    reached = Seen(weight, bias, site.has_bias(model), rows)
    plain = made_of.fit(weight, ranks, None)
    product = made_of.compose(plain)
    best, shift, error = plain, bias, reached.error(product, bias)
    blind = error
    if reached.tells:
        for damping in _DAMPINGS if made_of.kind == "matrix" else (_DAMPING,):
            gram = reached.damped(damping)
            factors = made_of.fit(reached.wanted(gram), ranks, gram)
            product = made_of.compose(factors)
            moved = reached.with_bias(product)
            if (now := reached.error(product, moved)) < error:
                best, shift, error = factors, moved, now
    if energy is not None and error > _SLACK * (1 - energy):
        return f"on samples held back it would lose {error:.1%} of the energy: more samples may tell what can go"
    split(model, site, made_of, best, shift)
    return _figures(planned, error, "outputs") | {"plain_error": float(np.sqrt(blind))}


def _figures(planned: Planned, error: float, where: str) -> dict[str, Any]:
    ranks = planned.choice.ranks
    found: dict[str, Any] = {
        "form": "table" if planned.site.is_table else planned.form.kind,
        "rank": ranks[0] if len(ranks) == 1 else list(ranks),
        "parameters_before": planned.form.whole,
        "parameters_after": planned.choice.parameters,
        "relative_error": float(np.sqrt(error)),
        "measured_on": where,
    }
    if planned.timing is not None:
        found["speedup"] = round(planned.timing.speedup, 3)
    return found


def make_good(model: Model, original: Model, context: Context, samples: int) -> list[Repaired]:
    """Solve the layers behind what was factored for what they made in the original."""
    same = {n.outputs[0].name: n for n in original.graph.nodes if n.outputs}
    places, changed = [], []
    for node in model.graph.nodes:
        before = same.get(node.outputs[0].name) if node.outputs else None
        if before is None:
            continue
        if node.op in LAYERS and node.is_standard and _is_other(node, before):
            changed.append(str(node.outputs[0].name))
        elif node.op in LAYERS and node.is_standard and not unrolled.fault(node) and unrolled.has_bias(model, node):
            places.append(Place(node, np.ones(layout(node).outputs, np.bool_), False))
    try:
        return repair(model, original, places, context, samples, changed, spread=False) if places and changed else []
    except ExecutionError:
        return []


def _is_other(node: Node, before: Node) -> bool:
    return any(a.name != b.name for a, b in zip(node.inputs[:2], before.inputs[:2], strict=True))
