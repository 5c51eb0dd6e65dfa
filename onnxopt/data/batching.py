"""Which axis of a model's inputs counts samples, if any: read from their shapes and dimension names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnxopt.errors import DataError
from onnxopt.graph.signature import Dim, TensorSpec, describe
from onnxopt.spelling import nearest

_BATCH_NAME = re.compile(r"^(n|b|bs|.*batch.*)$", re.IGNORECASE)
# Names that exporters make up when the author gave none: unk__749, p2o.DynamicDimension.0, dynamic_axes_1, ?, -1
_MADE_UP = re.compile(r"^(\?|-1|none|unk.*|dim.*|.*dynamic.*|s\d+|.*_dim_\d+)$", re.IGNORECASE)
_ALONG = re.compile(r"seq|len|time|frame|token|step|past|^t$|^l$|^s$", re.IGNORECASE)


@dataclass(frozen=True)
class Batching:
    """How samples become feeds.

    Where the first axis of every input counts samples, they are stacked along it: ``fixed`` at a time when the graph
    fixes that axis, any number when it is None. Otherwise (``whole``) each sample is a whole feed.
    """

    whole: bool
    fixed: int | None = None

    @property
    def unit(self) -> int:
        """Samples that must go together: a count of samples is a multiple of it."""
        return self.fixed or 1

    @classmethod
    def of(cls, inputs: Sequence[TensorSpec]) -> Batching:
        shapes = [spec.shape for spec in inputs if spec.shape != ()]
        leading = {shape[0] if shape else None for shape in shapes}
        inner = {d for shape in shapes if shape for d in shape[1:] if isinstance(d, str)}
        if not leading or any(is_batch_name(d) for d in inner) or any(map(_lone_image, shapes)):
            return cls(whole=True)
        if len(leading) == 1 and isinstance(size := next(iter(leading)), int):
            return cls(whole=False, fixed=size)
        if any(isinstance(d, int) or d in inner for d in leading):
            return cls(whole=True)
        if len(leading) == 1 and not runs_along(next(iter(leading))):
            return cls(whole=False)
        return cls(whole=not all(is_batch_name(d) or is_made_up(d) for d in leading))


def is_batch_name(dim: Dim) -> bool:
    return isinstance(dim, str) and bool(_BATCH_NAME.match(dim))


def is_made_up(dim: Dim) -> bool:
    """True for a dimension without a name that means something."""
    return dim is None or (isinstance(dim, str) and bool(_MADE_UP.match(dim)))


def runs_along(dim: Dim) -> bool:
    return isinstance(dim, str) and not is_batch_name(dim) and bool(_ALONG.search(dim))


def _lone_image(shape: tuple[Dim, ...] | None) -> bool:
    """``[3,H,W]``, as detectors take it: the first axis is colour, not a batch."""
    return (
        shape is not None
        and len(shape) == 3
        and shape[0] == 3
        and all(not isinstance(d, int) or d >= 16 for d in shape[1:])
    )


def with_sizes(inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> tuple[TensorSpec, ...]:
    """The same inputs with named dimensions fixed, also within sums. Raises DataError for a name that no input has."""
    names = {
        t for s in inputs for d in s.shape or () if isinstance(d, str) for t in (d, *terms(d)) if not t.isdecimal()
    }
    for name, size in sizes.items():
        if name not in names:
            raise DataError(f"no dimension is named {name!r}{nearest(name, names)}; the model takes {describe(inputs)}")
        if size < 1:
            raise DataError(f"dimension {name!r} cannot have size {size}; it must be at least 1")
    return tuple(
        replace(s, shape=None if s.shape is None else tuple(_with_sizes(d, sizes) for d in s.shape)) for s in inputs
    )


def terms(dim: str) -> list[str]:
    """The terms of a dimension that exporters write as a sum, such as ``past_length + sequence_length``."""
    return [term.strip() for term in dim.split("+")]


def _with_sizes(dim: Dim, sizes: Mapping[str, int]) -> Dim:
    if not isinstance(dim, str):
        return dim
    if dim in sizes:
        return sizes[dim]
    known = [str(sizes.get(term, term)) for term in terms(dim)]
    return sum(map(int, known)) if all(t.isdecimal() for t in known) else " + ".join(known)
