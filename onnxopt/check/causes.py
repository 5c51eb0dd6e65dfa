"""Why a model answers otherwise on a target, and what would help, each at its price."""

from __future__ import annotations

from onnxopt.check.departure import Departure
from onnxopt.graph.model import Model
from onnxopt.report.report import Cause
from onnxopt.runtime.target import Target


def find_causes(candidate: Model, target: Target, departure: Departure | None) -> tuple[Cause, ...]:
    """What is known to make such a model answer otherwise there; empty where nothing is."""
    return ()
