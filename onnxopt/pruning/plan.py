"""Which channels go: the same share of every layer, or as many of each as meet a budget at the least error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from onnxopt.core.context import Context
from onnxopt.core.pass_ import label
from onnxopt.core.patterns import excluded
from onnxopt.errors import PassError
from onnxopt.graph.cost import cost
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.labels import Labels
from onnxopt.graph.layer import Floats, stored_weight
from onnxopt.graph.model import Model
from onnxopt.pruning import channels, costs, criteria, selection
from onnxopt.pruning.allocation import allocate
from onnxopt.pruning.budget import Budget
from onnxopt.pruning.channels import Producer
from onnxopt.pruning.costs import Costs
from onnxopt.pruning.criteria import Criterion
from onnxopt.pruning.latency import latency
from onnxopt.pruning.probe import Probe
from onnxopt.pruning.selection import Block

_ENDS = "first or last layer; keep-ends=false prunes it"
_JOINED = "shares its channels across a residual addition; scope=all prunes them"
_NARROW = "too few channels that go together to remove any, with this ratio and align"
_EXCLUDED = "excluded"
_NOT_INCLUDED = "not included"
_SPARED = "the budget is met without it"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of a plan; see the pass. ``budget`` goes before ``ratio``."""

    ratio: float
    budget: Budget | None
    scope: Literal["inner", "all"]
    criterion: Criterion
    align: int
    min_keep: float
    include: str
    exclude: str
    keep_ends: bool
    samples: int


@dataclass(frozen=True)
class Plan:
    """The classes that go; why others stay, by class; and (share of the cost left, error) on the way there."""

    coupling: Coupling
    makers: Sequence[Producer]
    classes: Labels
    held: Mapping[int, str] = field(default_factory=dict)
    curve: Sequence[tuple[float, float]] = ()


class Planner:
    """Plans for one model, again after every step of a gradual cut."""

    def __init__(self, model: Model, context: Context, settings: Settings) -> None:
        self._settings = settings
        self._context = context
        self._widths = {
            id(n): channels.count(n) for n in model.nodes() if channels.is_layer(n) and not channels.weight_fault(n)
        }
        self.full: float | None = None
        self._way: list[tuple[float, float]] = []

    def plan(self, model: Model, part: float, *, reach: bool = True) -> Plan:
        """What goes until ``part`` of the whole cut is made. A budget is of what the first model that was planned for
        costs; where it cannot be met, raises PassError, or without ``reach`` goes as far as can be.
        """
        context, settings = self._context, self._settings
        shapes = context.shapes(model)
        coupling = Coupling(model, shapes, context.free_axes(model))
        makers = channels.producers(model.graph, coupling)
        judged_by: Criterion = "l1" if settings.criterion == "obs" else settings.criterion
        score = criteria.score(judged_by, model, coupling, makers, context, settings.samples)
        made = criteria.made(makers, coupling)
        unjudged = made[np.isnan(score[made])].tolist()
        held = dict.fromkeys(unjudged, f"criterion={judged_by} says nothing of its channels")
        held |= self._held(model, coupling, makers)
        blocks = self._blocks(coupling, makers, score, held)
        if settings.budget is None:
            grown = np.ones(coupling.count + 1)
            for m in reversed(makers):
                grown[m.classes] = self._widths[id(m.layer)] / len(m.classes)
            blocks = [b._replace(levels=self._share(b, grown, part)) for b in blocks]
        for block in blocks:
            if not block.most:
                held |= dict.fromkeys(block.classes.tolist(), _NARROW)
        blocks = [b for b in blocks if b.most]
        found = None if settings.budget is None else self._costs(model, coupling, blocks, shapes)
        if found is not None:
            savings = [found.saved(found.full, [i], found.full[i : i + 1, None] - 1)[0] for i in range(len(blocks))]
            blocks = [b._replace(saving=float(s)) for b, s in zip(blocks, savings, strict=True)]
        if settings.criterion == "obs":
            # Without outputs in floats there is nothing to measure, and layers' own errors are compared.
            tells = found is not None and blocks and any(np.issubdtype(t.dtype, np.floating) for t in model.outputs)
            probe = Probe(model, context, settings.samples) if tells else None
            if selection.unread(model, coupling, blocks):
                seen = criteria.score("activation", model, coupling, makers, context, settings.samples)
                score = np.where(np.isnan(seen), score, seen)
            paths = selection.by_data(model, coupling, blocks, score, context, settings.samples, probe)
        else:
            paths = selection.by_score(blocks, score)
        if found is None or settings.budget is None:
            return Plan(coupling, makers, _joined([p.order for p in paths]), held)
        if self.full is None:
            self.full = found.total(found.full) or 1.0
        limit = self.full + (self.limit(settings.budget) - self.full) * part
        states, kept, way = allocate(paths, found, limit)
        if reach and found.total(kept) > limit * (1 + 1e-9):
            if not blocks and not self._way:
                raise PassError(f"{settings.budget.quantity} cannot be cut: {_nothing_goes(makers, coupling, held)}")
            raise PassError(_unreachable(settings, found.total(kept) / self.full))
        for block, k in zip(blocks, kept, strict=True):
            if k == len(block.classes):
                held |= dict.fromkeys(block.classes.tolist(), _SPARED)
        gone = [p.order[: p.gone[state]] for p, state in zip(paths, states, strict=True)]
        if settings.criterion == "obs" and blocks:
            # Now that it is known how many go, which do is judged on all samples, those of the probe too.
            goals = [b._replace(levels=b.levels[b.levels >= k]) for b, k in zip(blocks, kept, strict=True)]
            again = selection.by_data(model, coupling, [g for g in goals if g.most], score, context, settings.samples)
            gone = [p.order for p in again]
        before = self._way[-1][1] if self._way else 0.0
        curve = [*self._way, *((c / self.full, before + error) for c, error in way)]
        if reach:
            self._way = curve
        return Plan(coupling, makers, _joined(gone), held, curve)

    def limit(self, budget: Budget) -> float:
        """What the budget leaves, once there is a plan. Exact passes may have added MACs to the model as it was given,
        of which the budget is."""
        full = self.full or 1.0
        if budget.quantity == "macs":
            original = self._context.original
            full = min(full, cost(original, self._context.shapes(original)).total.macs or full)
        return budget.limit(full)

    def _held(self, model: Model, coupling: Coupling, makers: Sequence[Producer]) -> dict[int, str]:
        """Classes that are left alone because they were asked to be, and why."""
        settings = self._settings
        held: dict[int, str] = {}
        if settings.scope == "inner":
            joined = np.flatnonzero(coupling.joined() & channels.shared(makers, coupling))
            held |= {int(c): _JOINED for c in joined if c}
        if settings.keep_ends:
            ends = channels.ends(model.graph)
            held |= {int(c): _ENDS for m in makers if id(m.layer) in ends for c in m.classes if c}
        labels = [label(m.layer) for m in makers]
        if settings.include:
            named = excluded(settings.include, labels)
            chosen = {int(c) for m in makers if label(m.layer) in named for c in m.classes}
            held |= dict.fromkeys(set(range(1, coupling.count + 1)) - chosen, _NOT_INCLUDED)
        named = excluded(settings.exclude, labels)
        held |= {int(c): _EXCLUDED for m in makers if label(m.layer) in named for c in m.classes if c}
        return held

    def _blocks(
        self, coupling: Coupling, makers: Sequence[Producer], score: Floats, held: Mapping[int, str]
    ) -> list[Block]:
        """The blocks that may be cut, with the numbers of classes that may stay."""
        width, channel_step = channels.widths(makers, coupling), self._context.target.channel_step
        found = []
        for block in coupling.blocks():
            first = int(block[0])
            if first in held or np.isnan(score[first]):
                continue
            wide, align = int(width[first]), self._settings.align
            if not align and self._settings.budget is None:
                align = channels.step(len(block) * wide, channel_step)
            able = channels.levels(len(block), wide, align, channel_step)
            least = self._settings.min_keep
            fewest = max(1, least * len(block) if least < 1 else least / wide)
            found.append(Block(block, able[able >= min(fewest, len(block))]))
        return found

    def _share(self, block: Block, grown: Floats, part: float) -> Floats:
        """All classes of a block, down to the fewest that are at least the share that is wanted of what it was."""
        was = len(block.classes) * float(grown[int(block.classes[0])])
        wanted = min((1 - self._settings.ratio * part) * was, block.levels[0])
        return np.asarray(block.levels[block.levels >= wanted - 1e-6])

    def _costs(
        self, model: Model, coupling: Coupling, blocks: Sequence[Block], shapes: Mapping[str, tuple[int, ...]]
    ) -> Costs:
        classes = [b.classes for b in blocks]
        match self._settings.budget:
            case Budget("macs"):
                return costs.macs(model, coupling, classes, shapes)
            case Budget("params"):
                return costs.parameters(model, coupling, classes)
            case Budget("latency"):
                return latency(model, coupling, classes, shapes, self._context)
            case _:
                return costs.parameters(model, coupling, classes, in_bytes=True)


def _joined(parts: Sequence[Labels]) -> Labels:
    return np.concatenate([*parts, np.zeros(0, np.intp)])


def why_whole(maker: Producer, coupling: Coupling, held: Mapping[int, str]) -> str:
    """Why all channels of a layer stay; ``held`` says it of classes that could go otherwise."""
    asked = next((held[c] for c in maker.classes.tolist() if c and c in held), "")
    frozen = "" if asked else coupling.why_frozen(maker.layer, maker.axis)
    return asked or (f"its channels stay: {frozen}" if frozen else "its channels stay")


def _nothing_goes(makers: Sequence[Producer], coupling: Coupling, held: Mapping[int, str]) -> str:
    """That no channel can go, and what holds the most weights."""
    weights: dict[str, int] = {}
    for m in makers:
        stored, why = stored_weight(m.layer), why_whole(m, coupling, held)
        weights[why] = weights.get(why, 0) + (0 if stored is None else int(np.prod(stored.shape)))
    most = max(weights, key=weights.__getitem__, default="")
    return "no channel of this model can go" + (f"; most of its weights: {most}" if most else "")


def _unreachable(settings: Settings, least: float) -> str:
    """What is missing to a budget, and the options that would allow more, of those that do not yet."""
    more = {
        "scope=all": settings.scope == "inner",
        "keep-ends=false": settings.keep_ends,
        "a smaller min-keep": settings.min_keep > 0,
        "a smaller align": settings.align > 1,
        "more layers to include": bool(settings.include),
        "fewer to exclude": bool(settings.exclude),
    }
    options = ", ".join(option for option, helps in more.items() if helps)
    quantity = "" if settings.budget is None else settings.budget.quantity
    return (
        f"{quantity} can be cut to {least:.0%} at most, which is more than the budget allows; "
        f"ask for less{f', or allow more: {options}' if options else ''}"
    )
