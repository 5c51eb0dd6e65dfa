"""What a pass may ask for beyond the model: data run through it, the target, chance, progress."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Literal

import numpy as np

from onnxopt.data.calibration import Calibration, calibrate
from onnxopt.graph import shapes
from onnxopt.graph.signature import Array, Feed, TensorSpec
from onnxopt.progress import Track, silent
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import NATIVE, Target

if TYPE_CHECKING:
    from onnxopt.data.cache import Cache
    from onnxopt.data.dataset import Dataset
    from onnxopt.graph.model import Model

Method = Literal["minmax", "percentile", "entropy", "mse"]
_BATCH = 32


class Context:
    """Made once a run and handed to each pass.

    ``original`` is the model as it was loaded, for passes that repair towards it; ``dataset`` the calibration data;
    ``batch`` how many samples are run at once, where the graph leaves that free; ``latency_batch`` how many are when
    it is time that counts.
    """

    def __init__(
        self,
        original: Model,
        dataset: Dataset,
        *,
        target: Target = NATIVE,
        seed: int = 0,
        track: Track = silent,
        threads: int = 1,
        cache: Cache | None = None,
        batch: int = _BATCH,
        latency_batch: int = 1,
    ) -> None:
        self.original = original
        self.dataset = dataset
        self.target = target
        self.track = track
        self.threads = threads
        self.cache = cache
        self.batch = batch
        self.latency_batch = latency_batch
        self._seed = seed

    def rng(self) -> np.random.Generator:
        """A generator that is the same for every pass and every run."""
        return np.random.default_rng(self._seed)

    def over(self, dataset: Dataset) -> Context:
        """The same with other data."""
        other = copy.copy(self)
        other.dataset = dataset
        return other

    def statistics(self, model: Model, tensors: Sequence[str], method: Method = "minmax") -> Calibration:
        """Ranges of tensors over the whole dataset, streamed."""
        session = Session(model, outputs=tensors, threads=self.threads)
        return calibrate(
            session.run,
            self.dataset,
            tensors,
            method,
            track=self.track,
            cache=self.cache,
            key=model.digest() if self.cache is not None else "",
        )

    def activations(
        self, model: Model, tensors: Sequence[str], samples: int | None = None, batch: int | None = None
    ) -> Iterator[dict[str, Array]]:
        """Values of tensors, batch by batch, over the first ``samples`` samples: the same batches for every model."""
        session = Session(model, outputs=tensors, threads=self.threads)
        for feed in self.dataset.batches(batch or self.batch, stop=samples):
            yield session.run(feed)

    def shapes(self, model: Model) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor as one sample makes it: inferred if possible, else, outside bodies, by a run.

        Tensors whose rank is not the same for all samples that were run have none.
        """
        feed = next(iter(self.dataset.batches(1, stop=1)))
        known = _sized(shapes.specs(model, feed))
        sure = known.keys() & shapes.infer(model)
        names = [t.name for n in model.graph.nodes for t in n.outputs if t.name and t.name not in sure]
        if names:
            known = {k: v for k, v in known.items() if k not in names} | self._observed(model, names, feed)
        before = -1
        while any(True for node in model.graph.nodes for _ in node.bodies()) and len(known) > before:
            before = len(known)  # each turn gets further into bodies
            known = _sized(shapes.specs(model, feed, known)) | known
        return {name: _sizes(spec) for name, spec in known.items()} | {
            c.name: tuple(c.shape) for c in model.constants()
        }

    def _observed(self, model: Model, names: Sequence[str], feed: Feed) -> dict[str, TensorSpec]:
        session = Session(model, outputs=names, optimize=False)
        values, *others = (session.run(f) for f in (feed, *self.dataset.batches(2, start=1, stop=3)))
        return {
            name: TensorSpec(name, value.dtype, value.shape)
            for name, value in values.items()
            if isinstance(value, np.ndarray) and all(np.ndim(other[name]) == value.ndim for other in others)
        }

    def free_axes(self, model: Model) -> dict[str, Iterable[bool]]:
        """For every tensor: which axes have no fixed size; where not even the rank has one, all of them."""
        found: dict[str, Iterable[bool]] = dict.fromkeys(model.variables(), repeat(True))
        return found | {name: [not isinstance(d, int) for d in shape] for name, shape in shapes.infer(model).items()}


def _sized(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Those of which every size is known."""
    return {k: v for k, v in specs.items() if v.shape is not None and all(isinstance(d, int) for d in v.shape)}


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(d for d in spec.shape or () if isinstance(d, int))
