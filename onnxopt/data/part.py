"""What every source of data is made of: parts, each some samples that lie together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.graph.signature import Feed

IntArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """A file, a folder of images, or one yielded feed.

    ``read(rows)`` gives those samples, ready for the model, stacked along a leading axis (inputs of rank 0, which have
    no batch axis, are given once). Only parts of equal ``form`` may share a batch. ``content(rows)`` is what the
    digest is taken of; left out, the digest is taken of what ``read`` gives. ``labels`` is (rows,) int64.
    """

    where: str
    rows: int
    form: Hashable
    read: Callable[[IntArray], Feed]
    labels: IntArray | None = None
    content: Callable[[IntArray], Iterable[bytes]] | None = None


def take(array: npt.NDArray[Any], rows: IntArray) -> npt.NDArray[Any]:
    """``array[rows]``, as a view when the rows follow each other (so that a mapped file is not copied)."""
    if rows.size and np.array_equal(rows, np.arange(rows[0], rows[0] + rows.size)):
        return array[int(rows[0]) : int(rows[0]) + rows.size]
    return array[rows]
