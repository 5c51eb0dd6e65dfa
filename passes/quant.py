"""Static quantization: unsigned 8-bit activations, signed 8-bit weights, in the form that runs in integer kernels.

    real = scale * (integer - zero_point)

Activations get scale and zero point from their range over the calibration data, weights one scale per output channel
from their largest magnitude, biases int32 on the scale of input times weight (Jacob et al., "Quantization and training
of neural networks for efficient integer-arithmetic-only inference", 2018). The file holds QuantizeLinear and
DequantizeLinear at the places where the runtime makes integer kernels of them; what it executes in the end is looked
up, and a layer that it leaves float all the same is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from onnxopt.core.context import Context, Method
from onnxopt.core.pass_ import Figure, Pass, PassResult, Skip, label, option
from onnxopt.data.calibration import Calibration
from onnxopt.errors import ExecutionError, ModelError
from onnxopt.graph import shapes
from onnxopt.graph.model import Model
from onnxopt.numerics.ranges import Range
from onnxopt.quantization import qdq
from onnxopt.quantization.bias_correction import measure
from onnxopt.quantization.eligible import Sizes, Specs, is_layer
from onnxopt.quantization.kernels import QUANTIZED
from onnxopt.quantization.placement import Placement, place
from onnxopt.quantization.plain_layers import make_plain
from onnxopt.runtime.audit import audit

_PER_CHANNEL_OPSET = 13
_OLDEST_OPSET = 10
# Products of scales of numbers beyond this could leave float32.
_LARGEST = 2.0**90


@dataclass(frozen=True, kw_only=True)
class Quant(Pass):
    """8-bit integers wherever the runtime computes in them."""

    name: ClassVar[str] = "quant"
    after: ClassVar[tuple[str, ...]] = ("fold-bn", "fold-constants", "clean", "prune", "svd")
    prepare: ClassVar[tuple[str, ...]] = ("freeze-defaults", "fold-constants", "fold-bn", "clean")

    calibration: Method = option("mse", "how a tensor's range is taken from the data")
    per_channel: bool = option(True, "one weight scale for each output channel, not one for each tensor")
    bias_correction: bool = option(True, "let biases make good for what rounding adds on average")
    exclude: str = option("", "nodes to leave float: names or patterns with *, joined by +")

    def run(self, model: Model, context: Context) -> PassResult:
        if found := next((n for n in model.nodes() if n.op in QUANTIZED), None):
            return PassResult(0, (Skip(label(found), f"the model is quantized already: it holds {found.op}"),))
        plain = model.clone()
        notes = _modernize(plain)
        if plain.opset < _OLDEST_OPSET:
            return PassResult(0, notes)
        patterns = [p for p in self.exclude.split("+") if p]
        left_out = {label(n): "excluded" for n in plain.graph.nodes if any(fnmatchcase(label(n), p) for p in patterns)}
        sizes, specs = context.shapes(plain), shapes.specs(plain)
        make_plain(plain, sizes, specs, left_out)
        ranges = _Ranges(plain, context, self.calibration)
        per_channel = self.per_channel and plain.opset >= _PER_CHANNEL_OPSET
        while True:
            candidate = plain.clone()
            placement = _place(candidate, sizes, specs, left_out, ranges)
            if not placement.units:
                return PassResult(0, (*notes, *placement.skips))
            params = qdq.choose(placement, ranges.found)
            means = measure(plain, context, placement, params) if self.bias_correction else {}
            layers = [label(u.node) for u in placement.units if is_layer(u.node)]
            qdq.write(candidate, placement, params, means, per_channel=per_channel)
            candidate.tidy()
            executed = audit(candidate)
            refused = {n.node: f"ONNX Runtime leaves it float: {n.why}" for n in executed.islands if n.node in layers}
            if not refused:
                break
            left_out |= refused
        if why := _cannot_run(candidate, context):
            return PassResult(0, (*notes, Skip("model", why)))
        figures: dict[str, Figure] = {
            "layers": len(layers),
            "integer_kernels": len(executed.integer),
            "float_islands": len(executed.islands),
            "conversions": executed.conversions,
            "tensors": len(set(placement.roots.values())),
            "per_channel": per_channel,
            "samples": context.dataset.count,
            "notes": list(ranges.notes),
        }
        if plain.opset != model.opset:
            figures["opset"] = [model.opset, plain.opset]
        model.adopt(candidate)
        return PassResult(len(layers), (*notes, *placement.skips), figures)


def _cannot_run(model: Model, context: Context) -> str:
    """Why ONNX Runtime fails on a model that it could load; empty if it does not."""
    try:
        next(context.activations(model, [o.name for o in model.outputs], samples=1, batch=1))
    except ExecutionError as error:
        return f"left float as a whole, because in integers: {error}"
    return ""


def _modernize(model: Model) -> tuple[Skip, ...]:
    """Convert to an opset that knows scales per channel; says so where that fails."""
    try:
        model.upgrade(_PER_CHANNEL_OPSET)
    except ModelError as error:
        return (Skip("opset", f"{error}; weights get one scale each"),)
    return ()


def _place(model: Model, sizes: Sizes, specs: Specs, left_out: dict[str, str], ranges: _Ranges) -> Placement:
    """Choose what runs in integers, measure the ranges, and choose again without the tensors that have none."""
    while True:
        placement = place(model, sizes, specs, left_out=left_out, unfit=ranges.unfit)
        unknown = sorted(set(placement.roots.values()) - set(ranges.found))
        if not unknown:
            return placement
        ranges.measure(unknown)


class _Ranges:
    """Ranges of tensors, and reasons why tensors have none, by name; notes say what the report should know."""

    def __init__(self, model: Model, context: Context, method: Method) -> None:
        self.found: dict[str, Range] = {}
        self.unfit: dict[str, str] = {}
        self.notes: list[str] = []
        self._model, self._context, self._method = model, context, method

    def measure(self, tensors: Sequence[str]) -> None:
        calibration = self._context.statistics(self._model, tensors, self._method)
        self.notes += calibration.notes
        for name in tensors:
            if why := _unfit(name, calibration):
                self.unfit[name] = why
            else:
                self.found[name] = calibration.ranges[name]


def _unfit(name: str, calibration: Calibration) -> str:
    """Why a tensor cannot be quantized; empty if it can."""
    found = calibration.statistics.get(name)
    if found is None or found.count == 0:
        return "is never computed on the calibration data"
    if found.nan_count or found.inf_count:
        return "holds NaN or infinite values"
    if max(-found.minimum, found.maximum) > _LARGEST:
        return f"holds values as large as {max(-found.minimum, found.maximum):.1g}"
    return "is zero on all of the calibration data" if found.minimum == found.maximum == 0 else ""
