"""Factor the layers of a model, each fitted to what reaches it by then.

In the order of the graph every layer is given what reaches it from the layers already done, and shall make of it what
it made in the original. Its factors are the best of their ranks for that, bias and all (reduced-rank regression); of
several dampings, and of the weights' own decomposition, those are taken that are nearest on samples held back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.observed import Place, observed
from onnxopt.core.pass_ import label
from onnxopt.core.seen import Rows, Seen
from onnxopt.errors import ExecutionError
from onnxopt.factoring import moments
from onnxopt.factoring.plan import Plan, Planned, Settings
from onnxopt.factoring.site import Site
from onnxopt.factoring.split import split
from onnxopt.graph.ir import Node
from onnxopt.graph.layer import LAYERS, Floats, layout
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.pruning.repair import Repaired, repair

_DAMPINGS = (1e-3, 1e-2, 1e-1)
# What takes long to fit is fitted with one of them.
_DAMPING = 1e-2
# How much more may be lost of samples that were held back than of those that ranks are chosen by.
_SLACK = 2.0


@dataclass(frozen=True, kw_only=True)
class Seat(Place):
    """Where to see what reaches a layer, whichever way its matrices are turned."""

    site: Site

    @classmethod
    def of(cls, site: Site) -> Seat:
        return cls(site.node, np.ones(site.sizes[0], np.bool_), True, site=site)

    @property
    def source(self) -> str:
        return str(self.site.x.name)

    @property
    def enough(self) -> int:
        return unrolled.enough(self.site.width)

    def read(self, x: Array) -> Array:
        return self.site.read(x)

    def write(self, y: Array) -> Array:
        return self.site.write(y)


def apply(model: Model, made: Plan, settings: Settings, context: Context) -> Iterator[tuple[str, dict[str, Any]]]:
    """Factor what was planned; label and figures of each layer."""
    original = model.clone()
    aware = {id(p.site.node): p for p in made.layers if settings.samples and _is_seen(p.site, model)}
    rest = {p.site: p for p in made.layers if id(p.site.node) not in aware}
    for site, moment in moments.gathered(model, list(rest), context, settings.samples, _DAMPING):
        yield label(site.node), _by_moment(model, rest[site], moment)
        model.tidy()
    places = [Seat.of(p.site) for p in aware.values()]
    for place, rows in observed(model, original, places, context, settings.samples, "svd"):
        planned = aware[id(place.layer)]
        fitted = _by_rows(model, planned, rows, settings.rule.energy)
        if isinstance(fitted, str):
            made.skip(planned.site, fitted)
            continue
        yield label(place.layer), fitted
        model.tidy()
        model.release()


def _is_seen(site: Site, model: Model) -> bool:
    """Can it be solved for by what reaches it?"""
    return site.solvable and site.graph is model.graph


def _by_moment(model: Model, planned: Planned, moment: Floats | None) -> dict[str, Any]:
    """Fit a layer to its weights, or to what goes into it in the model before anything was changed."""
    site, made_of, ranks = planned.site, planned.form, planned.choice.ranks
    weight, gram = moments.weighted(site, moment)
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
    weight, bias = (a[None] for a in site.affine())
    seen = Seen(weight, bias, site.has_bias(model), rows)
    best, shift = made_of.fit(weight[0], ranks, None), bias
    blind = error = seen.error(made_of.compose(best)[None], bias)
    if seen.tells:
        for damping in _DAMPINGS if made_of.kind == "matrix" else (_DAMPING,):
            gram = seen.gram + damping * np.trace(seen.gram[0]) / site.width * np.eye(site.width)
            factors = made_of.fit(seen.wanted(gram)[0], ranks, gram[0])
            product, moved = seen.with_bias(made_of.compose(factors)[None])
            if (now := seen.error(product, moved)) < error:
                best, shift, error = factors, moved, now
    if energy is not None and error > _SLACK * (1 - energy):
        return f"on samples held back it would lose {error:.1%} of the energy: more samples may tell what can go"
    split(model, site, made_of, best, shift[0])
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
