"""Which ranks each layer gets: by a rule for each alone, or by a budget that all share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.factoring.forms import Choice, Form, rounded_up
from onnxopt.factoring.site import Site
from onnxopt.graph.layer import Floats
from onnxopt.pruning.allocation import allocate
from onnxopt.pruning.budget import Budget
from onnxopt.pruning.costs import Axis, Costs
from onnxopt.pruning.selection import Path

# Of how many choices a layer gets one, when a budget is shared.
_LEVELS = 10


@dataclass(frozen=True)
class Rule:
    """One of them is given: the share of a layer's parameters to keep, of its outputs' energy, the same rank for all,
    ``auto`` (variational Bayes), or a budget."""

    ratio: float | None = None
    energy: float | None = None
    rank: int | None = None
    auto: bool = False
    budget: Budget | None = None

    def pick(self, form: Form, choices: Sequence[Choice], weight: Floats, step: int) -> Choice | str:
        """The choice for a layer by itself, or why it has none."""
        if self.rank is not None or self.auto:
            return self._fixed(form, weight, step)
        if self.ratio is not None:
            fit = [c for c in choices if c.parameters <= self.ratio * form.whole]
            kind = f"in {self.ratio:.0%} of its parameters"
        else:
            fit = [c for c in choices if 1 - c.loss >= (self.energy or 0.0) - 1e-12]
            kind = f"that keeps {self.energy:.2%} of the energy and saves parameters"
        if not fit:
            return f"no rank suits the target {kind}"
        if self.ratio is not None:
            return min(fit, key=lambda c: (c.loss, c.parameters))
        return min(fit, key=lambda c: (c.parameters, c.loss))

    def _fixed(self, form: Form, weight: Floats, step: int) -> Choice | str:
        if self.auto:
            ranks = tuple(rounded_up(r, step) for r in form.estimate(weight))
        else:
            ranks = (self.rank or 1,) * (2 if form.kind == "tucker" else 1)
        ranks = form.clipped(ranks)
        sizes = form.sizes(ranks)
        if sum(sizes) >= form.whole:
            o, c, h, w = form.shape
            return f"rank {' and '.join(map(str, ranks))} of {o} x {c * h * w} saves nothing"
        return Choice(ranks, sizes, 0.0)


def thinned(choices: Sequence[Choice], whole: int) -> list[Choice]:
    """The best of each size, some sizes only, the largest first: each loses more than the one before."""
    found: list[Choice] = []
    for level in np.linspace(1, 0, _LEVELS, endpoint=False):
        fit = [c for c in choices if c.parameters <= level * whole * (1 + 1e-12)]
        best = min(fit, key=lambda c: (c.loss, c.parameters), default=None)
        if best is not None and (not found or best.parameters < found[-1].parameters):
            found.append(best)
    return found


@dataclass(frozen=True)
class Offer:
    """A layer's choices with what the layer costs ``whole`` and with each, in the unit of a budget."""

    site: Site
    choices: Sequence[Choice]
    whole: float
    costs: Sequence[float]


def share(offers: Sequence[Offer], now: float, limit: float) -> tuple[list[Choice | None], float]:
    """A choice for each layer, None: it stays whole, so that a model that costs ``now`` costs ``limit`` at most; and
    what it then costs. Each step is the one that loses least for what it saves."""
    paths, terms = [], []
    blocks = [np.array([i], np.intp) for i in range(len(offers))]
    none = np.zeros(0, np.intp)
    for i, offer in enumerate(offers):
        kept = np.array([1.0, *(c / offer.whole for c in offer.costs)])[:, None]
        loss = np.array([0.0, *(c.loss for c in offer.choices)])
        paths.append(Path((i,), kept, loss, none, none))
        terms.append((offer.whole, [Axis(blocks[i])]))
    costs = Costs(blocks, terms, len(offers), max(0.0, now - sum(o.whole for o in offers)))
    found = allocate(paths, costs, limit)
    chosen = [o.choices[s - 1] if s else None for o, s in zip(offers, found.states, strict=True)]
    return chosen, costs.total(found.kept)
