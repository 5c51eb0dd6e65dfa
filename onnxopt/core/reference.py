"""What a model answered before a pass, to hold its answers afterwards against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.errors import PassError
from onnxopt.graph.model import Model
from onnxopt.numerics.tolerance import allowed, deviation
from onnxopt.runtime.session import Session

if TYPE_CHECKING:
    from onnxopt.core.context import Context


# Rounding may do so many times what it does between two ways in which ONNX Runtime itself computes the model.
_ROUNDING = 4.0


class Reference:
    """A model's outputs on the first batch of ``samples`` samples, with ONNX Runtime's own rewrites off."""

    def __init__(self, model: Model, context: Context, samples: int = 1) -> None:
        self._model = model.clone()
        self._feed = next(iter(context.dataset.batches(samples, stop=samples)))
        values = Session(model, optimize=False).run(self._feed)
        # Sequences and maps are not compared.
        self._outputs = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def compare(self, model: Model, step: str, exact: bool) -> dict[str, float]:
        """Deviation per output. Raises PassError when a pass that is exact changed more than rounding explains."""
        found = self.deviations(model)
        for name in self.beyond_rounding(found) if exact else ():
            raise PassError(f"the exact pass {step} changed the output '{name}' by {found[name]:.2g} of its range")
        return found

    def beyond_rounding(self, found: Mapping[str, float]) -> list[str]:
        """The outputs whose deviation is more than rounding explains."""
        beyond = [name for name, amount in found.items() if amount > allowed(self._outputs[name].dtype)]
        # The table of tolerances does not know a model that magnifies rounding, such as a saturated sigmoid.
        rounding = self.deviations(self._model, optimize=True) if beyond else {}
        return [name for name in beyond if found[name] > _ROUNDING * rounding[name]]

    def deviations(self, model: Model, optimize: bool = False) -> dict[str, float]:
        """How far another model's outputs lie from these, by output."""
        now = Session(model, optimize=optimize).run(self._feed)
        return {name: deviation(value, now[name]) for name, value in self._outputs.items()}
