"""Remove whole channels, the same share of every layer, and make the rest answer as before.

What goes together is found by ``graph.coupling``. Which channels go is decided by one of

    obs     the rise of the least-squares error of the layers that read the channel (``core.selection``)
    l1, l2  |w_c| / mean_c |w_c|, the mean over the layers that make channel c; w_c: all the weights that make it
            (Li et al., Pruning Filters for Efficient ConvNets, 2017, here over all coupled layers)

The cut is proved: before anything is repaired, the model must equal the original in which the same channels are zero
wherever they are summed over. Then the layers behind it are solved anew on calibration data (``core.repair``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.pass_ import Figure, Pass, PassResult, Skip, label, option
from onnxopt.core.reference import Reference
from onnxopt.errors import PassError
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.cutting import Cut
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.pruning import channels, selection
from onnxopt.pruning.channels import Producer
from onnxopt.pruning.repair import Place, repair
from onnxopt.pruning.selection import Quota

_PROOF_SAMPLES = 8
_ENDS = "first or last layer; keep-ends=false prunes it"
_JOINED = "shares its channels across a residual addition; scope=all prunes them"
_BODY = "lies in the body of an If, Loop or Scan"
_NARROW = "too few channels that go together to remove any, with this ratio and align"


@dataclass(frozen=True, kw_only=True)
class Prune(Pass):
    """Remove channels over the whole graph, prove the cut, and repair the layers behind it."""

    name: ClassVar[str] = "prune"
    after: ClassVar[tuple[str, ...]] = ("fold-constants", "clean")
    prepare: ClassVar[tuple[str, ...]] = ("inline-functions", "fold-bn")

    ratio: float = option(0.3, "share of each layer's channels to remove, from 0 up to 1")
    scope: Literal["inner", "all"] = option("inner", "inner leaves channels alone that residual additions share")
    criterion: Literal["obs", "l1", "l2"] = option(
        "obs", "which go: those that later layers can best do without, or those made with the smallest weights"
    )
    align: int = option(0, "what remains is a multiple of this; 0: as the target likes, less for small layers")
    keep_ends: bool = option(True, "leave the channels of the first and last layers alone")
    repair: bool = option(True, "solve the layers behind removed channels anew, on calibration data")
    samples: int = option(512, "how many samples to choose and repair with, at most")

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must be at least 0 and less than 1, not {self.ratio}")
        if self.align < 0:
            raise ValueError(f"align must not be negative, not {self.align}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")

    def run(self, model: Model, context: Context) -> PassResult:
        coupling = Coupling(model, context.shapes(model), context.free_axes(model))
        makers = channels.producers(model.graph, coupling)
        score = channels.scores(makers, coupling, 2 if self.criterion == "l2" else 1)
        quotas, held = self._quotas(model, coupling, makers, score, context.target.channel_step)
        if self.criterion == "obs":
            chosen = selection.by_data(model, coupling, quotas, score, context, self.samples)
        else:
            chosen = [selection.by_score(quota, score) for quota in quotas]
        cut = Cut(coupling, np.concatenate([*chosen, np.zeros(0, np.intp)]))
        skips = _skips(model, makers, held, cut)
        if not chosen:
            return PassResult(0, skips)
        shortened = cut.shortened()
        places = [Place(m.layer, cut.output(m.layer, m.axis), id(m.layer) in shortened) for m in makers]
        original, masked = model.clone(), cut.masked(model)
        cut.apply(model)
        figures: dict[str, Figure] = {
            "channels": {label(p.layer): [p.outputs.size, int(p.outputs.sum())] for p in places if not p.outputs.all()},
            "proof": _prove(model, masked, context),
        }
        if self.repair:
            faults = [(p.layer, unrolled.fault(p.layer)) for p in places if p.shortened]
            skips += tuple(Skip(label(layer), f"not repaired: it {fault}") for layer, fault in faults if fault)
            done = repair(model, original, places, context, self.samples)
            figures["samples"] = min(self.samples, context.dataset.count)
            figures["repaired"] = [asdict(d) for d in done]
            for when, errors in (("before", [d.before for d in done]), ("after", [d.after for d in done])):
                figures[f"error_{when}_repair"] = float(np.mean(errors)) if errors else None
        return PassResult(sum(map(len, chosen)), skips, figures)

    def _quotas(
        self, model: Model, coupling: Coupling, makers: Sequence[Producer], score: Floats, channel_step: int
    ) -> tuple[list[Quota], dict[int, str]]:
        """How many channels go of which block; and why all of others stay, by class."""
        width = channels.widths(makers, coupling)
        held: dict[int, str] = {}
        if self.scope == "inner":
            joined = np.flatnonzero(coupling.joined() & channels.shared(makers, coupling))
            held |= dict.fromkeys(joined.tolist(), _JOINED)
        if self.keep_ends:
            ends = channels.ends(model.graph)
            held |= {int(c): _ENDS for m in makers if id(m.layer) in ends for c in m.classes if c}
        quotas = []
        for block in coupling.blocks():
            first = int(block[0])
            if first in held or np.isnan(score[first]):
                continue
            stay = channels.kept(len(block), int(width[first]), self.ratio, self.align, channel_step)
            if stay < len(block):
                quotas.append(Quota(block, len(block) - stay))
            else:
                held |= dict.fromkeys(block.tolist(), _NARROW)
        return quotas, held


def _skips(model: Model, makers: Sequence[Producer], held: dict[int, str], cut: Cut) -> tuple[Skip, ...]:
    """The layers of which nothing goes, and why."""
    judged, outer = {id(m.layer) for m in makers}, {id(n) for n in model.graph.nodes}
    others = [n for n in model.nodes() if channels.is_layer(n) and id(n) not in judged]
    found = [Skip(label(n), f"it {channels.weight_fault(n)}" if id(n) in outer else _BODY) for n in others]
    for m in makers:
        if cut.output(m.layer, m.axis).all():
            why = next((held[c] for c in m.classes.tolist() if c in held), "")
            frozen = cut.coupling.why_frozen(m.layer, m.axis)
            found.append(Skip(label(m.layer), why or f"its channels stay: {frozen}"))
    return tuple(found)


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
