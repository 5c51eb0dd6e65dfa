"""The one scorer: a pruned file against the whole model, on the evaluation samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reference import Reference, or_error

from onnxopt import load
from onnxopt.core.context import Context
from onnxopt.graph.cost import OperatorCost, cost
from onnxopt.graph.model import Model


def quality(reference: Reference, candidate: Path) -> dict[str, Any]:
    """Accuracy, agreement and what is left of the work. With ``error`` alone where the file does not run."""

    def measured() -> dict[str, Any]:
        found = reference.compare(candidate)
        before, after = _cost(reference.model, reference), _cost(load(candidate), reference)
        return {
            "accuracy": found.accuracy,
            "accuracy_float": found.accuracy_reference,
            "agreement": found.agreement,
            "sqnr_db": found.sqnr_db,
            "macs_share": (after.macs or 0) / (before.macs or 1),
            "parameters_share": after.parameters / before.parameters,
        }

    return or_error(measured)


def _cost(model: Model, reference: Reference) -> OperatorCost:
    return cost(model, Context(model, reference.dataset).shapes(model)).total
