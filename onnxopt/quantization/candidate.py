"""A model in integers, built from its float form for one choice of what stays float.

What is measured once, ranges and shapes, serves every candidate that is built of the same float model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

from onnxopt.core.context import Context, Method
from onnxopt.core.pass_ import Skip, label
from onnxopt.graph import shapes
from onnxopt.graph.model import Model
from onnxopt.numerics.qparams import QParams
from onnxopt.numerics.ranges import Range
from onnxopt.quantization import qdq
from onnxopt.quantization.bias_correction import Means, Read, measure
from onnxopt.quantization.dynamic import quantize_layers
from onnxopt.quantization.eligible import Reasons, Sizes, Specs, is_layer
from onnxopt.quantization.input_grid import Aligned, align, restore
from onnxopt.quantization.measured import Ranges
from onnxopt.quantization.placement import Placement, Unit, place
from onnxopt.quantization.plain_axes import name_all_axes
from onnxopt.quantization.plain_layers import make_plain
from onnxopt.quantization.rounding import learn
from onnxopt.quantization.scales import uneven_concats
from onnxopt.quantization.times import Times
from onnxopt.quantization.tuning import Tuned, tune
from onnxopt.quantization.weights import LayerWeights, correct, nearest
from onnxopt.runtime.audit import Audit, audit
from onnxopt.runtime.probe import saturates

# Weights with a scale for each output channel.
PER_CHANNEL_OPSET = 13
_DYNAMIC = "its scales are dynamic"


@dataclass(frozen=True)
class Settings:
    """How numbers become integers. ``method``: how a tensor's range is taken from the data. ``per_channel``: one weight
    scale for each output channel. ``bias_correction``: biases make good for what rounding adds on average."""

    method: Method = "mse"
    per_channel: bool = True
    bias_correction: bool = True


@dataclass(frozen=True)
class Candidate:
    """A float model's integer form. ``layers`` are the nodes with weights that run in integers, ``left_out`` those that
    were found not to; ``placement`` refers to the nodes of the integer model; ``reduced`` counts the channels whose
    weights have fewer bits lest products overflow; ``learned`` the layers whose weights are rounded by what they make
    of their inputs, and ``not_learned`` says why others are not."""

    model: Model
    placement: Placement
    executed: Audit
    layers: tuple[str, ...]
    left_out: Reasons
    reduced: int
    learned: int = 0
    not_learned: tuple[Skip, ...] = ()

    @property
    def skips(self) -> tuple[Skip, ...]:
        """The layers that stay float, with the reason."""
        return self.placement.skips


class Builder:
    """Builds candidates of one float model, which is first given the form that integer kernels take.

    ``left_out`` are the nodes that stay float in every candidate, with the reason; ``dynamic`` the names of those that
    get their scales at every run; ``times`` decide what pays; ``aligned`` are the inputs that were made plain integers,
    if that has been done already.
    """

    def __init__(
        self,
        model: Model,
        context: Context,
        settings: Settings,
        left_out: Reasons,
        dynamic: Sequence[str] = (),
        times: Times = Times(),  # noqa: B008  # frozen
        aligned: Mapping[str, Aligned] | None = None,
    ) -> None:
        self.plain = model
        self.dynamic = tuple(dynamic)
        self.times = times
        self.context = context
        self.settings = settings
        sizes, specs = context.shapes(model), shapes.specs(model)
        name_all_axes(model, sizes, specs)
        make_plain(model, sizes, specs, left_out)
        self._left_out = dict(left_out)
        self.aligned = self._align(context.shapes(model), shapes.specs(model)) if aligned is None else aligned
        self.sizes, self.specs = context.shapes(model), shapes.specs(model)
        self._ranges = Ranges(model, context, settings.method, {n: a.range for n, a in self.aligned.items()})
        self._known_means: dict[tuple[object, ...], Means] = {}

    def with_dynamic(self, names: Sequence[str], left_out: Reasons) -> Builder:
        """The same with these nodes dynamic and more of them float; what was measured serves both."""
        other = copy(self)
        other.dynamic, other._left_out = tuple(names), self._left_out | dict(left_out)
        return other

    def _align(self, sizes: Sizes, specs: Specs) -> Mapping[str, Aligned]:
        """Give inputs that are integers in disguise as such."""
        # Integers are all positive: what rounding the weights adds on average grows, and biases must make good for it.
        if not (self.settings.per_channel and self.settings.bias_correction and self.plain.opset >= PER_CHANNEL_OPSET):
            return {}
        aligned = align(self.plain, self.context, sizes, specs, self._left_out)
        made = self.plain.variables()
        for name in (n for n, a in aligned.items() if a.source is not None):
            shift = made[name].inputs[0]
            scale = shift.inputs[0].inputs[0]
            self._left_out |= {label(node): "scales and shifts an input" for node in (shift, scale)}
        return aligned

    def of(self, model: Model) -> Builder:
        """The same for another float model with the same nodes."""
        return Builder(model, self.context, self.settings, self._left_out, self.dynamic, self.times, self.aligned)

    @property
    def ranges(self) -> Mapping[str, Range]:
        """The ranges that are known, by tensor."""
        return dict(self._ranges.found)

    @ranges.setter
    def ranges(self, found: Mapping[str, Range]) -> None:
        self._ranges.found = dict(found)

    @property
    def notes(self) -> Sequence[str]:
        """What calibration found that a person should know."""
        return self._ranges.notes

    def place(self, model: Model, left_out: Reasons, times: Times = Times()) -> Placement:  # noqa: B008  # frozen
        """Choose what runs in integers, measure the ranges, and choose again without the tensors that have none."""
        uneven: dict[str, str] = {}
        while True:
            apart = {**left_out, **uneven}
            placement = place(model, self.sizes, self.specs, left_out=apart, unfit=self._ranges.unfit, times=times)
            unknown = sorted(set(placement.roots.values()) - set(self._ranges.found))
            if unknown:
                self._ranges.measure(unknown)
            elif found := uneven_concats(placement, self._ranges.found):
                uneven |= found
            else:
                return replace(placement, skips=(*placement.skips, *itertools.starmap(Skip, uneven.items())))

    def prepare(self, choices: Iterable[Reasons]) -> None:
        """Measure in one run the ranges that the candidates without these nodes need."""
        placements = [
            place(self.plain, self.sizes, self.specs, left_out=self._left_out | dict(c), unfit=self._ranges.unfit)
            for c in choices
        ]
        unknown = {root for p in placements for root in p.roots.values()} - set(self._ranges.found)
        if unknown:
            self._ranges.measure(sorted(unknown))

    def tune(self, placement: Placement, samples: int) -> dict[str, Tuned]:
        """Choose ranges by what rounding does to the model's answers; all candidates built from now on have them."""
        known, statistics = self._ranges.found, self._ranges.statistics
        tuned = tune(self.plain, placement, known, statistics, self.context, samples)
        known |= {name: t.range for name, t in tuned.items()}
        return tuned

    def build(
        self,
        left_out: Reasons,
        times: Times | None = None,
    ) -> Candidate | tuple[Skip, ...]:
        """The candidate without the nodes in ``left_out`` (label: reason); only skips where nothing is left to run in
        integers. ``times`` decide instead of the builder's own. A layer that ONNX Runtime leaves float all the same is
        left out as well."""
        left_out = self._left_out | dict(left_out)
        while True:
            model = self.plain.clone()
            dynamic = [name for name in self.dynamic if name not in left_out]
            floats = left_out | dict.fromkeys(dynamic, _DYNAMIC)
            placement = self.place(model, floats, self.times if times is None else times)
            placement = replace(placement, skips=tuple(s for s in placement.skips if s.node not in dynamic))
            if not placement.units and not dynamic:
                return placement.skips
            params = qdq.choose(placement, self._ranges.found, self.context.target.activations)
            weights = self._weights(placement, params)
            layers = (*weights, *dynamic)
            self._write(model, placement, params, weights)
            reduced = quantize_layers(model, dynamic, guard=saturates(self.context.target))
            model.tidy()
            # A file for ARM is not what runs best here: what counts is what its kernels would be there.
            executed = audit(model, rules="arm" if self.context.target.activations.signed else "native")
            refused = {n.node: f"ONNX Runtime leaves it float: {n.why}" for n in executed.islands if n.node in layers}
            if not refused:
                reduced += sum(w.reduced for w in weights.values())
                return Candidate(model, placement, executed, layers, left_out, reduced)
            left_out |= refused

    def refine(self, candidate: Candidate, samples: int) -> Candidate:
        """The candidate with weights rounded by what they make of their inputs, on at most so many samples.

        It must be of this builder, with the ranges that are known now. Whatever else is built later has weights rounded
        to nearest.
        """
        safe, dynamic = saturates(self.context.target), [n for n in self.dynamic if n in candidate.layers]

        def write(weights: Mapping[str, LayerWeights]) -> tuple[Model, Placement]:
            model = self.plain.clone()
            placement = candidate.placement.on(model)
            self._write(model, placement, params, weights)
            return model, placement

        placement = candidate.placement.on(self.plain)
        params = qdq.choose(placement, self._ranges.found, self.context.target.activations)
        weights = self._weights(placement, params)
        rounded, _ = write({})
        rounded.tidy()
        learned, skips = learn(self.plain, rounded, placement, weights, self.context, samples, safe=safe)
        model, placement = write(weights | {name: found.weights for name, found in learned.items()})
        quantize_layers(model, dynamic, guard=safe)
        model.tidy()
        return replace(candidate, model=model, placement=placement, learned=len(learned), not_learned=tuple(skips))

    def _write(
        self, model: Model, placement: Placement, params: Mapping[str, QParams], weights: Mapping[str, LayerWeights]
    ) -> None:
        """Write a placement; inputs that nobody reads as integers after all are given back as they were."""
        for name in (n for n, a in self.aligned.items() if a.source is not None and n not in placement.read):
            restore(model, name)
        qdq.write(model, placement, params, weights, self.aligned)

    def _weights(self, placement: Placement, params: Mapping[str, QParams]) -> dict[str, LayerWeights]:
        """The placement's layers in integers, by label."""
        units = [u for u in placement.units if is_layer(u.node)]
        per_channel = self.settings.per_channel and self.plain.opset >= PER_CHANNEL_OPSET
        safe = saturates(self.context.target)
        found = {
            label(u.node): nearest(
                u.node,
                params[u.reads[0].name],
                per_channel=per_channel,
                safe=safe,
                added=qdq.missing_channels(u, placement, self.plain.opset),
            )
            for u in units
        }
        if self.settings.bias_correction:
            means = self._means(units, params)
            found |= {label(u.node): correct(u.node, found[label(u.node)], means[Read.by(u)]) for u in units}
        return found

    def _means(self, units: Sequence[Unit], params: Mapping[str, QParams]) -> dict[Read, Means]:
        """What the layers read on average; measured once for each way to round it."""
        wanted = {Read.by(u): params[u.reads[0].name] for u in units}
        keys = {read: (read, *(p.tobytes() for p in how)) for read, how in wanted.items()}
        unknown = {read: how for read, how in wanted.items() if keys[read] not in self._known_means}
        if unknown:
            found = measure(self.plain, self.context, self.sizes, unknown)
            self._known_means |= {keys[read]: means for read, means in found.items()}
        return {read: self._known_means[key] for read, key in keys.items()}
