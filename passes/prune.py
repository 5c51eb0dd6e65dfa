"""Remove whole channels over the whole graph, and make the rest answer as before.

What goes together is found by ``graph.coupling``; which channels go, and how many of each layer, by ``pruning.plan``:
the same share of every layer, or a budget spread over the layers by what each costs in error for what it saves.

The cut is proved: before anything is repaired, the model must equal the original in which the same channels are zero
wherever they are summed over. Then the layers behind it are solved anew on calibration data (``pruning.repair``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.observed import Place
from onnxopt.core.pass_ import Figure, Pass, PassResult, Preflight, Skip, label, option
from onnxopt.core.patterns import absent, excluded
from onnxopt.core.reasons import coded, mostly, refused
from onnxopt.core.reference import Reference
from onnxopt.errors import PassError
from onnxopt.graph.cost import cost
from onnxopt.graph.cutting import Cut
from onnxopt.graph.ir import Node
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.pruning import budget, channels, groups
from onnxopt.pruning.budget import Budget, Quantity
from onnxopt.pruning.criteria import Criterion
from onnxopt.pruning.depth import Branch
from onnxopt.pruning.groups import Ties
from onnxopt.pruning.plan import Plan, Planner, Settings, why_whole
from onnxopt.pruning.repair import Repaired, repair
from onnxopt.pruning.shortening import Dropped, shorten
from onnxopt.spelling import nearest

_PROOF_SAMPLES = 8
_RATIO = 0.3
_LEAST = 0.125
_FAST = 4
_QUANTITIES: tuple[Quantity, ...] = ("macs", "params", "size", "latency")
_WHEN = ("before", "after")
_Masks = dict[int, npt.NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class Prune(Pass):
    """Remove channels over the whole graph, prove the cut, and repair the layers behind it."""

    name: ClassVar[str] = "prune"
    after: ClassVar[tuple[str, ...]] = ("fold-constants", "clean")
    prepare: ClassVar[tuple[str, ...]] = ("inline-functions", "fold-bn", "conv-shortcut")

    ratio: float | None = option(None, "share of each layer's channels to remove, from 0 up to 1; 0.3 without a budget")
    macs: str = option("", "budget instead of a ratio: -30% of the multiply-accumulates, or 40M")
    params: str = option("", "budget: -40% of the parameters, or 250K")
    size: str = option("", "budget: bytes of weights, -40% or 1.5MB")
    latency: str = option("", "budget: time on this machine, -25% or 3ms")
    scope: Literal["auto", "inner", "all"] = option(
        "auto", "inner leaves channels alone that residual additions share; auto: inner for a ratio, all for a budget"
    )
    criterion: Criterion = option("obs", "which go: those that later layers can best do without, or by another score")
    align: int = option(0, "what remains is a multiple of this; 0: as the target likes, less for small layers")
    min_keep: float | None = option(
        None, "what stays of a layer at least: a share below 1, or a number of channels; 0.125 with a budget"
    )
    include: str = option("", "only the channels of these layers: names or patterns with *, joined by +")
    exclude: str = option("", "layers whose channels all stay: names or patterns with *, joined by +")
    keep_ends: bool = option(True, "leave the channels of the first and last layers alone")
    repair: bool = option(True, "solve the layers behind removed channels anew, on calibration data")
    layers: bool = option(False, "with a budget: drop whole residual blocks too, where that costs less than channels")
    steps: int = option(1, "cut in so many steps, repairing after each and judging anew")
    samples: int = option(512, "how many samples to choose and repair with, at most")

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must be at least 0 and less than 1, not {self.ratio}")
        if self.align < 0:
            raise ValueError(f"align must not be negative, not {self.align}")
        if self.min_keep is not None and self.min_keep < 0:
            raise ValueError(f"min-keep must not be negative, not {self.min_keep}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        given = [q for q in _QUANTITIES if getattr(self, q)] + (["ratio"] if self.ratio is not None else [])
        if self.layers and self.criterion != "obs":
            raise ValueError(
                "layers=true weighs blocks against channels by what the outputs lose: it needs criterion=obs"
            )
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; one says how much goes")
        if self._budget() is None and self.layers:
            raise ValueError("layers=true needs a budget: macs, params, size or latency")

    def _budget(self) -> Budget | None:
        return next((budget.parse(q, getattr(self, q)) for q in _QUANTITIES if getattr(self, q)), None)

    def _settings(self) -> Settings:
        limit = self._budget()
        scope = ("inner" if limit is None else "all") if self.scope == "auto" else self.scope
        return Settings(
            ratio=_RATIO if self.ratio is None else self.ratio,
            budget=limit,
            scope=scope,
            criterion=self.criterion,
            align=self.align,
            min_keep=self.min_keep if self.min_keep is not None else 0 if limit is None else _LEAST,
            include=self.include,
            exclude=self.exclude,
            keep_ends=self.keep_ends,
            samples=self.samples,
        )

    def needs(self) -> tuple[str, ...]:
        """For bn-gamma, the normalisations must not be folded before."""
        return ("inline-functions", "fold-constants") if self.criterion == "bn-gamma" else self.prepare

    def run(self, model: Model, context: Context) -> PassResult:
        names = [label(n) for n in model.nodes() if channels.is_layer(n)]
        if self.include and not excluded(self.include, names):
            raise PassError(f"include names no layer: '{self.include}'{nearest(self.include.split('+')[0], names)}")
        planner, original = Planner(model, context, self._settings()), model.clone()
        stays: _Masks = {}
        plans: list[Plan] = []
        proofs: list[float] = []
        repaired: list[Repaired] = []
        unsolved: dict[str, str] = {}
        carried: dict[int, Floats] = {}
        made = {id(n): str(n.outputs[0].name) for n in model.nodes() if n.outputs}
        dropped = self._drop(model, context, planner)
        for i in range(self.steps):
            plan = planner.plan(model, (i + 1) / self.steps)
            plans.append(plan)
            if not i:
                ties, frozen = Ties(plan.coupling, plan.makers), groups.frozen(model, plan.coupling, plan.makers)
            cut = Cut(plan.coupling, plan.classes)
            places = _places(plan, cut, stays, made)
            others = _others(plan, cut)
            if len(plan.classes):
                masked = cut.masked(model)
                cut.apply(model)
                proofs.append(_prove(model, masked, context))
            if self.repair and (len(plan.classes) or (dropped and not i)):
                outer = {id(n) for n in model.graph.nodes}
                faults = ((p, unrolled.fault(p.layer) if id(p.layer) in outer else groups.BODY) for p in places)
                unsolved |= {label(p.layer): f"it {fault}" for p, fault in faults if p.shortened and fault}
                unsolved |= {label(n): f"{n.op} reads fewer channels" for n in others}
                changed = [d.tensor for d in dropped]
                repaired = repair(model, original, places, context, self.samples, changed, carried)
        skips = (*absent(self.include, names, "include"), *absent(self.exclude, names))
        skips += _skips(model, plans[-1], stays)
        skips += tuple(Skip(label(n), groups.UNJUDGED) for n in groups.unjudged(plans[-1].coupling))
        if not proofs and not dropped:
            return PassResult(0, skips, {"frozen": [asdict(f) for f in frozen]})
        makers = [m.layer for m in plans[-1].makers]
        kept = {label(m): [len(stays[id(m)]), int(stays[id(m)].sum())] for m in makers}
        figures: dict[str, Figure] = {
            "channels": {name: count for name, count in kept.items() if count[0] != count[1]},
            "groups": [asdict(g) | {"kept": k} for g, k in zip(ties.groups, ties.kept(stays), strict=True)],
            "frozen": [asdict(f) for f in frozen],
        }
        if proofs:
            figures["proof"] = max(proofs)
        if dropped:
            figures["dropped"] = [{"add": d.add, "layers": list(d.layers)} for d in dropped]
        limit = self._budget()
        notes = [*([_dropped(dropped)] if dropped else []), *_slow(makers, kept)]
        if limit is not None and limit.quantity == "macs":
            notes += _uncounted(original, context)
        if notes:
            figures["notes"] = notes
        if limit is not None and plans[-1].curve:
            figures["budget"] = limit.quantity
            figures["curve"] = [[1 - left, error] for left, error in plans[-1].curve]
        if self.repair:
            skips += tuple(Skip(name, f"not repaired: {why}") for name, why in unsolved.items())
            figures |= _repairs(repaired, min(self.samples, context.dataset.count))
        return PassResult(len(dropped) + sum(len(p.classes) for p in plans), skips, figures)

    def preflight(self, model: Model, context: Context) -> Preflight | None:
        """How many channels would go, whichever they are; of a budget only the whole work tells."""
        if self._budget() is not None:
            return None
        planner = Planner(model, context, replace(self._settings(), criterion="l1"))
        plan = planner.plan(model, 1.0)
        found = [plan.coupling.output(m.layer, m.axis) for m in plan.makers]
        going = [int(np.isin(classes, plan.classes).sum()) for classes in found]
        whole = [m for m, gone in zip(plan.makers, going, strict=True) if not gone]
        skips = [Skip(label(m.layer), why_whole(m, plan.coupling, plan.held)) for m in whole]
        if not len(plan.classes):
            return refused(f"no channel would go{mostly(skips)}", skips)
        return Preflight(len(plan.classes), coded(skips), {"channels": [sum(map(len, found)), sum(going)]})

    def _drop(self, model: Model, context: Context, planner: Planner) -> list[Dropped]:
        """Drop the residual blocks that cost less than the channels that would go instead."""
        limit = self._budget()
        if limit is None or not self.layers:
            return []
        way = planner.plan(model, 1.0, reach=False).curve
        full = planner.full or 1.0

        def may_go(branch: Branch) -> bool:
            included = excluded(self.include or "*", branch.layers)
            return len(included) == len(set(branch.layers)) and not excluded(self.exclude, branch.layers)

        return shorten(model, context, way, planner.limit(limit) / full, limit.quantity, self.samples, may_go)


def _places(plan: Plan, cut: Cut, stays: _Masks, made: Mapping[int, str]) -> list[Place]:
    """The layers behind a cut, and which outputs of the original they still have: ``stays``, brought up to date."""
    shortened = cut.shortened()
    found = []
    for m in plan.makers:
        now = cut.output(m.layer, m.axis, m.slot)
        mask = stays.setdefault(id(m.layer), np.ones(len(now), bool))
        mask[mask] = now
        found.append(Place(m.layer, mask, id(m.layer) in shortened, made.get(id(m.layer), "")))
    return found


def _others(plan: Plan, cut: Cut) -> list[Node]:
    """Nodes that sum over fewer channels than before, and are no layers that could be solved anew."""
    shortened = cut.shortened() - {id(m.layer) for m in plan.makers}
    return list({id(p.node): p.node for p in plan.coupling.contractions if id(p.node) in shortened}.values())


def _skips(model: Model, plan: Plan, stays: _Masks) -> tuple[Skip, ...]:
    """The layers of which nothing goes, and why."""
    judged, outer = {id(m.layer) for m in plan.makers}, {id(n) for n in model.graph.nodes}
    others = [n for n in model.nodes() if channels.is_layer(n) and id(n) not in judged]
    found = [Skip(label(n), f"it {channels.weight_fault(n)}" if id(n) in outer else groups.BODY) for n in others]
    for m in plan.makers:
        if stays[id(m.layer)].all():
            found.append(Skip(label(m.layer), why_whole(m, plan.coupling, plan.held)))
    return tuple(found)


def _dropped(dropped: Sequence[Dropped]) -> str:
    names = ", ".join(d.add for d in dropped)
    return f"dropped {len(dropped)} residual block{'' if len(dropped) == 1 else 's'}, before {names}"


def _slow(makers: Sequence[Node], kept: Mapping[str, Sequence[int]]) -> list[str]:
    """What is to be said of convolutions that leave the runtime's fast layout."""
    counts = {label(m): kept[label(m)] for m in makers if m.op == "Conv"}
    odd = [name for name, (was, now) in counts.items() if now != was and now % _FAST and not was % _FAST]
    if not odd:
        return []
    return [
        f"{len(odd)} convolutions keep a number of channels that is no multiple of {_FAST} ({', '.join(odd[:3])}"
        f"{', ...' if len(odd) > 3 else ''}): ONNX Runtime computes them outside its fast layout, which may take "
        "longer than all channels did; align=0 keeps counts that are fast"
    ]


def _uncounted(model: Model, context: Context) -> list[str]:
    """What is to be said of nodes that a budget of MACs does not see."""
    unknown = [node.op for node in cost(model, context.shapes(model)).nodes if node.macs is None]
    if not unknown:
        return []
    kinds = list(dict.fromkeys(unknown))
    return [
        f"MACs of {len(unknown)} node{'' if len(unknown) == 1 else 's'} cannot be counted ({', '.join(kinds[:3])}"
        f"{', ...' if len(kinds) > 3 else ''}): the budget is of the others"
    ]


def _repairs(repaired: Sequence[Repaired], samples: int) -> dict[str, Figure]:
    mean = {when: float(np.mean([getattr(r, when) for r in repaired])) if repaired else None for when in _WHEN}
    return {
        "samples": samples,
        "repaired": [asdict(r) for r in repaired],
        "error_before_repair": mean["before"],
        "error_after_repair": mean["after"],
    }


def _prove(model: Model, masked: Model, context: Context) -> float:
    """How far the outputs lie from those of the masked model, the worst of them.

    Raises PassError for more than rounding explains.
    """
    reference = Reference(masked, context, _PROOF_SAMPLES)
    found = reference.deviations(model)
    for name in reference.beyond_rounding(found):
        raise PassError(
            f"removing channels changes output '{name}' by {found[name]:.2g} of its range where zeros in their place "
            "do not; leave prune out, and report it as a bug"
        )
    return max(found.values(), default=0.0)
