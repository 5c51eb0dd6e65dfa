"""How far a model's outputs move when some of its layers get other weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.stream import feeds, modest_batch
from onnxopt.graph.ir import Node
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.runtime.session import Session

_SAMPLES, _FEW = 128, 16
_MEMORY = 2**26
# An output that varies by less, of its power, does not vary.
_STILL = 1e-6


class Replacement(NamedTuple):
    """A layer, and the weight and bias that it would have, unrolled."""

    layer: Node
    weight: Floats
    bias: Floats


class Probe:
    """Holds what a model makes of the first ``samples`` samples. Outputs that are no floats say nothing here."""

    def __init__(self, model: Model, context: Context, samples: int) -> None:
        self._model = model
        count = min(context.dataset.count, samples)
        # Those that it looks at must not be those that weights are solved on, where there are enough.
        self.samples = min(_SAMPLES, count // 2) if count >= _FEW else 0
        self._threads = context.threads
        self._feeds = feeds(context, self.samples or count, modest_batch(context, context.shapes(model)))
        size = sum(y.nbytes for y in self._run(model, 1).values())
        self._feeds = self._feeds[: max(1, _MEMORY // max(size, 1))]
        self._wanted = self._run(model)

    def error(self, replacements: Sequence[Replacement]) -> float:
        """How much is lost, averaged over the outputs: about 0 for nothing, 1 for all that they tell."""
        model = self._model.clone()
        by_output = {t.name: node for node in model.graph.nodes for t in node.outputs if t.name}
        for layer, weight, bias in replacements:
            unrolled.write(model, by_output[layer.outputs[0].name], weight, bias)
        return self.of(model)

    def of(self, model: Model) -> float:
        """What another model with the same outputs loses. An output of another shape is lost; infinite for NaN."""
        found = self._run(model)
        errors = [
            loss(y, found[name]) if name in found and found[name].shape == y.shape else 1.0
            for name, y in self._wanted.items()
        ]
        mean = float(np.mean(errors)) if errors else 0.0
        return mean if np.isfinite(mean) else np.inf

    def _run(self, model: Model, batches: int | None = None) -> dict[str, Floats]:
        session = Session(model, threads=self._threads)
        parts = [session.run(feed) for feed in self._feeds[:batches]]
        floats = [k for k, y in parts[0].items() if isinstance(y, np.ndarray) and y.dtype.kind == "f"]
        rows = {k: [np.atleast_2d(p[k].T.astype(np.float64)).T for p in parts] for k in floats}
        return {k: np.concatenate(ys) for k, ys in rows.items() if len({y.shape[1:] for y in ys}) == 1}


def loss(wanted: Floats, found: Floats) -> float:
    """What ``found`` loses of ``wanted``, both (samples, ...): squared error over squared deviation from the mean.

    A row of three numbers or more for each sample may be scores of classes. Of them what counts is which are high: the
    mean with KL(p || q) over the information that p gives, H(mean p) - mean H(p), p and q the softmax of the rows.
    """
    whole = float(np.square(wanted).sum())
    power = float(np.square(wanted - wanted.mean(axis=0)).sum()) if len(wanted) > 1 else whole
    error = float(np.square(found - wanted).sum()) / max(power, _STILL * whole, 1e-30)
    if wanted.ndim != 2 or wanted.shape[1] < 3 or len(wanted) == 1:
        return error
    p, q = _log_shares(wanted), _log_shares(found)
    mean = np.exp(p).mean(axis=0)
    told = float((np.exp(p) * p).sum(axis=1).mean() - (mean * np.log(np.maximum(mean, 1e-300))).sum())
    return (error + float((np.exp(p) * (p - q)).sum(axis=1).mean()) / max(told, 1e-12)) / 2


def _log_shares(rows: Floats) -> Floats:
    """Logarithms of shares that add up to 1: of the rows themselves, where they do, else of their softmax."""
    if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-3):
        return np.log(np.maximum(rows, 1e-12))
    shifted = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
