"""The model that is checked, read when a check wants it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import onnx

from onnxopt.data.dataset import Dataset, open_dataset
from onnxopt.deploy.trial import Trial, try_out
from onnxopt.errors import ModelError
from onnxopt.graph import external, io
from onnxopt.graph.model import Model
from onnxopt.graph.vocabulary import index_bounds
from onnxopt.progress import Track, silent

# So many made-up samples are enough where nobody gave any.
_SYNTHETIC = 8


class Subject:
    """A file and the data to try it with. ``data`` None: made-up samples; ``dims``: sizes of free dimensions.

    Reading raises what ``graph.io`` and ``data.dataset`` raise, each time that it is tried.
    """

    def __init__(
        self,
        path: Path,
        *,
        data: str | Path | None = None,
        preprocess: str | Path | None = None,
        samples: int | None = None,
        seed: int = 0,
        dims: Mapping[str, int] | None = None,
        track: Track = silent,
    ) -> None:
        self.path = path
        self.data = data
        self.track = track
        self._preprocess = preprocess
        self._samples = samples
        self._seed = seed
        self._dims = dict(dims or {})

    @cached_property
    def proto(self) -> onnx.ModelProto:
        """The message as it is in the file, without external data. Do not change it. Raises ModelError."""
        return io.parse(self.path)

    @property
    def files(self) -> set[Path]:
        """The file and those that it names, as far as they are there and where they may be."""
        try:
            found = external.places(self.proto, self.path.parent)
            return {self.path.resolve(), *(p for _, p in found if isinstance(p, Path))}
        except ModelError:
            return {self.path.resolve()}

    @cached_property
    def model(self) -> Model:
        """The model. Do not change it; clone it. Raises ModelError, ExternalDataError."""
        return io.load(self.path)

    @cached_property
    def dataset(self) -> Dataset:
        """The samples that were given, or a few made-up ones (``dataset.synthetic``). Raises DataError, SpecError."""
        return open_dataset(
            self.data,
            self.model.inputs,
            preprocess=self._preprocess,
            samples=_SYNTHETIC if self.data is None and self._samples is None else self._samples,
            seed=self._seed,
            dims=self._dims,
            bounds=index_bounds(self.model),
        )

    @cached_property
    def trial(self) -> Trial:
        """How the model ran for the first time, bounded. Raises what reading the model and the data raises."""
        return try_out(self)
