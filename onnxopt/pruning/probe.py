"""How far a model's outputs move when some of its layers get other weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.stream import feeds
from onnxopt.graph.ir import Node
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.runtime.session import Session

_SAMPLES = 64


class Replacement(NamedTuple):
    """A layer, and the weight and bias that it would have, unrolled."""

    layer: Node
    weight: Floats
    bias: Floats


class Probe:
    """Holds what a model makes of a few samples. Outputs that are no floats say nothing here."""

    def __init__(self, model: Model, context: Context) -> None:
        self._model = model
        self._feeds = feeds(context, _SAMPLES)
        self._threads = context.threads
        self._wanted = self._run(model)
        self._power = {name: max(float(np.var(y, axis=0).sum()) * len(y), 1e-30) for name, y in self._wanted.items()}

    def error(self, replacements: Sequence[Replacement]) -> float:
        """Squared error over squared deviation from the mean, averaged over the outputs."""
        model = self._model.clone()
        by_output = {t.name: node for node in model.graph.nodes for t in node.outputs if t.name}
        for layer, weight, bias in replacements:
            unrolled.write(model, by_output[layer.outputs[0].name], weight, bias)
        found = self._run(model)
        errors = [float(np.square(found[k] - y).sum()) / self._power[k] for k, y in self._wanted.items()]
        return float(np.mean(errors)) if errors else 0.0

    def _run(self, model: Model) -> dict[str, Array]:
        session = Session(model, threads=self._threads)
        parts = [session.run(feed) for feed in self._feeds]
        floats = [k for k, y in parts[0].items() if np.issubdtype(y.dtype, np.floating)]
        found = {k: np.concatenate([np.atleast_2d(p[k].astype(np.float64)) for p in parts]) for k in floats}
        return {k: _centred(y) for k, y in found.items()}


def _centred(y: Array) -> Array:
    return y - y.mean(axis=1, keepdims=True) if y.ndim == 2 and y.shape[1] > 2 else y
