"""Layers of low rank: a Gemm, MatMul, convolution or table made of two or three smaller ones.

    y = W x, W (n, k)  ->  y = L (R x), L (n, r), R (r, k)        r (n + k) parameters and products instead of n k

With data, what is lost least is not of the weights but of what the layer makes (``factoring.fit``). A layer is left
whole where parameters, multiplications or the time on this machine would not fall.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Figure, Pass, PassResult, Preflight, Skip, label, option
from onnxopt.core.patterns import absent, excluded
from onnxopt.core.reasons import coded, mostly, refused
from onnxopt.factoring import fit, plan
from onnxopt.factoring.choose import Rule
from onnxopt.factoring.forms import Conv
from onnxopt.factoring.plan import Plan, Settings
from onnxopt.factoring.site import Site, find
from onnxopt.graph.model import Model
from onnxopt.pruning import budget
from onnxopt.pruning.budget import Budget, Quantity
from onnxopt.runtime.target import NATIVE

# Of what a layer makes of real data, so much stays: what is lost is hardly seen at the outputs.
_ENERGY = 0.995
# Samples that a preflight chooses ranks by.
_FEW = 64
_QUANTITIES: tuple[Quantity, ...] = ("macs", "params", "latency")


@dataclass(frozen=True, kw_only=True)
class Svd(Pass):
    """Splits layers into two or three of low rank, where that makes them smaller and faster."""

    name: ClassVar[str] = "svd"
    after: ClassVar[tuple[str, ...]] = ("inline-functions", "fold-constants", "clean", "fold-bn", "prune")
    prepare: ClassVar[tuple[str, ...]] = ("inline-functions", "fold-bn")

    ratio: float | None = option(None, "share of a factored layer's parameters to keep, 0 to 1")
    energy: float | None = option(
        None, "instead: share of the energy of a layer's outputs to keep, 0 to 1; 0.995 if nothing else is said"
    )
    rank: str = option("", "instead: one rank for all, or auto: what stands out of the weights' noise")
    macs: str = option("", "budget for the model, shared between layers: -30% of the multiply-accumulates, or 40M")
    params: str = option("", "budget: -40% of the parameters, or 250K")
    latency: str = option("", "budget: time on this machine, -20% or 3ms")
    conv: Conv = option("none", "kernels of more than one position: left alone, or into three or two convolutions")
    embeddings: bool = option(False, "tables that rows are looked up in as well: smaller, but never faster")
    aware: bool = option(True, "lose least of what layers make of the data; false, or synthetic data: of the weights")
    repair: bool = option(True, "with data: solve the layers behind anew")
    timed: bool = option(True, "leave layers whole that would not run faster on this machine")
    exclude: str = option("", "layers to leave alone: names or patterns with *, joined by +")
    samples: int = option(256, "how many samples to fit with, at most")

    def __post_init__(self) -> None:
        for name, value in (("ratio", self.ratio), ("energy", self.energy)):
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} is {value}; it lies above 0 and is at most 1")
        if self.rank and self.rank != "auto" and not (self.rank.isascii() and self.rank.isdigit() and int(self.rank)):
            raise ValueError(f"rank is '{self.rank}'; it is a number from 1 on, or auto")
        if self.rank == "auto" and self.conv == "cp":
            raise ValueError("rank=auto cannot tell the rank of conv=cp; give a ratio or a number")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        given = [q for q in ("ratio", "energy", "rank", *_QUANTITIES) if getattr(self, q) not in (None, "")]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; one says how much goes")
        self._budget()

    def _budget(self) -> Budget | None:
        return next((budget.parse(q, getattr(self, q)) for q in _QUANTITIES if getattr(self, q)), None)

    def _rule(self) -> Rule:
        limit = self._budget()
        if limit is not None:
            return Rule(budget=limit)
        if self.rank:
            return Rule(auto=True) if self.rank == "auto" else Rule(rank=int(self.rank))
        return Rule(ratio=self.ratio) if self.ratio is not None else Rule(energy=self.energy or _ENERGY)

    def run(self, model: Model, context: Context) -> PassResult:
        samples = self._samples(context)
        settings = Settings(self._rule(), self.conv, self.timed, samples)
        skips: list[Skip] = []
        sites = self._sites(model, skips)
        made = plan.plan(model, sites, settings, context)
        original = model.clone()
        layers = dict(fit.apply(model, made, settings, context))
        figures: dict[str, Figure] = {"layers": layers, **_totals(layers)}
        if samples and self.repair and layers:
            repaired = fit.make_good(model, original, context, samples)
            figures["repaired"] = [asdict(r) for r in repaired]
        if made.budget is not None:
            figures |= _reached(made, told=context.target == NATIVE or not self.latency)
        return PassResult(len(layers), (*skips, *made.skips), figures)

    def preflight(self, model: Model, context: Context) -> Preflight | None:
        """Chooses ranks by a few samples, and asks no clock: with a budget of time it cannot tell."""
        limit = self._budget()
        if limit is not None and limit.quantity == "latency":
            return None
        skips: list[Skip] = []
        sites = self._sites(model, skips)
        settings = Settings(self._rule(), self.conv, False, min(self._samples(context), _FEW))
        made = plan.plan(model, sites, settings, context)
        skips += made.skips
        if not made.layers:
            return refused(f"no layer would be factored{mostly(skips)}", skips)
        chosen = [(p.form.whole, p.choice.parameters) for p in made.layers]
        return Preflight(len(chosen), coded(skips), {"parameters": list(map(sum, zip(*chosen, strict=True)))})

    def _samples(self, context: Context) -> int:
        """How many samples to fit with: none that are made up."""
        return self.samples if self.aware and not context.dataset.synthetic else 0

    def _sites(self, model: Model, skips: list[Skip]) -> list[Site]:
        found = find(model, skips, tables=self.embeddings)
        labels = [label(n) for n in model.nodes()]
        skips += absent(self.exclude, labels)
        left_out = excluded(self.exclude, labels)
        skips += [Skip(label(s.node), left_out[label(s.node)]) for s in found if label(s.node) in left_out]
        return [s for s in found if label(s.node) not in left_out]


def _totals(layers: dict[str, dict[str, Any]]) -> dict[str, Figure]:
    return {k: sum(f[k] for f in layers.values()) for k in ("parameters_before", "parameters_after")}


def _reached(made: Plan, *, told: bool) -> dict[str, Figure]:
    """What became of a budget; a note if it was not met. ``told``: layers could be timed, or need not be."""
    assert made.budget is not None
    now, after, limit = made.budget
    figures: dict[str, Figure] = {"budget": {"before": now, "after": after, "limit": limit}}
    if after > limit * (1 + 1e-9):
        figures["notes"] = [
            f"svd: the budget is not met: {after / now:.0%} is left of what the model cost, {limit / now:.0%} wanted; "
            + (
                "the other layers would lose time or gain nothing"
                if told
                else "layers are timed on this machine only, so with another target say macs= or params="
            )
        ]
    return figures
