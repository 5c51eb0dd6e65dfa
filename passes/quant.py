"""Static quantization: unsigned 8-bit activations, signed 8-bit weights, in the form that runs in integer kernels.

    real = scale * (integer - zero_point)

Activations get scale and zero point from their range over the calibration data, weights one scale per output channel
from their largest magnitude, biases int32 on the scale of input times weight (Jacob et al., "Quantization and training
of neural networks for efficient integer-arithmetic-only inference", 2018). The file holds QuantizeLinear and
DequantizeLinear at the places where the runtime makes integer kernels of them; what it executes in the end is looked
up, and a layer that it leaves float all the same is left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from onnxopt.core.context import Context, Method
from onnxopt.core.pass_ import Figure, Pass, PassResult, Preflight, Skip, label, option
from onnxopt.core.patterns import absent, excluded
from onnxopt.core.reasons import FEW, refused
from onnxopt.errors import ExecutionError, ModelError
from onnxopt.graph.model import Model
from onnxopt.quantization.candidate import PER_CHANNEL_OPSET, Builder, Settings
from onnxopt.quantization.judge import cannot_run
from onnxopt.quantization.kernels import QUANTIZED
from onnxopt.quantization.mixed import Goal
from onnxopt.quantization.preflight import preflight
from onnxopt.quantization.strategy import Activations, Effort, Wanted, quantize_model

_OLDEST_OPSET = 10


@dataclass(frozen=True, kw_only=True)
class Quant(Pass):
    """8-bit integers wherever the runtime computes in them."""

    name: ClassVar[str] = "quant"
    after: ClassVar[tuple[str, ...]] = ("fold-bn", "fold-constants", "clean", "prune", "svd", "sparsify")
    prepare: ClassVar[tuple[str, ...]] = ("inline-functions", "freeze-defaults", "fold-constants", "fold-bn", "clean")

    activations: Activations = option("auto", "scales of activations fixed from data, or found anew at every run")
    effort: Effort = option("balanced", "how far to go for accuracy: a few, about forty or hundreds of times the data")
    calibration: Method = option("mse", "how a tensor's range is taken from the data")
    per_channel: bool = option(True, "one weight scale for each output channel, not one for each tensor")
    bias_correction: bool = option(True, "let biases make good for what rounding adds on average")
    exclude: str = option("", "nodes to leave float: names or patterns with *, joined by +")
    max_drop: float | None = option(None, "most accuracy lost, or answers changed: floats for what it takes")
    min_sqnr: float | None = option(None, "least signal to noise in dB: floats for what it takes")
    measure: bool = option(True, "time both forms on this machine, and leave float what loses by integers")

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise ValueError(f"max-drop is a share, not {self.max_drop:g}; write for example 0.5% or 0.005")
        if self.min_sqnr is not None and math.isnan(self.min_sqnr):
            raise ValueError("min-sqnr is no number of decibels")

    def run(self, model: Model, context: Context) -> PassResult:
        if found := next((n for n in model.nodes() if n.op in QUANTIZED), None):
            return PassResult(0, (Skip(label(found), f"the model is quantized already: it holds {found.op}"),))
        plain = model.clone()
        notes = _modernize(plain)
        if plain.opset < _OLDEST_OPSET:
            return PassResult(0, notes)
        labels = [label(n) for n in plain.nodes()]
        notes += absent(self.exclude, labels)
        wanted = Wanted(
            Settings(self.calibration, self.per_channel, self.bias_correction),
            self.activations,
            self.effort,
            Goal(self.max_drop, self.min_sqnr),
            self.measure,
        )
        try:
            outcome = quantize_model(plain, model, context, wanted, excluded(self.exclude, labels))
        except ExecutionError as error:
            return PassResult(0, (*notes, Skip("model", f"left float as a whole, because in integers: {error}")))
        candidate = outcome.candidate
        if candidate is None:
            return PassResult(0, (*notes, *outcome.skips), outcome.figures)
        if why := cannot_run(candidate.model, context):
            return PassResult(0, (*notes, Skip("model", why)))
        executed = candidate.executed
        figures: dict[str, Figure] = {
            "layers": len(candidate.layers),
            "integer_kernels": len(executed.integer),
            "float_islands": len(executed.islands),
            "conversions": executed.conversions,
            "tensors": len(set(candidate.placement.roots.values())),
            "per_channel": self.per_channel and plain.opset >= PER_CHANNEL_OPSET,
            "reduced_channels": candidate.reduced,
            "samples": context.dataset.count,
            **outcome.figures,
        }
        if plain.opset != model.opset:
            figures["opset"] = [model.opset, plain.opset]
        model.adopt(candidate.model)
        return PassResult(len(candidate.layers), (*notes, *outcome.skips), figures)

    def preflight(self, model: Model, context: Context) -> Preflight:
        """Builds the integer form from a few samples."""
        if found := next((n for n in model.nodes() if n.op in QUANTIZED), None):
            return refused(f"the model is quantized already: it holds {found.op}")
        plain = model.clone()
        notes = _modernize(plain)
        if plain.opset < _OLDEST_OPSET:
            return refused(f"no layer would run in integers: {notes[0].why}", notes)
        labels = [label(n) for n in plain.nodes()]
        notes += absent(self.exclude, labels)
        few = context.over(context.dataset.subset(range(min(FEW * context.dataset.unit, context.dataset.count))))
        settings = Settings(self.calibration, self.per_channel, self.bias_correction)
        return preflight(Builder(plain, few, settings, excluded(self.exclude, labels)), context, notes)


def _modernize(model: Model) -> tuple[Skip, ...]:
    """Convert to an opset that knows scales per channel; says so where that fails."""
    try:
        model.upgrade(PER_CHANNEL_OPSET)
    except ModelError as error:
        return (Skip("opset", f"{error}; weights get one scale each"),)
    return ()
