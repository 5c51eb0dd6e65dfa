"""Static quantization: unsigned 8-bit activations, signed 8-bit weights, in the form that runs in integer kernels.

    real = scale * (integer - zero_point)

Activations get scale and zero point from their range over the calibration data, weights one scale per output channel
from their largest magnitude, biases int32 on the scale of input times weight (Jacob et al., "Quantization and training
of neural networks for efficient integer-arithmetic-only inference", 2018). The file holds QuantizeLinear and
DequantizeLinear at the places where the runtime makes integer kernels of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from onnxopt.core import qdq
from onnxopt.core.context import Context, Method
from onnxopt.core.kernels import QUANTIZED
from onnxopt.core.pass_ import Pass, PassResult, Skip, label, option
from onnxopt.core.placement import Placement, fault, is_layer, place
from onnxopt.core.plain_layers import make_plain
from onnxopt.data.calibration import Calibration
from onnxopt.errors import ModelError
from onnxopt.graph import shapes
from onnxopt.graph.model import Model
from onnxopt.numerics.ranges import Range

_PER_CHANNEL_OPSET = 13
_OLDEST_OPSET = 10


@dataclass(frozen=True, kw_only=True)
class Quant(Pass):
    """8-bit integers wherever the runtime computes in them."""

    name: ClassVar[str] = "quant"
    after: ClassVar[tuple[str, ...]] = ("fold-bn", "fold-constants", "clean", "prune", "svd")
    prepare: ClassVar[tuple[str, ...]] = ("fold-bn",)

    calibration: Method = option("mse", "how a tensor's range is taken from the data")
    per_channel: bool = option(True, "one weight scale for each output channel, not one for each tensor")
    exclude: str = option("", "nodes to leave float: names or patterns with *, joined by +")

    def run(self, model: Model, context: Context) -> PassResult:
        if found := next((n for n in model.nodes() if n.op in QUANTIZED), None):
            return PassResult(0, (Skip(label(found), f"the model is quantized already: it holds {found.op}"),))
        opset, fallback = _modernize(model)
        if model.opset < _OLDEST_OPSET:
            return PassResult(0, (Skip("model", fallback),))
        placement, calibration = self._place(model, context)
        if not placement.units:
            return PassResult(0, placement.skips)
        per_channel = self.per_channel and model.opset >= _PER_CHANNEL_OPSET
        qdq.write(model, placement, calibration, per_channel=per_channel)
        layers = sum(is_layer(u.node) for u in placement.units)
        figures: dict[str, int | bool | str] = {
            "layers": layers,
            "operators": len(placement.units),
            "tensors": len(set(placement.roots.values())),
            "per_channel": per_channel,
        }
        if model.opset != opset:
            figures["opset"] = f"{opset} to {model.opset}"
        skips = placement.skips if not fallback else (Skip("model", fallback), *placement.skips)
        return PassResult(layers, skips, figures)

    def _place(self, model: Model, context: Context) -> tuple[Placement, Mapping[str, Range]]:
        """Choose what runs in integers, measure the ranges, and choose again without the tensors that have none."""
        sizes, specs = context.shapes(model), shapes.specs(model)
        patterns = [p for p in self.exclude.split("+") if p]
        exclude = {label(n) for n in model.graph.nodes if any(fnmatchcase(label(n), p) for p in patterns)}
        wanted = [n for n in model.graph.nodes if is_layer(n) and label(n) not in exclude]
        make_plain(model, [n for n in wanted if not fault(n, sizes, specs, model.opset)], sizes)
        model.tidy()
        ranges: dict[str, Range] = {}
        unfit: dict[str, str] = {}
        while True:
            placement = place(model, sizes, specs, exclude=exclude, unfit=unfit)
            unknown = sorted(set(placement.roots.values()) - set(ranges))
            if not unknown:
                return placement, ranges
            calibration = context.statistics(model, unknown, self.calibration)
            for name in unknown:
                if why := _unfit(name, calibration):
                    unfit[name] = why
                else:
                    ranges[name] = calibration.ranges[name]


def _modernize(model: Model) -> tuple[int, str]:
    """Convert the model to an opset that has scales per channel. Returns its opset before, and why it failed, if so."""
    before = model.opset
    try:
        model.upgrade(_PER_CHANNEL_OPSET)
    except ModelError as error:
        return before, str(error)
    return before, ""


def _unfit(name: str, calibration: Calibration) -> str:
    """Why a tensor cannot be quantized; empty if it can."""
    found = calibration.statistics.get(name)
    if found is None or found.count == 0:
        return "is never computed on the calibration data"
    if found.nan_count or found.inf_count:
        return "holds NaN or infinite values"
    return "is zero on all of the calibration data" if found.minimum == found.maximum == 0 else ""
