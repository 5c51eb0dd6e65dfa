"""How far each layer's result is from the original's, on a few samples.

Equalization and folding multiply channels and divide them again behind: the answers stay, the channels' scales do not.
So of each channel only what no scale explains counts as an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from onnxopt.check.diff_numbers import parts_of, shared_tensors
from onnxopt.core.context import Context
from onnxopt.data.dataset import Dataset
from onnxopt.errors import ExecutionError
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.report.report import LayerNoise
from onnxopt.runtime.session import Session

_SAMPLES = 8


def layer_noise(reference: Model, candidate: Model, dataset: Dataset, *, threads: int = 1) -> tuple[LayerNoise, ...]:
    """Signal to noise of every float tensor that both main graphs have by name and shape, in the reference's order;
    nothing where one of them does not run as it is written."""
    few = dataset.subset(range(min(_SAMPLES, dataset.count)))
    found = []
    try:
        a, b = (Context(m, few).shapes(m) for m in (reference, candidate))
        for names in parts_of(shared_tensors(reference, candidate, (a, b)), a):
            sums = {name: _Sums() for name in names}
            sessions = [Session(m, outputs=names, threads=threads, optimize=False) for m in (reference, candidate)]
            for feed in few.batches(1):
                expected, got = (s.run(feed) for s in sessions)
                for name in names:
                    sums[name].add(expected[name], got[name])
            found += [LayerNoise(name, db) for name, s in sums.items() if (db := s.decibels()) is not None]
    except ExecutionError:
        return ()
    return tuple(found)


class _Sums:
    """Energies by channel: of the reference, of the candidate, and of both together."""

    def __init__(self) -> None:
        self._energy: Mapping[str, Array] | None = None
        self._compared = True

    def add(self, a: Array, b: Array) -> None:
        if a.dtype.kind != "f" or b.dtype.kind != "f" or a.shape != b.shape or not a.size:
            self._compared = False
            return
        x, y = (_by_channel(v).astype(np.float64) for v in (a, b))
        new = {"aa": (x * x).sum(1), "ab": (x * y).sum(1), "bb": (y * y).sum(1)}
        old = self._energy
        if old is not None and old["aa"].shape != new["aa"].shape:
            self._compared = False
            return
        self._energy = new if old is None else {k: old[k] + v for k, v in new.items()}

    def decibels(self) -> float | None:
        """Infinite where nothing differs beyond float32's rounding; None for what is no signal."""
        if self._energy is None or not self._compared:
            return None
        aa, ab, bb = (self._energy[k] for k in ("aa", "ab", "bb"))
        signal = float(aa.sum())
        if not math.isfinite(float((aa + bb).sum())) or signal <= 0:
            return None
        explained = np.divide(ab * ab, bb, out=np.zeros_like(ab), where=bb > 0)
        noise = float(np.maximum(aa - explained, 0.0).sum())
        return 10 * math.log10(signal / noise) if noise > 1e-12 * signal else math.inf


def _by_channel(values: Array) -> Array:
    """(channels, rest): channels come second in images, last in what has fewer axes."""
    axis = 1 if values.ndim >= 4 else values.ndim - 1
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1) if values.ndim else values.reshape(1, 1)
