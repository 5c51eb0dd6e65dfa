"""Which layers lose most by integers, and what it would cost to leave them float.

The damage of a layer is the error of the outputs when it alone runs in integers. Errors of layers add up as energies,
near enough to rank them. Leaving out one layer of an integer model asks the same question the other way round, and
answers it worse: where two layers do the same harm, or read the same badly rounded tensor, neither alone gains
anything. With the five most harmful layers in floats, a voice detector of 34 layers reaches 29.9 dB by the first
ranking and 24.8 dB by the second, a keyword spotter 40.0 and 35.4 dB, a small ResNet 31.8 and 31.7 dB; and the first
takes less than half the time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from onnxopt.core.pass_ import label
from onnxopt.core.quality import Quality
from onnxopt.graph.cost import cost
from onnxopt.progress import Track, silent
from onnxopt.quantization.candidate import Builder, Candidate
from onnxopt.quantization.judge import Judge
from onnxopt.quantization.times import Times
from onnxopt.runtime.profile import profile

# Samples that damage is measured on: energies settle with few.
SAMPLES = 16
# What a MAC takes longer in floats, on one thread of an x86 server with AVX512-VNNI.
_PS_A_MAC = 10
_OTHERS = "another layer is looked at"


@dataclass(frozen=True)
class Sensitivity:
    """One layer. ``share`` is that of the model's MACs, None where they are not known.

    With only this layer in integers: ``sqnr_db`` of the worst output, infinite where nothing changes, ``agreement`` and
    ``accuracy_drop`` where answers can be told. With only this layer float: ``gain_db``, how much nearer the outputs
    come, None where that was not measured. ``lost_ms`` is what one run takes longer in its float form.
    """

    layer: str
    op: str
    share: float | None
    sqnr_db: float
    agreement: float | None
    accuracy_drop: float | None
    lost_ms: float
    gain_db: float | None = None

    @property
    def noise(self) -> float:
        """Energy of the error over that of the output."""
        return 10 ** (-self.sqnr_db / 10)


def rank(
    builder: Builder,
    full: Candidate,
    judge: Judge,
    *,
    gains: bool = False,
    timed: bool = True,
    track: Track = silent,
) -> tuple[Sensitivity, ...]:
    """The layers of a full-integer candidate, the most harmful first. ``gains`` also measures ``gain_db``;
    ``timed``: ``lost_ms`` is measured here, not estimated."""
    units = [label(u.node) for u in full.placement.units]
    total = judge(full.model).sqnr_db if gains else math.nan
    lost = lost_ms(builder, full) if timed else _estimated_ms(builder)
    shares = mac_shares(builder)
    layers = [name for name in full.layers if name in units]
    others = [*units, *(name for name in full.layers if name not in units)]
    without = {layer: {other: _OTHERS for other in others if other != layer} for layer in layers}
    builder.prepare(without.values())
    found = []
    for layer in track(layers, "rank layers"):
        alone = builder.build(without[layer])
        quality = judge(alone.model) if isinstance(alone, Candidate) else judge.perfect
        op, share = shares[layer]
        gain = _gain(builder.build({layer: _OTHERS}), judge, total) if gains else None
        found.append(
            Sensitivity(layer, op, share, quality.sqnr_db, quality.agreement, drop(quality), lost[layer], gain)
        )
    return tuple(sorted(found, key=lambda s: s.sqnr_db))


def drop(quality: Quality) -> float | None:
    """Accuracy lost, as a share of the samples; None without labels."""
    if quality.accuracy is None or quality.accuracy_reference is None:
        return None
    return quality.accuracy_reference - quality.accuracy


def lost_ms(builder: Builder, full: Candidate) -> dict[str, float]:
    """What a run takes longer, in milliseconds, with each layer alone float in a full-integer candidate: its own time,
    measured in both forms, and the steps that its neighbours then need. For one sample, or for the batch whose time the
    context has count; below zero where floats are quicker all the same."""
    context, placement, steps = builder.context, full.placement, Times()
    feed = next(iter(context.dataset.batches(context.latency_batch, stop=context.latency_batch)))
    floats, integers = (profile(m, feed, threads=context.threads) for m in (builder.plain, full.model))
    found = {}
    for unit in (u for u in placement.units if label(u.node) in full.layers):
        name = label(unit.node)
        added = floats.nodes.get(name, 0.0) - integers.nodes.get(name, 0.0)
        added += sum(steps.to_floats(t, builder.sizes) for t in unit.reads if t.name in placement.made)
        added += sum(steps.to_integers(t, builder.sizes) for t in unit.writes if t.name in placement.read)
        found[name] = 1e3 * added
    return found


def _estimated_ms(builder: Builder) -> dict[str, float]:
    """The same by the layers' MACs alone: no clock is asked, so the same model gives the same figures everywhere."""
    nodes = zip(builder.plain.nodes(), cost(builder.plain, builder.sizes).nodes, strict=True)
    return {label(node): 1e-9 * _PS_A_MAC * (row.macs or 0) for node, row in nodes}


def _gain(candidate: Candidate | object, judge: Judge, total: float) -> float:
    return (judge(candidate.model).sqnr_db if isinstance(candidate, Candidate) else math.inf) - total


def mac_shares(builder: Builder) -> Mapping[str, tuple[str, float | None]]:
    """Operator and share of the MACs, by layer."""
    nodes = zip(builder.plain.nodes(), cost(builder.plain, builder.sizes).nodes, strict=True)
    rows = {label(node): row for node, row in nodes}
    total = sum(row.macs or 0 for row in rows.values())
    return {n: (row.op, row.macs / total if row.macs is not None and total else None) for n, row in rows.items()}
