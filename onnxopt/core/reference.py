"""What a model answered before a pass, to hold its answers afterwards against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxopt.errors import PassError
from onnxopt.graph.model import Model
from onnxopt.numerics.tolerance import allowed, deviation
from onnxopt.runtime.session import Session

if TYPE_CHECKING:
    from onnxopt.core.context import Context


# Rounding may do so many times what it does between two ways in which ONNX Runtime itself computes the model.
_ROUNDING = 4.0


class Reference:
    """A model's outputs on the first sample, with ONNX Runtime's own rewrites off."""

    def __init__(self, model: Model, context: Context) -> None:
        self._model = model.clone()
        self._feed = next(iter(context.dataset.batches(1, stop=1)))
        self._outputs = Session(model, optimize=False).run(self._feed)

    def compare(self, model: Model, step: str, exact: bool) -> dict[str, float]:
        """Deviation per output. Raises PassError when a pass that is exact changed more than rounding explains."""
        found = self._deviations(model, optimize=False)
        beyond = {n: amount for n, amount in found.items() if exact and amount > allowed(self._outputs[n].dtype)}
        # The table of tolerances does not know a model that magnifies rounding, such as a saturated sigmoid.
        rounding = self._deviations(self._model, optimize=True) if beyond else {}
        for name, amount in beyond.items():
            if amount > _ROUNDING * rounding[name]:
                raise PassError(f"the exact pass {step} changed the output '{name}' by {amount:.2g} of its range")
        return found

    def _deviations(self, model: Model, optimize: bool) -> dict[str, float]:
        now = Session(model, optimize=optimize).run(self._feed)
        return {name: deviation(value, now[name]) for name, value in self._outputs.items()}
