"""What integers do to a model's answers, on a few samples that calibration has not seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.core.quality import Comparison, Quality
from onnxopt.data.dataset import spread
from onnxopt.errors import ExecutionError
from onnxopt.graph.model import Model
from onnxopt.runtime.session import Session

if TYPE_CHECKING:
    from onnxopt.core.context import Context
    from onnxopt.data.dataset import Dataset

# Of fewer samples none can be spared.
_ENOUGH = 8
_HELD_OUT = 0.25
# The reference's answers are kept: so many bytes of them at most, with what they answer.
_KEPT_BYTES = 2**26
# Few at a time keep the tensors in the processor's cache.
_BATCH = 4
_UNUSABLE = Quality((), -math.inf, 0.0, None, None, None, None, None, ())


def hold_back(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """(what calibrates, what judges); both are the whole dataset where it is small."""
    return dataset.split(_HELD_OUT) if dataset.count >= _ENOUGH * dataset.unit else (dataset, dataset)


class Judge:
    """Compares models with one reference, whose answers to at most ``samples`` samples of the dataset are kept.

    Raises ExecutionError when the reference does not run.
    """

    def __init__(self, reference: Model, dataset: Dataset, *, samples: int, threads: int = 1) -> None:
        self._threads = threads
        session = Session(reference, threads=threads)
        feed = next(iter(dataset.batches(1, stop=1)))
        values = (*feed.values(), *session.run(feed).values())
        # Sequences and maps are not compared.
        of_one = sum(v.nbytes for v in values if isinstance(v, np.ndarray)) // dataset.unit
        count = min(samples, dataset.count, max(_KEPT_BYTES // max(of_one, 1), dataset.unit))
        units = spread(dataset.count // dataset.unit, -(-count // dataset.unit), seed=0)
        self._dataset = dataset.subset([i * dataset.unit + j for i in units for j in range(dataset.unit)])
        self._pairs = [(feed, session.run(feed)) for feed in self._dataset.batches(_BATCH)]

    @property
    def perfect(self) -> Quality:
        """Of a model in which nothing changed."""
        comparison = Comparison(self._dataset.labels)
        for feed, expected in self._pairs:
            comparison.add(feed, expected, expected)
        return comparison.result(self.samples)

    @property
    def samples(self) -> int:
        """How many samples a model is judged on."""
        return self._dataset.count

    def __call__(self, candidate: Model) -> Quality:
        """How near a model's answers are; minus infinite decibels for one that fails to run."""
        comparison = Comparison(self._dataset.labels)
        try:
            session = Session(candidate, threads=self._threads)
            for feed, expected in self._pairs:
                comparison.add(feed, expected, session.run(feed))
        except ExecutionError:
            return _UNUSABLE
        return comparison.result(self.samples)


def cannot_run(model: Model, context: Context) -> str:
    """Why ONNX Runtime fails on an integer model that it could load; empty if it does not."""
    try:
        next(context.activations(model, [o.name for o in model.outputs], samples=1, batch=1))
    except ExecutionError as error:
        return f"left float as a whole, because in integers: {error}"
    return ""
