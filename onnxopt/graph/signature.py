"""What goes into a model and comes out of it, by name, type and shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Dim: TypeAlias = int | str | None
Feed: TypeAlias = dict[str, Array]


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output. ``shape`` holds an int for a fixed dimension, a name or None for a free one.

    ``shape`` is None when the model does not even give the rank.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name}: {self.dtype}[...]"
        return f"{self.name}: {self.dtype}[{','.join('?' if d is None else str(d) for d in self.shape)}]"


def describe(specs: Sequence[TensorSpec]) -> str:
    """``x: float32[N,3,32,32], mask: bool[N]``"""
    return ", ".join(map(str, specs))
