"""Ranges of tensors as they are asked for, and why some tensors have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxopt.core.context import Context, Method
from onnxopt.data.calibration import Calibration
from onnxopt.data.statistics import Statistics
from onnxopt.graph.model import Model
from onnxopt.numerics.ranges import Range

# Products of scales of numbers beyond this could leave float32.
_LARGEST = 2.0**90


class Ranges:
    """Ranges of tensors, and reasons why tensors have none, by name; notes say what the report should know.

    ``known`` are those that need no data.
    """

    def __init__(self, model: Model, context: Context, method: Method, known: Mapping[str, Range]) -> None:
        self.found: dict[str, Range] = dict(known)
        self.statistics: dict[str, Statistics] = {}
        self.unfit: dict[str, str] = {}
        self.notes: list[str] = []
        self._model, self._context, self._method = model, context, method

    def measure(self, tensors: Sequence[str]) -> None:
        """On all of the data, at once."""
        calibration = self._context.statistics(self._model, tensors, self._method)
        self.notes += calibration.notes
        for name in tensors:
            if why := _unfit(name, calibration):
                self.unfit[name] = why
            else:
                self.found[name] = calibration.ranges[name]
                self.statistics[name] = calibration.statistics[name]


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
