"""Remove whole channels: of every layer the share ``ratio``, those whose weights are smallest.

What goes together is found by ``graph.coupling``; a class of channels is judged by the mean over its layers of

    |w_c| / mean_c |w_c|        w_c: all weights that make channel c; L1 or L2 norm

(Li et al., Pruning Filters for Efficient ConvNets, 2017, here over all coupled layers). The cut is proved: before
anything is repaired, the model must equal the original in which the same channels are zero wherever they are summed
over. Then the layers that lost inputs are solved anew on calibration data (``core.repair``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import numpy as np

from onnxopt.core import channels, unrolled
from onnxopt.core.channels import Producer
from onnxopt.core.context import Context
from onnxopt.core.pass_ import Figure, Pass, PassResult, Skip, label, option
from onnxopt.core.repair import Place, repair
from onnxopt.errors import PassError
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.cutting import Cut
from onnxopt.graph.labels import Labels
from onnxopt.graph.model import Model
from onnxopt.numerics.tolerance import allowed, deviation
from onnxopt.runtime.session import Session

_PROOF_SAMPLES = 8
_ENDS = "first or last layer; keep-ends=false prunes it"
_JOINED = "shares its channels across a residual addition; scope=all prunes them"
_NARROW = "too few channels that go together to remove any: what remains must be a multiple of align"


@dataclass(frozen=True, kw_only=True)
class Prune(Pass):
    """Remove channels over the whole graph, prove the cut, and repair the layers behind it."""

    name: ClassVar[str] = "prune"
    prepare: ClassVar[tuple[str, ...]] = ("fold-bn",)

    ratio: float = option(0.3, "share of each layer's channels to remove, from 0 up to 1")
    scope: Literal["inner", "all"] = option("inner", "inner leaves channels alone that residual additions share")
    criterion: Literal["l1", "l2"] = option("l1", "norm of the weights that make a channel")
    align: int = option(0, "what remains is a multiple of this; 0: as the target likes, less for small layers")
    keep_ends: bool = option(True, "leave the channels of the first and last layers alone")
    repair: bool = option(True, "solve the layers behind removed channels anew, on calibration data")
    samples: int = option(512, "how many samples to repair with, at most")

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
        removed, skips = self._choose(model, coupling, makers, context.target.channel_step)
        if not len(removed):
            return PassResult(0, tuple(skips))
        cut = Cut(coupling, removed)
        masks = [(m, ~np.isin(m.classes, removed)) for m in makers]
        counts: Figure = {label(m.layer): [len(k), int(k.sum())] for m, k in masks if not k.all()}
        places = [Place(m.layer, k) for m, k in masks if not cut.input(m.layer, 0, _into(m)).all()]
        original, masked = model.clone(), cut.masked(model)
        cut.apply(model)
        model.tidy()
        figures: dict[str, Figure] = {"channels": counts, "proof": _prove(model, masked, context)}
        if self.repair:
            faults = [unrolled.fault(p.layer) for p in places]
            skips += [Skip(label(p.layer), f"not repaired: it {f}") for p, f in zip(places, faults, strict=True) if f]
            sound = [p for p, f in zip(places, faults, strict=True) if not f]
            done = repair(model, original, sound, context, self.samples)
            figures["repaired"] = [asdict(d) for d in done]
        return PassResult(len(removed), tuple(skips), figures)

    def _choose(
        self, model: Model, coupling: Coupling, makers: Sequence[Producer], channel_step: int
    ) -> tuple[Labels, list[Skip]]:
        """The classes to remove, and the layers of which nothing goes."""
        score = channels.scores(makers, coupling, 1 if self.criterion == "l1" else 2)
        width = channels.widths(makers, coupling)
        held: dict[int, str] = {}
        if self.scope == "inner":
            joined = np.flatnonzero(coupling.joined() & channels.shared(makers, coupling))
            held |= dict.fromkeys(joined.tolist(), _JOINED)
        if self.keep_ends:
            ends = channels.ends(model.graph)
            held |= {int(c): _ENDS for m in makers if id(m.layer) in ends for c in m.classes if c}
        chosen = []
        for block in coupling.blocks():
            if np.isnan(score[block[0]]) or int(block[0]) in held:
                continue
            stay = channels.kept(len(block), int(width[block[0]]), self.ratio, self.align, channel_step)
            if stay == len(block):
                held |= dict.fromkeys(block.tolist(), _NARROW)
            chosen.append(block[np.argsort(score[block], kind="stable")[: len(block) - stay]])
        removed = np.concatenate([*chosen, np.zeros(0, np.intp)])
        skips = []
        for m in makers:
            if not np.isin(m.classes, removed).any():
                why = next((held[c] for c in m.classes.tolist() if c in held), "")
                skips.append(Skip(label(m.layer), why or f"its channels stay: {coupling.why_frozen(m.layer, m.axis)}"))
        return removed, skips


def _into(maker: Producer) -> int:
    return 1 if maker.axis == 1 else -1


def _prove(model: Model, masked: Model, context: Context) -> dict[str, Figure]:
    """The cut model against the masked one, output by output. Raises PassError where more than rounding differs."""
    feed = next(iter(context.dataset.batches(_PROOF_SAMPLES, stop=_PROOF_SAMPLES)))
    expected = Session(masked, threads=context.threads, optimize=False).run(feed)
    got = Session(model, threads=context.threads, optimize=False).run(feed)
    found: dict[str, Figure] = {}
    for name, value in expected.items():
        found[name] = amount = deviation(value, got[name])
        if amount > allowed(value.dtype):
            raise PassError(
                f"pruning changed the output '{name}' by {amount:.2g} of its range where masking the same channels "
                "does not; leave prune out, and report it as a bug"
            )
    return found
